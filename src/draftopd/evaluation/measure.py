"""What a drafter is worth on prompts: acceptance from rollouts, speed against plain decoding in the same process."""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace

from draftopd.decoding import distributed
from draftopd.decoding.ledger import Ledger
from draftopd.decoding.redraft import redraft
from draftopd.decoding.rollout import rollout
from draftopd.decoding.settings import Decoding
from draftopd.drafters.base import Drafter
from draftopd.evaluation.metrics import Acceptance
from draftopd.target.model import Target
from draftopd.trace import Rollout, Trace

Done = Callable[[int], None]


def nothing(finished: int) -> None:
    pass


def roll(
    target: Target,
    drafter: Drafter,
    prompts: Sequence[Sequence[int]],
    decoding: Decoding,
    on_done: Done = nothing,
) -> list[Trace]:
    """Traces of the prompts, in order; processes share the prompts and all return all traces."""
    mine, keys = distributed.own(prompts), distributed.own(range(len(prompts)))
    with distributed.whole(drafter):
        results = rollout(target, drafter, mine, decoding, keys=keys, on_done=on_done)
    return distributed.gather([result.trace for result in results])


def redrafted(
    target: Target, drafter: Drafter, texts: Sequence[Rollout], decoding: Decoding, on_done: Done = nothing
) -> list[Trace]:
    """Traces along texts that the target has written under `decoding`: those of `roll`, without its verifications.

    Equal up to the precision of stored features. Raises DraftError where drafts would be sampled.
    """
    with distributed.whole(drafter):
        results = redraft(target, drafter, distributed.own(texts), decoding, on_done=on_done)
    return distributed.gather([result.trace for result in results])


def by_set(traces: Sequence[Trace], sets: Sequence[str]) -> dict[str, dict[str, float]]:
    """Acceptance metrics of each set of prompts, and under "" the mean over sets."""
    groups: dict[str, list[Trace]] = {}
    for trace, name in zip(traces, sets, strict=True):
        groups.setdefault(name, []).append(trace)
    out: dict[str, dict[str, float]] = {}
    for name, members in groups.items():
        metric = Acceptance(members[0].drafts.shape[1])
        metric.update(members)
        out[name] = {key: float(value) for key, value in metric.compute().items()}
    # in the order of their first appearance: processes log them one by one, and a set has another order in each
    keys = dict.fromkeys(key for values in out.values() for key in values)
    means = {}
    for key in keys:
        present = [values[key] for values in out.values() if key in values]
        means[key] = sum(present) / len(present)
    return {**out, "": means}


@dataclass(frozen=True)
class Clock:
    """One response's tokens and seconds. The first token is the prefill's; `decode_seconds` leave the prefill out."""

    tokens: int
    blocks: int
    seconds: float
    decode_seconds: float


def clock(
    target: Target,
    drafter: Drafter | None,
    prompt: Sequence[int],
    decoding: Decoding,
    key: int,
    block_size: int | None = None,
) -> Clock:
    """Times one response; `key` chooses its random numbers, so that all who are compared write the same text."""
    with drafter.blocks_of(block_size) if drafter and block_size else nullcontext():
        ledger, start = Ledger(), time.perf_counter()
        (result,) = rollout(target, drafter, [prompt], replace(decoding, batch_size=1), keys=[key], ledger=ledger)
        seconds = time.perf_counter() - start
    return Clock(result.trace.response_length, len(result.trace.anchors), seconds, ledger.seconds["decode"])


def clocks(
    target: Target,
    drafters: Sequence[Drafter | None],
    prompts: Sequence[Sequence[int]],
    decoding: Decoding,
    on_done: Done = nothing,
    block_sizes: Sequence[int | None] | None = None,
) -> list[list[Clock]]:
    """For each prompt, each drafter's clock (None = plain decoding), one prompt at a time, whole responses.

    Drafters take turns in every prompt, so that a drift of the machine hits all; the first prompt is run once before.
    Of several processes the first one times, and the others get empty lists.

    Args:
        block_sizes: one per drafter; None = their own.
    """
    subjects = list(zip(drafters, block_sizes or [None] * len(drafters), strict=True))
    results: list[list[Clock]] = []
    with ExitStack() as whole:
        for drafter in {id(d): d for d in drafters if d is not None}.values():
            whole.enter_context(distributed.whole(drafter))
        for i, prompt in enumerate([*prompts[:1], *prompts]):
            key, turn = max(0, i - 1), []
            if distributed.rank() == 0:
                turn = [clock(target, drafter, prompt, decoding, key, size) for drafter, size in subjects]
            distributed.wait()  # prompt by prompt, because a process that waits long for another gives up
            if i:
                results.append(turn)
                on_done(1)
    return results
