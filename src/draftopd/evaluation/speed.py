"""How fast a drafter should be: from measured costs of drafting and verifying, and measured acceptance by position.

With block size W = K + 1, a step costs t(W) + t_draft(W) and commits tau(W) = 1 + sum_{k<W} a_k tokens, where a_k is
the share of blocks whose first k drafts held (arXiv 2211.17192, section 3.3, with measured instead of constant
acceptance). Plain decoding costs t(1) a token:

    speedup(W) = tau(W) * t(1) / (t(W) + t_draft(W))
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from typing import Any

import torch

from draftopd.decoding.acceptance import accept
from draftopd.decoding.cuts import Cuts, chance
from draftopd.decoding.ledger import Ledger
from draftopd.decoding.rollout import rollout
from draftopd.decoding.sampling import Places, Proposal
from draftopd.decoding.settings import Decoding
from draftopd.drafters.base import Drafter
from draftopd.errors import DraftError
from draftopd.evaluation.measure import Done, clocks, nothing
from draftopd.evaluation.metrics import Acceptance
from draftopd.target.cache import RaggedCache
from draftopd.target.model import Target
from draftopd.trace import Trace

Clock = Callable[[], float]
"""seconds"""


@dataclass(frozen=True)
class Costs:
    """Median seconds of one step after `length` committed tokens, by block size W."""

    length: int
    verify: dict[int, float]
    """target forward of W tokens, head and accept rule; W = 1 is a step of plain decoding"""
    draft: dict[int, float]
    """drafting W - 1 tokens and taking in the features of W"""

    def step(self, block_size: int) -> float:
        return self.verify[block_size] + self.draft[block_size]

    @classmethod
    def read(cls, saved: Mapping[str, Any]) -> "Costs":
        """From a results file, where the keys are text."""
        tables = ({int(size): seconds for size, seconds in saved[name].items()} for name in ("verify", "draft"))
        return cls(saved["length"], *tables)


@torch.no_grad()
def costs(
    target: Target,
    drafter: Drafter,
    text: Sequence[int],
    block_sizes: Sequence[int],
    decoding: Decoding | None = None,
    repeats: int = 15,
    on_done: Done = nothing,
    *,
    rows: int = 1,
    clock: Clock = time.perf_counter,
) -> Costs:
    """Times single steps of a batch after a text; block sizes take turns.

    A step of the same kind runs just before each that is timed, as it does in decoding: one row and several may read
    the target's weights in two layouts, and a processor's caches do not hold both.

    Args:
        text: token ids, e.g. a prompt with half of a response.
        rows: of the batch, all with this text.
        clock: on a busy machine, with one thread, time.process_time tells what a step takes without the waiting.
    """
    bench = _Bench(target, drafter, [list(text)] * rows, decoding or Decoding(), max(block_sizes))
    verify: dict[int, list[float]] = {size: [] for size in (1, *block_sizes)}
    draft: dict[int, list[float]] = {size: [] for size in block_sizes}
    for turn in range(repeats + 1):  # the first turn warms up
        for size in verify:
            bench.verify(size)
            if size in draft:
                seconds = _seconds(partial(bench.draft, size), target, clock)
                draft[size] += [seconds] if turn else []
            seconds = _seconds(partial(bench.verify, size), target, clock)
            verify[size] += [seconds] if turn else []
        on_done(1 if turn else 0)
    medians = ({size: median(values) for size, values in table.items()} for table in (verify, draft))
    return Costs(len(text), *medians)


class _Bench:
    """Single steps of decoding after a text, without committing anything."""

    def __init__(
        self, target: Target, drafter: Drafter, texts: list[list[int]], decoding: Decoding, longest: int
    ) -> None:
        self.target, self.drafter, self.decoding = target, drafter, decoding
        tokens = torch.tensor(texts, device=target.device)
        rows, length = tokens.shape
        self.cache = RaggedCache(rows, length + longest, target.device)
        _, features = target.step(tokens, self.cache, drafter.layer_ids)
        self.state = drafter.start(rows, length + longest, target.device)
        drafter.extend(self.state, features, tokens.roll(-1, 1), target.embed)
        self.cache.lengths = self.state.lengths = torch.full_like(tokens[:, 0], length)
        self.last, self.features = tokens[:, -1], features[:, -1:].repeat(1, longest, 1)
        self.head, self.draft_head = target.head(), drafter.head(target.head)
        self.places = Places(decoding, torch.zeros_like(self.last), self.cache.lengths)

    def verify(self, size: int) -> None:
        block = self.last[:, None].expand(-1, size)
        taps = self.drafter.layer_ids if size > 1 else ()
        hidden, _ = self.target.step(block, self.cache, taps)
        accept(block[:, 1:], self.head(hidden), self.places)

    def draft(self, size: int) -> None:
        with self.drafter.blocks_of(size):
            proposal = Proposal(self.places)
            self.drafter.draft(self.state, self.last, self.target.embed, self.draft_head, proposal)
            following = self.last[:, None].expand(-1, size)
            self.drafter.extend(self.state, self.features[:, :size], following, self.target.embed)


def _seconds(call: Callable[[], None], target: Target, clock: Clock) -> float:
    _wait(target)
    start = clock()
    call()
    _wait(target)
    return clock() - start


def _wait(target: Target) -> None:
    if target.device.type == "cuda":
        torch.cuda.synchronize(target.device)


def _drafted(target: Target, drafter: Drafter, prompts: Sequence[Sequence[int]], decoding: Decoding) -> list[Trace]:
    traces = [result.trace for result in rollout(target, drafter, prompts, decoding)]
    if not any(len(trace.anchors) for trace in traces):
        raise DraftError("each of the timed answers is a single token, so nothing is drafted: set speed.prompts=0")
    return traces


def _typical(traces: Sequence[Trace]) -> list[int]:
    """The prompt of medium length, with half of its response."""
    half = [trace.tokens[: trace.prompt_length + trace.response_length // 2].tolist() for trace in traces]
    return sorted(half, key=len)[len(half) // 2]


def _accept_at(traces: Sequence[Trace]) -> list[float]:
    """[K] of whole blocks; a position that no block drafted before its text ended has no share."""
    width = traces[0].drafts.shape[1]
    metric = Acceptance(width)
    metric.update(traces)
    values = metric.compute()
    return [float(values[key]) if (key := f"accept_at/{k}") in values else 0.0 for k in range(1, width + 1)]


def predict(costs: Costs, accept_at: Sequence[float]) -> dict[int, float]:
    """Speedup of decoding (prefill aside) for every block size up to the one that `accept_at` [K] was measured with."""
    out = {}
    for size in costs.draft:
        if size <= len(accept_at) + 1:
            out[size] = (1 + sum(accept_at[: size - 1])) * costs.verify[1] / costs.step(size)
    return out


@dataclass(frozen=True)
class BlockSize:
    """What the model says of one block size, and what was measured."""

    block_size: int
    predicted: float
    """speedup from the acceptance of the drafter's own block size"""
    acceptance_length: float
    """pooled, measured at this block size"""
    model: float
    """speedup from that acceptance length"""
    measured: float
    """speedup of decoding, prefill aside"""

    @classmethod
    def read(cls, saved: Mapping[str, Any]) -> "BlockSize":
        """From a results file, which has null for NaN."""
        known: dict[str, Any] = {name: float("nan") if value is None else value for name, value in saved.items()}
        return cls(**known)


def table(
    target: Target,
    drafter: Drafter,
    prompts: Sequence[Sequence[int]],
    decoding: Decoding,
    block_sizes: Sequence[int],
    on_done: Done = nothing,
) -> tuple[Costs, list[BlockSize]]:
    """The model beside measurements; all block sizes and plain decoding take turns in every prompt.

    Raises:
        DraftError: nothing was drafted.
    """
    traces = _drafted(target, drafter, prompts, decoding)
    known = costs(target, drafter, _typical(traces), block_sizes, decoding)
    predicted = predict(known, _accept_at(traces))
    rows = []
    subjects = [*[drafter] * len(block_sizes), None]
    turns = clocks(target, subjects, prompts, decoding, on_done, [*block_sizes, None])
    *speculative, plain = ([turn[i] for turn in turns] for i in range(len(subjects)))
    for size, fast in zip(block_sizes, speculative, strict=True):
        length = sum(c.tokens - 1 for c in fast) / sum(c.blocks for c in fast)
        seconds = [sum(c.decode_seconds for c in side) / sum(c.tokens - 1 for c in side) for side in (fast, plain)]
        model = length * known.verify[1] / known.step(size)
        rows.append(BlockSize(size, predicted.get(size, float("nan")), length, model, seconds[1] / seconds[0]))
    return known, rows


def fit_cuts(
    target: Target,
    drafter: Drafter,
    prompts: Sequence[Sequence[int]],
    decoding: Decoding,
    *,
    rows: int = 1,
    repeats: int = 15,
    clock: Clock = time.perf_counter,
) -> Cuts:
    """Where blocks are to end in batches of so many rows: costs and chances, measured on prompts that test nothing.

    Raises:
        DraftError: nothing was drafted.
    """
    traces = _drafted(target, drafter, prompts, decoding)
    sizes = range(2, drafter.block_size + 1)
    known = costs(target, drafter, _typical(traces), sizes, decoding, repeats, rows=rows, clock=clock)
    found = chance(target, drafter, traces)
    return Cuts.of(found, list(known.verify.values()), list(known.draft.values()), _accept_at(traces))


@dataclass(frozen=True)
class Cut:
    """Decoding of one batch size, with whole blocks or with blocks that are cut."""

    batch_size: int
    cut: bool
    acceptance_length: float
    """pooled"""
    verified_tokens: float
    """of a response in a step, the anchor included"""
    tokens_per_second: float
    """of decoding, prefill aside, median over rounds"""


def cut_table(
    target: Target,
    drafter: Drafter,
    fitting: Sequence[Sequence[int]],
    prompts: Sequence[Sequence[int]],
    decoding: Decoding,
    batch_sizes: Sequence[int] = (1, 8),
    rounds: int = 3,
) -> list[Cut]:
    """Whole blocks beside blocks that are cut; they take turns, round by round.

    Args:
        fitting: prompts on which costs and chances are measured.
    """
    out = []
    for rows in batch_sizes:
        of = replace(decoding, batch_size=rows)
        choices = (None, fit_cuts(target, drafter, fitting, of, rows=rows))
        rates: dict[bool, list[float]] = {False: [], True: []}
        for _ in range(rounds):
            for cuts in choices:
                ledger = Ledger()
                traces = [r.trace for r in rollout(target, drafter, prompts, of, ledger=ledger, cuts=cuts)]
                tokens, steps = sum(t.response_length - 1 for t in traces), sum(len(t.anchors) for t in traces)
                sent = sum(int(t.sent.sum()) for t in traces)
                rates[cuts is not None].append(tokens / ledger.seconds["decode"])
                if len(rates[cuts is not None]) == rounds:
                    speed = median(rates[cuts is not None])
                    out.append(Cut(rows, cuts is not None, tokens / steps, 1 + sent / steps, speed))
    return out
