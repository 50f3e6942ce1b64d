"""What traces and clocks say about a drafter, each number with its interval over prompts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from draftopd.evaluation import stats
from draftopd.evaluation.measure import Clock
from draftopd.evaluation.stats import Bootstrap
from draftopd.trace import Trace

Scores = dict[str, Bootstrap]


@dataclass(frozen=True)
class Answers:
    """One prompt's responses: one, or one for each turn of a conversation; and their clocks, where it was timed."""

    id: str
    set: str
    traces: list[Trace]
    fast: Clock | None = None
    plain: Clock | None = None

    @property
    def drafted(self) -> list[Trace]:
        """Responses of one token have no block and no acceptance length."""
        return [trace for trace in self.traces if len(trace.anchors)]


def score(answers: Sequence[Answers]) -> dict[str, Scores]:
    """Numbers of each set, and under "mean" the mean over sets.

    `acceptance_length` is the mean over responses, `acceptance_length_pooled` tokens over verifications of all
    responses, `accept_at/k` and `accept_at_given/k` marginal and conditional acceptance (metrics.Acceptance),
    `accepted/k` the share of blocks that accepted k drafts and no more, `speedup` that of whole responses,
    `decode_speedup` without the prefill, both against plain decoding.
    """
    sets: dict[str, list[Answers]] = {}
    for answer in answers:
        sets.setdefault(answer.set, []).append(answer)
    out = {name: _scores(members, seed) for seed, (name, members) in enumerate(sorted(sets.items()))}
    keys = [key for key in next(iter(out.values())) if all(key in scores for scores in out.values())]
    return {**out, "mean": {key: stats.average([scores[key] for scores in out.values()]) for key in keys}}


def _scores(answers: list[Answers], seed: int) -> Scores:
    """Resamples prompts, not responses: the turns of a conversation belong together."""

    def ratio(tops: Sequence[float], bottoms: Sequence[float]) -> Bootstrap:
        return stats.ratio(tops, bottoms, seed)

    drafted = [answer.drafted for answer in answers]
    committed = [sum(int(t.committed.sum()) for t in traces) for traces in drafted]
    out = {
        "acceptance_length": ratio(
            [sum(t.acceptance_length for t in ts) for ts in drafted], [len(ts) for ts in drafted]
        ),
        "acceptance_length_pooled": ratio(committed, [sum(len(t.anchors) for t in traces) for traces in drafted]),
    }
    most = answers[0].traces[0].drafts.shape[1]
    for k in range(1, most + 1):
        counts = [_at(traces, k) for traces in drafted]
        held, judged, reached = ([float(c[i]) for c in counts] for i in range(3))
        out[f"accept_at/{k}"] = ratio(held, judged)
        out[f"accept_at_given/{k}"] = ratio(held, reached)
    histograms = [_histogram(traces, most) for traces in drafted]
    for k in range(most + 1):
        out[f"accepted/{k}"] = ratio([h[k] for h in histograms], [sum(h) for h in histograms])
    timed = [(a.fast, a.plain) for a in answers if a.fast and a.plain]
    if timed:
        for name, first, field in (("", 0, "seconds"), ("decode_", 1, "decode_seconds")):
            sides = []
            for side in range(2):
                tokens = [pair[side].tokens - first for pair in timed]
                sides.append(ratio(tokens, [getattr(pair[side], field) for pair in timed]))
            out[f"{name}tokens_per_second"], out[f"{name}tokens_per_second_plain"] = sides
            out[f"{name}speedup"] = sides[0] / sides[1]
    return out


def _at(traces: Sequence[Trace], k: int) -> tuple[int, int, int]:
    """Blocks whose first k drafts held; that drafted k; that drafted k and whose first k - 1 held."""
    if not traces:
        return 0, 0, 0
    accepted = torch.cat([t.accepted for t in traces])
    drafted = torch.cat([t.drafted for t in traces])
    judged = drafted >= k
    return int((accepted >= k).sum()), int(judged.sum()), int((judged & (accepted >= k - 1)).sum())


def _histogram(traces: Sequence[Trace], most: int) -> list[int]:
    """[K + 1] blocks that accepted 0, 1, ... K drafts; a last block that the response's end cut is left out."""
    counts = torch.zeros(most + 1, dtype=torch.long)
    for trace in traces:
        counts += torch.bincount(trace.accepted[trace.drafted == most], minlength=most + 1)
    return counts.tolist()


def compare(scores: Mapping[str, Scores], against: Mapping[str, Scores]) -> dict[str, Scores]:
    """Differences of two drafters on the same prompts, paired; speeds as quotients."""
    out: dict[str, Scores] = {}
    for name, values in scores.items():
        common = {key: value for key, value in values.items() if key in against[name]}
        out[name] = {
            key: value / against[name][key] if "speedup" in key or "per_second" in key else value - against[name][key]
            for key, value in common.items()
        }
    return out
