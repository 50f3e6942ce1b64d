"""Blocks of texts with unlike numbers of them, in rows of like numbers."""

from collections.abc import Sequence

import pytest
import torch

from draftopd.blocks import ROW, BlockRows, packed
from draftopd.trace import ReplayBatch, Trace, collate


def batch(counts: Sequence[int], ended: Sequence[int] = ()) -> ReplayBatch:
    """Texts with so many blocks; the last block of those in `ended` has no supervised draft."""

    def text(number: int, blocks: int) -> Trace:
        accepted = torch.zeros(blocks).long()
        # a block of the length limit supervises its accepted drafts only: here none
        tokens = torch.arange(blocks + 2 * (number not in ended))
        return Trace(tokens, 1, torch.arange(blocks), torch.zeros(blocks, 3).long(), accepted)

    return collate([text(number, blocks) for number, blocks in enumerate(counts)])


@pytest.mark.parametrize("counts", [(9, 30, 10, 1, 28, 9, 0, 11), (40, 1, 1, 1), (5, 0), (3, 17), (2, 1, 0)])
def test_every_block_lies_in_one_row_of_its_text(counts: tuple[int, ...]):
    given = batch(counts, ended=(0,))
    live = given.drafted > 0
    assert int(live.sum()) == sum(counts) - 1
    rows, most = packed(given).rows, max(counts)
    assert rows is not None
    there = rows < live.numel()
    assert rows[there].tolist() == live.flatten().nonzero()[:, 0].tolist()  # in the texts' order
    for row, some in zip(rows, there, strict=True):
        assert some[0], "every row has a block"
        assert len(set((row[some] // most).tolist())) == 1, "of one text"
    count, width = rows.shape
    assert count * (width + ROW) < len(counts) * (most + ROW)


@pytest.mark.parametrize("counts", [(14,) * 8, (7,), (14, 14, 13, 14), (0, 0)])
def test_texts_with_like_numbers_of_blocks_stay_as_they_are(counts: tuple[int, ...]):
    assert packed(batch(counts)).rows is None


def test_what_is_folded_comes_back():
    given = packed(batch((9, 2, 0, 1)))
    rows = BlockRows(given)
    blocks = torch.arange(1.0, 37).view(4, 9)[..., None]
    folded = rows.fold(blocks)
    assert folded.shape[:2] == given.rows.shape
    texts = rows.texts(torch.arange(4))
    assert texts.tolist() == sorted(texts.tolist())
    assert set(texts.tolist()) == {0, 1, 3}
    assert torch.equal(rows.unfold(folded), torch.where((given.drafted > 0)[..., None], blocks, 0))


def test_texts_that_are_taken_apart_have_rows_of_their_own():
    whole = packed(batch((9, 2, 0, 1)))
    assert [part.rows for part in whole.parts(2)] == [None, None]


def test_gradients_of_texts_do_not_depend_on_the_order_of_threads():
    rows = BlockRows(packed(batch((60, 2, 9, 1))))
    torch.manual_seed(0)
    states = torch.randn(4, 300, 2, 64, requires_grad=True)
    weights = torch.randn(rows.texts(states).shape) * 10.0 ** torch.randint(-3, 4, (rows.texts(states).shape))
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        first, *others = [torch.autograd.grad((rows.texts(states) * weights).sum(), states)[0] for _ in range(8)]
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(first, other) for other in others)
