"""The expected number of verifications against literal enumerations and against the chain of greedy drafts."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from draftopd.errors import DraftError
from draftopd.objectives.rounds import DecodingRounds, expected_rounds
from draftopd.objectives.rows import Rows, flatten
from draftopd.trace import Trace, text_blocks

VOCABULARY, SLOTS = 4, 3


def enumerated(q: list[list[float]], at: int, length: int) -> float:
    """Verifications from position `at` on, by every outcome of every block."""
    if at >= length:
        return 0.0
    rounds, chance = 1.0, 1.0
    for k, accept in enumerate([*q[at], 0.0]):
        rounds += chance * (1 - accept) * enumerated(q, at + k + 1, length)
        chance *= accept
    return rounds


def text(length: int, seed: int = 0) -> Trace:
    """A prompt of two tokens and a response of one token and `length` more."""
    nothing = torch.zeros(0, dtype=torch.long)
    tokens = torch.randint(0, VOCABULARY, (length + 3,), generator=torch.Generator().manual_seed(seed))
    return Trace(tokens, 2, nothing, nothing[:, None].expand(0, SLOTS), nothing)


def rows_of(texts: list[Trace], anchors: list[Tensor]) -> Rows:
    return flatten(text_blocks(texts, anchors, SLOTS), None)


def everywhere(trace: Trace) -> Tensor:
    return torch.arange(trace.prompt_length, len(trace.tokens) - 1)


def test_a_block_at_every_position_is_exact():
    trace = text(6)
    rows = rows_of([trace], [everywhere(trace)])
    logits = torch.randn(len(rows), VOCABULARY, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    chance = logits.softmax(-1).gather(1, rows.text[:, None])[:, 0]
    q = [chance[rows.block == block].tolist() for block in range(6)]
    (got,) = DecodingRounds().numerators(logits, None, rows).values()
    assert got[0].item() == pytest.approx(enumerated(q, 0, 6) / 6)
    assert not got[1:].any()


def test_a_token_that_the_head_lacks_is_never_accepted():
    trace = text(5)
    rows = rows_of([trace], [everywhere(trace)])
    rows.text[:] = -1
    (got,) = DecodingRounds().numerators(torch.randn(len(rows), VOCABULARY), None, rows).values()
    assert got[0].item() == pytest.approx(1)


@pytest.mark.parametrize("seed", range(4))
def test_certain_drafts_take_as_many_rounds_as_greedy_decoding(seed: int):
    trace = text(17, seed)
    draw = torch.Generator().manual_seed(seed)
    index = everywhere(trace)[:, None] + torch.arange(1, SLOTS + 1)
    right = trace.tokens[index.clamp(max=len(trace.tokens) - 1)]
    drafts = torch.where(torch.rand(right.shape, generator=draw) < 0.7, right, (right + 1) % VOCABULARY)
    batch = text_blocks([trace], [everywhere(trace)], SLOTS)
    logits = 1e3 * torch.nn.functional.one_hot(drafts[None][batch.valid], VOCABULARY).float()
    (got,) = DecodingRounds().numerators(logits, None, flatten(batch, None)).values()
    accepted = (drafts == right).long().cumprod(1).sum(1)
    place, rounds = 0, 0
    while place < 17:
        place, rounds = place + int(accepted[place]) + 1, rounds + 1
    assert round(got[0].item() * 17, 4) == rounds


def test_texts_weigh_the_same_and_sampled_blocks_stand_for_the_positions_after_them():
    texts = [text(9), text(4)]
    rows = rows_of(texts, [torch.tensor([2, 5, 6]), torch.tensor([3])])
    logits = torch.randn(len(rows), VOCABULARY, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    chance = logits.softmax(-1).gather(1, rows.text[:, None])[:, 0]
    a, b, c, d = (chance[rows.block == block].tolist() for block in range(4))
    objective = DecodingRounds()
    (got,), (texts_seen,) = objective.numerators(logits, None, rows).values(), objective.denominators(rows).values()
    expected = [enumerated([a, a, a, b, c, c, c, c, c], 0, 9) / 9, enumerated([d, d, d], 0, 3) / 3]
    assert got[texts_seen.bool()].tolist() == pytest.approx(expected)
    assert texts_seen.sum() == 2
    parts = [objective.numerators(logits[part], None, rows[part]) for part in rows.chunks(1, whole_texts=True)]
    torch.testing.assert_close(torch.cat([part["decoding_rounds"] for part in parts]), got)


def test_the_gradient_is_that_of_finite_differences():
    q = torch.rand(5, SLOTS, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    q[1, 1] = 0
    offsets = torch.tensor([0, 1, 2, 5, 6])
    assert torch.autograd.gradcheck(lambda q: expected_rounds(q, offsets, 8), q.requires_grad_())


def test_reached_only_takes_later_slots_for_rejected():
    trace = text(6)
    batch = text_blocks([trace], [everywhere(trace)], SLOTS)
    rows = flatten(replace(batch, accepted=batch.accepted * (batch.anchors > 2)), None)
    (got,) = DecodingRounds(reached_only=True).numerators(torch.zeros(len(rows), VOCABULARY), None, rows).values()
    q = [[0.25] + [0.0] * 2, *([0.25] * min(SLOTS, 6 - at) for at in range(1, 6))]
    assert got[0].item() == pytest.approx(enumerated(q, 0, 6) / 6)


def test_blocks_out_of_order_or_cut_at_their_start_are_refused():
    trace = text(6)
    for anchors in ([4, 3], [3, 3]):
        rows = rows_of([trace], [torch.tensor(anchors)])
        with pytest.raises(DraftError, match="order of the text"):
            DecodingRounds().numerators(torch.zeros(len(rows), VOCABULARY), None, rows)
    batch = text_blocks([trace], [torch.tensor([3, 4])], SLOTS)
    batch.skipped = torch.ones_like(batch.accepted)
    with pytest.raises(DraftError, match="order of the text"):
        DecodingRounds().numerators(torch.zeros(4, VOCABULARY), None, flatten(batch, None))


def test_a_single_token_takes_one_round():
    rows = rows_of([text(1), text(1)], [torch.tensor([2])] * 2)
    (got,) = DecodingRounds().numerators(torch.randn(2, VOCABULARY), None, rows).values()
    assert got.tolist() == [1, 1]


def test_a_batch_without_blocks_has_a_gradient_of_zeros():
    rows = rows_of([text(3)], [torch.tensor([3])])[:0]
    logits = torch.zeros(0, VOCABULARY, requires_grad=True)
    (got,) = DecodingRounds().numerators(logits, None, rows).values()
    assert torch.autograd.grad(got.sum(), logits)[0].shape == (0, VOCABULARY)
