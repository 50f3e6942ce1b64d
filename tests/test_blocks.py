import torch

from draftopd.blocks import Tails, block_positions, branch_mask, causal_mask, flex_branch_mask, masked_blocks
from draftopd.trace import Trace, collate


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


def test_the_flex_mask_is_the_same_mask():
    start, block = torch.tensor([[2, 2, 1, 1]]), torch.tensor([[0, 0, 1, 1]])
    mask = flex_branch_mask(start, block, 3, block)
    rows, keys = torch.meshgrid(torch.arange(4), torch.arange(7), indexing="ij")
    visible = mask.mask_mod(torch.tensor(0), torch.tensor(0), rows, keys)
    assert mask.shape == (1, 1, 4, 7)
    assert torch.equal(visible, branch_mask(start, block, 3, causal=False)[0, 0])


def test_a_window_hides_the_beginning_of_the_text():
    start, block, first = torch.tensor([[2, 2, 1, 1]]), torch.tensor([[0, 0, 1, 1]]), torch.tensor([[1, 2, -1, 0]])
    near = branch_mask(start, block, 3, causal=False, first=first)[0, 0]
    assert near[:, :3].int().tolist() == [[0, 1, 0], [0, 0, 0], [1, 0, 0], [1, 0, 0]]
    assert torch.equal(near[:, 3:], branch_mask(start, block, 3, causal=False)[0, 0, :, 3:])
    rows, keys = torch.meshgrid(torch.arange(4), torch.arange(7), indexing="ij")
    mask = flex_branch_mask(start, block, 3, block, first)
    assert torch.equal(mask.mask_mod(torch.tensor(0), torch.tensor(0), rows, keys), near)


def trace(tokens: int, anchors: list[int], drafts: list[list[int]], accepted: list[int]) -> Trace:
    """Of the text 0, 1, 2, ... with blocks of four drafts."""
    of = torch.tensor(drafts, dtype=torch.long).view(-1, 4)
    return Trace(torch.arange(tokens), 1, torch.tensor(anchors).long(), of, torch.tensor(accepted).long()).check()


def test_tails_are_the_drafts_after_a_first_rejection_and_the_rows_that_verify_the_next_ones():
    """Slots r + 1 to K - 1: the last draft of a block verifies none, and the text verifies the accepted ones."""
    one = trace(9, [2, 4, 7], [[3, 11, 12, 13], [5, 6, 23, 24], [8, 31, 32, 33]], [1, 2, 1])
    tails = Tails(collate([one, trace(4, [1], [[2, 41, 42, 43]], [1])]))
    assert tails.tokens.tolist() == [[11, 12, 23], [41, 42, 0]]
    assert tails.positions.tolist() == [[4, 5, 7], [3, 4, 0]]
    assert tails.block.tolist() == [[0, 0, 1], [0, 0, -1]]
    assert tails.row_of.shape == (2, 3, 4)
    assert (tails.row_of[0, 0, 2:].tolist(), tails.row_of[0, 1, 3:].tolist()) == ([0, 1], [2])
    assert tails.row_of[1, 0, 2:].tolist() == [0, 1]
    assert 0 <= int(tails.row_of.min()) <= int(tails.row_of.max()) < 3  # an index for every draft
    assert Tails(collate([trace(4, [], [], [])])).tokens.shape == (1, 0)
