"""What a drafter is worth on prompts: acceptance from rollouts, speed against plain decoding in the same process."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from draftopd.drafters.base import Drafter
from draftopd.metrics import Acceptance, Speedup
from draftopd.rollout import Decoding, rollout
from draftopd.target import Target
from draftopd.trace import Trace


def roll(
    target: Target,
    drafter: Drafter,
    prompts: Sequence[Sequence[int]],
    decoding: Decoding,
    on_done: Callable[[int], None] = lambda finished: None,
) -> list[Trace]:
    """Traces of the prompts, in order."""
    return [result.trace for result in rollout(target, drafter, prompts, decoding, on_done=on_done)]


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
    keys = {key for values in out.values() for key in values}
    means = {}
    for key in keys:
        present = [values[key] for values in out.values() if key in values]
        means[key] = sum(present) / len(present)
    return {**out, "": means}


def speedup(
    target: Target,
    drafter: Drafter,
    prompts: Sequence[Sequence[int]],
    decoding: Decoding,
    on_done: Callable[[int], None] = lambda finished: None,
) -> dict[str, float]:
    """Speculative against plain decoding one prompt at a time, in turn, so that a drift of the machine hits both.

    Seconds cover whole responses, prefill included; the first prompt is run once before the clock starts.
    """
    alone = replace(decoding, batch_size=1)
    metric = Speedup()
    for i, prompt in enumerate([prompts[0], *prompts]):
        texts, seconds = [], []
        for candidate in (drafter, None):
            start = time.perf_counter()
            texts.append(rollout(target, candidate, [prompt], alone)[0].trace)
            seconds.append(time.perf_counter() - start)
        if i:
            metric.update(texts[0].response_length, seconds[0], texts[1].response_length, seconds[1])
            on_done(1)
    return {name: float(value) for name, value in metric.compute().items()}
