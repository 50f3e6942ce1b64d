"""Blocks moved from where they were drafted: what is supervised, and what is not."""

import pytest
import torch

from draftopd.decoding.rollout import rollout
from draftopd.decoding.settings import Decoding
from draftopd.drafters.dflash import DFlash
from draftopd.objectives.rows import flatten
from draftopd.target.model import Target
from draftopd.trace import Trace, collate
from draftopd.training.placements import scattered, tiled
from pair import PROMPTS


@pytest.fixture(scope="module")
def traces(target: Target, eager_drafter: DFlash) -> list[Trace]:
    """Rollouts with accepted, rejected and cut blocks."""
    return [r.trace for r in rollout(target, eager_drafter, PROMPTS, Decoding(max_new_tokens=24))]


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def supervised(batch) -> list[tuple[int, int, int]]:
    """(text, position, draft) of every supervised slot."""
    b, n, k = batch.valid.nonzero(as_tuple=True)
    return list(zip(b.tolist(), (batch.anchors[b, n] + k + 1).tolist(), batch.drafts[b, n, k].tolist(), strict=True))


def test_tiles_are_the_trace_of_a_perfect_drafter(traces: list[Trace]):
    batch, width = tiled(traces, draw()), traces[0].drafts.shape[1]
    for b, trace in enumerate(traces):
        blocks = int((batch.drafted[b] > 0).sum())
        anchors = batch.anchors[b, :blocks]
        Trace(trace.tokens, trace.prompt_length, anchors, batch.drafts[b, :blocks], batch.accepted[b, :blocks]).check()
        assert anchors.tolist() == list(range(trace.prompt_length, len(trace.tokens) - 1, width + 1))
    for b, position, draft in supervised(batch):
        assert traces[b].tokens[position] == draft
    assert flatten(batch, None).accepted.all()
    assert batch.target_hidden is None
    assert batch.drafter_step.tolist() == [t.drafter_step for t in traces]


@pytest.mark.parametrize("seed", range(20))
def test_scattered_blocks_keep_their_number_and_lengths_and_do_not_overlap(traces: list[Trace], seed: int):
    batch = scattered(traces, draw(seed))
    assert batch.skipped is not None
    for b, trace in enumerate(traces):
        moved = (batch.skipped[b] == 0) & (batch.drafted[b] == batch.accepted[b]) & (batch.drafted[b] > 0)
        accepted = trace.accepted[trace.accepted > 0]
        assert batch.drafted[b, moved].sort().values.tolist() == accepted.sort().values.tolist()
        pairs = zip(batch.anchors[b, moved].tolist(), batch.drafted[b, moved].tolist(), strict=True)
        places = [a + k for a, n in pairs for k in range(1, n + 1)]
        assert len(places) == len(set(places)) == int(accepted.sum())
        assert all(trace.prompt_length < p < len(trace.tokens) for p in places)
    for (b, position, draft), accepted in zip(supervised(batch), flatten(batch, None).accepted, strict=True):
        assert not accepted or traces[b].tokens[position] == draft


def test_scattered_rejected_drafts_are_the_rollouts_own_and_verified_alike(target: Target, traces: list[Trace]):
    """The same rejected drafts in the same places, with the same opinion of the target, and no other rejected ones."""
    true, moved = target.replay(collate(traces), [1]), target.replay(scattered(traces, draw()), [1])
    kinds = []
    for batch in (true, moved):
        rows = flatten(batch, None)
        at = ~rows.accepted
        kinds.append((rows.slot[at], rows.num_accepted[at], rows.draft[at], batch.target_hidden[batch.valid][at]))  # type: ignore[index]
    for own, other in zip(*kinds, strict=True):
        torch.testing.assert_close(own, other, atol=1e-5, rtol=1e-4)


def test_rows_of_later_slots_stay_in_their_blocks(traces: list[Trace]):
    """A block that is supervised from slot r + 1 on is one block, next to blocks that begin at slot 1."""
    batch = scattered(traces, draw())
    rows = flatten(batch, None)
    assert int(rows.opens.sum()) == int(batch.valid.any(2).sum()) == int(rows.block[-1]) + 1
    assert (rows.slot[rows.opens] > 1).any()
    assert [c.start for c in rows.chunks(1)] == rows.opens.nonzero()[:, 0].tolist()
    ones = torch.ones(len(rows))
    assert torch.equal(rows.prefix_sum(ones)[rows.opens], ones[rows.opens])
    sums = torch.zeros(int(rows.opens.sum())).index_add(0, rows.block, ones)
    assert torch.equal(rows.suffix_sum(ones)[rows.opens], sums)


def test_places_depend_only_on_the_generator(traces: list[Trace]):
    assert torch.equal(scattered(traces, draw()).anchors, scattered(traces, draw()).anchors)
    assert not torch.equal(scattered(traces, draw()).anchors, scattered(traces, draw(1)).anchors)
