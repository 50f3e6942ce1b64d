"""The numbers of a result that matter most: for tables, and the first charts of a tracked run."""

from draftopd.evaluation.results import Result, Results
from draftopd.evaluation.scores import compare, same_prompts
from draftopd.evaluation.stats import Bootstrap
from draftopd.tracking.pages import PFLOPS, SPEEDUP, TAU, TAU_DELTA


def gain(result: Result, results: Results) -> Bootstrap | None:
    """τ less the start's, paired over prompts; None where there is no start, or it was tested on other prompts."""
    start = next((r for r in results.results if r.answers and r.name == result.start), None)
    if start is None or not same_prompts(result.answers, start.answers):
        return None
    return compare(result.scores, start.scores)["mean"]["acceptance_length"]


def flops(result: Result, results: Results) -> float | None:
    """Of a result's training and of all that it started from; None = not known."""
    training = result.training
    if training is None:  # the start of others
        starts = [r.training for r in results.results if r.training and r.training.start == result.name]
        return starts[0].before if starts else None
    if training.before is not None or training.start is None:
        return training.flops + (training.before or 0.0)
    start = next((r for r in results.results if r.name == training.start), None)  # of an older version
    before = None if start is None or start.training is None else flops(start, results)
    return None if before is None else training.flops + before


def headline(result: Result, results: Results) -> dict[str, float]:
    """By name of the metric; without what is not known. FLOPs of an unknown start are left out of the sum."""
    values: dict[str, float] = {}
    if result.answers:
        means = result.scores["mean"]
        values[TAU] = means["acceptance_length"].value
        if (delta := gain(result, results)) is not None:
            values[TAU_DELTA] = delta.value
        if "speedup" in means:
            values[SPEEDUP] = means["speedup"].value
    total = flops(result, results)
    if total is None and result.training:
        total = result.training.flops
    return values if total is None else values | {PFLOPS: total / 1e15}
