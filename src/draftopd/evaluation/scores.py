"""What a drafter's answers say about it, each number with its interval over prompts."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from draftopd.evaluation import stats
from draftopd.evaluation.measure import Clock
from draftopd.evaluation.metrics import Counts, add
from draftopd.evaluation.stats import Bootstrap

Scores = dict[str, Bootstrap]
Sets = dict[str, Scores]
"""scores of each set of prompts, and under "mean" the mean over sets"""


@dataclass(frozen=True)
class Answer:
    """One prompt's responses: one, or one for each turn of a conversation; and their clocks, where it was timed."""

    id: str
    set: str
    digest: str
    """of the prompt's token ids: an id may name another question under another seed"""
    responses: list[Counts]
    speculative: Clock | None = None
    plain: Clock | None = None

    @classmethod
    def read(cls, saved: Mapping[str, Any]) -> "Answer":
        """From a results file."""
        clocks = {name: saved[name] and Clock(**saved[name]) for name in ("speculative", "plain")}
        return cls(
            saved["id"], saved["set"], saved["digest"], [Counts.read(counts) for counts in saved["responses"]], **clocks
        )


def score(answers: Sequence[Answer]) -> Sets:
    """Acceptance (metrics.Counts) and speed: numbers of each set of prompts, and under "mean" the mean over sets.

    `speedup` is that of whole responses, `decode_speedup` without the prefill, both in tokens per second against plain
    decoding of the same prompts.
    """
    sets: dict[str, list[Answer]] = {}
    for answer in answers:
        sets.setdefault(answer.set, []).append(answer)
    out = {name: _acceptance(of, seed) | _speed(of, seed) for seed, (name, of) in enumerate(sorted(sets.items()))}
    keys = dict.fromkeys(key for scores in out.values() for key in scores)  # not every set need be timed
    return {
        **out,
        "mean": {key: stats.average([scores[key] for scores in out.values() if key in scores]) for key in keys},
    }


def same_prompts(answers: Sequence[Answer], others: Sequence[Answer]) -> bool:
    """They can be compared prompt by prompt."""
    return [(a.set, a.id, a.digest) for a in answers] == [(b.set, b.id, b.digest) for b in others]


def _acceptance(answers: Sequence[Answer], seed: int) -> Scores:
    """Resamples prompts, not responses: the turns of a conversation belong together."""
    sums = [add(answer.responses) for answer in answers]
    return {key: stats.ratio([s[key][0] for s in sums], [s[key][1] for s in sums], seed) for key in sums[0]}


def _speed(answers: Sequence[Answer], seed: int) -> Scores:
    timed = [(a.speculative, a.plain) for a in answers if a.speculative and a.plain]
    out: Scores = {}
    for name, first, field in (("", 0, "seconds"), ("decode_", 1, "decode_seconds")) if timed else ():
        sides = []
        for side in range(2):
            tokens = [pair[side].tokens - first for pair in timed]
            sides.append(stats.ratio(tokens, [getattr(pair[side], field) for pair in timed], seed))
        out[f"{name}tokens_per_second"], out[f"{name}tokens_per_second_plain"] = sides
        out[f"{name}speedup"] = sides[0] / sides[1]
    return out


def compare(scores: Sets, against: Sets) -> Sets:
    """Differences of two drafters on the same prompts, paired; speeds as quotients."""
    out: Sets = {}
    for name, values in scores.items():
        common = {key: value for key, value in values.items() if key in against[name]}
        out[name] = {k: v / against[name][k] if is_speed(k) else v - against[name][k] for k, v in common.items()}
    return out


def is_speed(key: str) -> bool:
    """Speeds are compared as quotients, whose null is 1."""
    return "speedup" in key or "per_second" in key


def numbers(sets: Sets, *parts: str) -> dict[str, dict[str, dict[str, float]]]:
    """Estimates by set and key, each cut to these parts (stats.Estimate): what results files hold."""

    def number(key: str, value: Bootstrap) -> dict[str, float]:
        estimate = asdict(value.estimate(1.0 if is_speed(key) else 0.0))
        return {part: estimate[part] for part in parts}

    return {name: {key: number(key, value) for key, value in values.items()} for name, values in sets.items()}


def metrics(sets: Sets) -> dict[str, float]:
    """For MLflow: `test/...` the mean over sets, `test/<set>/...` each set; τ and speedup with their intervals."""
    out: dict[str, float] = {}
    for name, values in numbers(sets, "mean", "low", "high").items():
        prefix = "test/" if name == "mean" else f"test/{name}/"
        for key, e in values.items():
            ends = {"_low": e["low"], "_high": e["high"]} if key in ("acceptance_length", "speedup") else {}
            out |= {prefix + key + end: v for end, v in {"": e["mean"], **ends}.items() if v == v}
    return out
