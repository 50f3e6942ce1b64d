"""Rollouts are lossless and record what happened."""

from dataclasses import replace
from typing import ClassVar

import pytest
import torch

from draftopd.decoding.batch import DecodingBatch, RolloutOptions
from draftopd.decoding.ledger import Ledger
from draftopd.decoding.rollout import affordable_rows, decode, rollout
from draftopd.decoding.settings import Decoding
from draftopd.drafters.base import Drafter
from draftopd.drafters.dflash import DFlash
from draftopd.drafters.eagle3 import Eagle3
from draftopd.target.cache import RaggedCache
from draftopd.target.model import Target
from draftopd.trace import collate
from pair import PROMPTS


def texts(results) -> list[list[int]]:
    return [r.trace.tokens.tolist() for r in results]


@pytest.mark.parametrize("batch_size", [1, 2, 5])
@pytest.mark.parametrize("limit", [1, 2, 7, 24])
def test_speculative_text_equals_plain_text(target: Target, eager_drafter: DFlash, batch_size: int, limit: int):
    decoding = Decoding(max_new_tokens=limit, batch_size=batch_size)
    plain, speculative = (rollout(target, d, PROMPTS, decoding) for d in (None, eager_drafter))
    assert texts(speculative) == texts(plain)
    for result in speculative:
        assert 1 <= result.trace.check().response_length <= limit


def test_the_batch_size_changes_neither_texts_nor_traces(target: Target, eager_drafter: DFlash):
    one, many = (rollout(target, eager_drafter, PROMPTS, Decoding(24, batch_size)) for batch_size in (1, 4))
    for a, b in zip(one, many, strict=True):
        assert torch.equal(a.trace.anchors, b.trace.anchors)
        assert torch.equal(a.trace.drafts, b.trace.drafts)
        assert torch.equal(a.trace.accepted, b.trace.accepted)


def test_a_stop_token_inside_a_block_ends_the_response_there(target: Target, eager_drafter: DFlash):
    plain = rollout(target, None, PROMPTS, Decoding(24))[0].trace
    stop = plain.tokens[plain.prompt_length + 6]
    first = plain.prompt_length + plain.tokens[plain.prompt_length :].tolist().index(int(stop))
    before = target.stop_tokens
    target.__dict__["stop_tokens"] = stop[None]
    try:
        trace = rollout(target, eager_drafter, PROMPTS, Decoding(24))[0].trace.check()
    finally:
        target.__dict__["stop_tokens"] = before
    assert trace.tokens.tolist() == plain.tokens[: first + 1].tolist()


def test_the_targets_row_at_the_first_rejection_holds_the_bonus_token(target: Target, eager_drafter: DFlash):
    trace = rollout(target, eager_drafter, PROMPTS[:1], Decoding(24))[0].trace
    batch = target.replay(collate([trace]), eager_drafter.layer_ids)
    choices = target.head()(batch.target_hidden[0]).argmax(-1)
    rejected = trace.accepted < trace.drafted
    assert rejected.any()
    for n in rejected.nonzero()[:, 0].tolist():
        bonus = trace.tokens[trace.anchors[n] + trace.accepted[n] + 1]
        assert choices[n, trace.accepted[n]] == bonus


@pytest.mark.parametrize("limit", [5, 6, 7, 8, 9])
def test_idle_rows_stay_inside_the_cache_while_prompts_wait(target: Target, eager_drafter: DFlash, limit: int):
    """More prompts than rows, all of the longest length: finished rows idle until enough of them are free."""
    prompts = [[5 + (i * 7 + j * 3) % 80 for j in range(9)] for i in range(20)] + [PROMPTS[3]] * 20
    decoding = Decoding(max_new_tokens=limit, batch_size=16)
    results = rollout(target, eager_drafter, prompts, decoding, keep_states=True)
    assert texts(results) == texts(rollout(target, None, prompts, decoding))
    batch = collate([r.trace for r in results], [r.features for r in results], [r.target_hidden for r in results])
    again = target.replay(batch, eager_drafter.layer_ids)
    torch.testing.assert_close(batch.target_hidden[batch.valid], again.target_hidden[batch.valid], atol=1e-4, rtol=1e-3)


class Watched(DecodingBatch):
    """Records its rows, the bytes that it holds, and the bytes that reading prompts adds, at every step."""

    seen: ClassVar[list[tuple[int, int, int]]] = []

    def _prefill(self, tokens: torch.Tensor) -> tuple[RaggedCache, torch.Tensor, torch.Tensor]:
        result = super()._prefill(tokens)
        self.note(stored(result[0]))
        return result

    def step(self) -> None:
        super().step()
        self.note(0)

    def note(self, joining: int) -> None:
        assert self.state is not None
        hidden = sum(h.nbytes for row in self.rows if row is not None for h in row.hidden)
        features = 0 if self.features is None else self.features.nbytes
        self.seen.append((len(self.rows), stored(self.cache) + stored(self.state) + features + hidden, joining))


def stored(cache: RaggedCache) -> int:
    return sum(store.nbytes for stores in cache.stores.values() for store in stores)


@pytest.mark.parametrize("rows", [pytest.param(1, marks=pytest.mark.slow), 3])
@pytest.mark.parametrize("kind", ["dflash", pytest.param("eagle3", marks=pytest.mark.slow)])
def test_rows_and_what_they_hold_stay_within_memory_gib(
    target: Target, eager_drafter: DFlash, eager_eagle: Eagle3, kind: str, rows: int
):
    drafter: Drafter = {"dflash": eager_drafter, "eagle3": eager_eagle}[kind]
    prompts, limit = PROMPTS * 3, 24
    capacity = max(map(len, prompts)) + limit + drafter.num_draft_tokens + 1
    wide = Decoding(limit, batch_size=10**6, memory_gib=1.0)
    options = RolloutOptions(True, drafter.layer_ids, None, 0, Ledger(), lambda finished: None, torch.Tensor.cpu)

    def affordable(decoding: Decoding) -> int:
        states = len(options.layer_ids) + drafter.num_draft_tokens
        prompt = max(map(len, prompts))
        return affordable_rows(target, drafter, decoding, capacity=capacity, prompt=prompt, states=states)

    bound = 1.01 * rows / affordable(wide)
    assert affordable(replace(wide, memory_gib=bound)) == rows
    assert affordable(replace(wide, batch_size=2, memory_gib=1.0)) == 2
    Watched.seen.clear()
    results = decode(Watched, target, drafter, prompts, replace(wide, memory_gib=bound), options)
    assert texts(results) == texts(rollout(target, drafter, prompts, Decoding(limit, batch_size=5)))
    assert max(seen[0] for seen in Watched.seen) == rows
    assert 0.3 * bound < max(seen[1] for seen in Watched.seen) / 2**30 <= bound
    position = 2 * 4 * target.shape.num_layers * target.shape.num_key_value_heads * target.shape.head_dim
    assert max(seen[2] for seen in Watched.seen) == rows * max(map(len, prompts)) * position  # and no longer


def test_modes_are_restored(target: Target, drafter: DFlash):
    drafter.train()
    rollout(target, drafter, PROMPTS[:1], Decoding(4))
    assert drafter.training
    assert not target.model.training
    assert torch.is_grad_enabled()
