"""Masks and tails of any blocks against their definitions, position by position."""

from itertools import product

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from draftopd.blocks import Tails, block_positions, branch_mask, causal_mask, flex_branch_mask, masked_blocks
from draftopd.trace import collate
from strategies import batches, branches


def visible(start, block, length: int, row: int, key: int, causal: bool) -> bool:
    """A row sees the text strictly before its block's start, and its block: all of it or up to itself."""
    if key < length:
        return key < int(start[row])
    return bool(block[row] == block[key - length]) and (not causal or key - length <= row)


@given(branches(), st.booleans())
def test_a_branch_mask_is_its_definition(rows, causal: bool):
    start, block, length = rows
    mask = branch_mask(start, block, length, causal=causal)
    assert mask.shape == (len(start), 1, start.shape[1], length + start.shape[1])
    for b, row, key in product(range(len(mask)), range(mask.shape[2]), range(mask.shape[3])):
        assert mask[b, 0, row, key] == visible(start[b], block[b], length, row, key, causal)


@settings(max_examples=settings().max_examples // 4)  # torch takes a tenth of a second for such a mask
@given(branches(), st.data())
def test_the_flex_mask_is_its_definition(rows, data):
    start, block, length = rows
    width = data.draw(st.integers(1, 6))
    seen = torch.tensor(data.draw(st.lists(st.integers(0, 3), min_size=width, max_size=width))).expand(len(block), -1)
    mask = flex_branch_mask(start, block, length, seen)
    assert mask.shape == (len(start), 1, start.shape[1], length + width)
    at = torch.meshgrid(*(torch.arange(n) for n in (len(start), start.shape[1], length + width)), indexing="ij")
    got = mask.mask_mod(at[0], torch.tensor(0), at[1], at[2]).tolist()
    for b, row, key in product(*map(range, at[0].shape)):
        own = key >= length and int(seen[b, key - length]) == int(block[b, row])
        assert got[b][row][key] == (own or (key < length and key < int(start[b, row])))


@given(st.lists(st.lists(st.integers(0, 6), min_size=2, max_size=2), min_size=1, max_size=3), st.integers(1, 8))
def test_a_causal_mask_is_its_definition(positions, length: int):
    mask = causal_mask(torch.tensor(positions), length)[:, 0].tolist()
    assert mask == [[[slot <= at for slot in range(length)] for at in row] for row in positions]


@given(st.lists(st.integers(0, 50), min_size=1, max_size=5), st.integers(2, 6))
def test_a_block_is_its_anchor_and_masks_at_the_places_after_it(anchors: list[int], size: int):
    blocks = masked_blocks(torch.tensor([anchors]), size, mask_token_id=99)
    assert blocks.tolist() == [[[anchor] + [99] * (size - 1) for anchor in anchors]]
    assert block_positions(torch.tensor([anchors]), size).tolist() == [[[a + k for k in range(size)] for a in anchors]]


@given(batches())
def test_tails_verify_every_draft_after_a_first_rejection(traces):
    batch = collate(traces)
    tails = Tails(batch)
    wanted = [
        [
            (int(drafts[k - 1]), int(anchor) + k, n, k)
            for n, (anchor, drafts, accepted, drafted) in enumerate(
                zip(trace.anchors, trace.drafts, trace.accepted, trace.drafted, strict=True)
            )
            for k in range(int(accepted) + 1, int(drafted))
        ]
        for trace in traces
    ]
    assert tails.tokens.shape == (len(traces), max(map(len, wanted)))
    for b, rows in enumerate(wanted):
        found = zip(tails.tokens[b].tolist(), tails.positions[b].tolist(), tails.block[b].tolist(), strict=True)
        assert list(found) == [row[:3] for row in rows] + [(0, 0, -1)] * (tails.tokens.shape[1] - len(rows))
        assert [int(tails.row_of[b, n, k]) for _, _, n, k in rows] == list(range(len(rows)))
