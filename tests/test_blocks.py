import torch

from draftopd.blocks import block_positions, branch_mask, causal_mask, masked_blocks


def test_masked_blocks_put_the_anchor_before_mask_tokens():
    blocks = masked_blocks(torch.tensor([[6, 8]]), 3, mask_token_id=0)
    assert blocks.tolist() == [[[6, 0, 0], [8, 0, 0]]]


def test_slot_k_stands_at_anchor_plus_k():
    assert block_positions(torch.tensor([[1, 3]]), 3).tolist() == [[[1, 2, 3], [3, 4, 5]]]


def test_a_block_sees_the_text_strictly_before_its_anchor_and_itself():
    start, block = torch.tensor([[2, 2, 1, 1]]), torch.tensor([[0, 0, 1, 1]])
    both = branch_mask(start, block, 3, causal=False)[0, 0].int().tolist()
    assert both == [
        [1, 1, 0, 1, 1, 0, 0],
        [1, 1, 0, 1, 1, 0, 0],
        [1, 0, 0, 0, 0, 1, 1],
        [1, 0, 0, 0, 0, 1, 1],
    ]
    causal = branch_mask(start, block, 3, causal=True)[0, 0, :, 3:].int().tolist()
    assert causal == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]


def test_causal_mask_shows_slots_up_to_the_position_of_each_row():
    assert causal_mask(torch.tensor([[0, 1], [2, 3]]), 4)[:, 0].int().tolist() == [
        [[1, 0, 0, 0], [1, 1, 0, 0]],
        [[1, 1, 1, 0], [1, 1, 1, 1]],
    ]
