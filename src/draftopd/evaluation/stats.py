"""How sure a number is: percentile bootstrap over prompts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

RESAMPLES = 10_000


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval; `p_value` is two-sided, for the number being `null`.

    Interval and p-value are NaN where the number, or a set that it averages, rests on a single prompt.
    """

    mean: float
    low: float
    high: float
    p_value: float
    count: int

    def text(self, form: str = ".2f") -> str:
        """The number and its interval, if it has one, each in this format."""
        return f"{self.mean:{form}}" + (f" [{self.low:{form}}, {self.high:{form}}]" if math.isfinite(self.low) else "")

    @property
    def p_text(self) -> str:
        """The p-value to three digits; empty where there is none."""
        return "" if math.isnan(self.p_value) else f"{self.p_value:.3f}" if self.p_value >= 0.001 else "< 0.001"

    def __str__(self) -> str:
        return self.text()


@dataclass(frozen=True)
class Bootstrap:
    """A statistic of the prompts, and its values on resampled prompts [RESAMPLES].

    Statistics of the same prompts in the same order share their resamples: differences and quotients are paired.
    """

    value: float
    draws: np.ndarray
    count: int

    def __sub__(self, other: "Bootstrap") -> "Bootstrap":
        return Bootstrap(self.value - other.value, self.draws - other.draws, min(self.count, other.count))

    def __truediv__(self, other: "Bootstrap") -> "Bootstrap":
        return Bootstrap(_divide(self.value, other.value), _divide(self.draws, other.draws), self.count)

    def estimate(self, null: float = 0.0) -> Estimate:
        draws = self.draws[np.isfinite(self.draws)]
        if not len(draws):
            return Estimate(float(self.value), math.nan, math.nan, math.nan, self.count)
        low, high = np.quantile(draws, [0.025, 0.975])
        # share of resamples on the other side of the null; +1 keeps it from being 0
        tail = min((draws <= null).sum(), (draws >= null).sum())
        p_value = min(1.0, 2 * (tail + 1) / (len(draws) + 1))
        return Estimate(float(self.value), float(low), float(high), p_value, self.count)


def ratio(numerators: Sequence[float], denominators: Sequence[float], seed: int = 0) -> Bootstrap:
    """Sum of the numerators over sum of the denominators; one of each a prompt."""
    top, bottom = np.asarray(numerators, dtype=float), np.asarray(denominators, dtype=float)
    value = _divide(top.sum(), bottom.sum())
    if (bottom > 0).sum() < 2:  # resamples of one prompt are all alike
        return Bootstrap(value, np.full(RESAMPLES, np.nan), len(top))
    counts = _resamples(len(top), seed)
    return Bootstrap(value, _divide(counts @ top, counts @ bottom), len(top))


def mean(values: Sequence[float], seed: int = 0) -> Bootstrap:
    """Mean over prompts. NaN values (nothing was drafted) are left out."""
    data = np.asarray(values, dtype=float)
    finite = np.isfinite(data)
    whole = ratio(np.where(finite, data, 0).tolist(), finite.astype(float).tolist(), seed)
    return Bootstrap(whole.value, whole.draws, int(finite.sum()))


def crossed(numerators: Any, denominators: Any, seed: int = 0) -> Bootstrap:
    """Sum of the numerators over sum of the denominators [S, N] of S runs on the same N prompts.

    Runs and prompts are both resampled: the interval is for another run on another prompt. Statistics of as many runs
    on the same prompts share their resamples, so their differences are paired in both.
    """
    top, bottom = np.asarray(numerators, dtype=float), np.asarray(denominators, dtype=float)
    runs, prompts = _resamples(len(top), seed + RESAMPLES), _resamples(top.shape[1], seed)

    def sums(values: np.ndarray) -> np.ndarray:
        return ((runs @ values) * prompts).sum(1)

    return Bootstrap(_divide(top.sum(), bottom.sum()), _divide(sums(top), sums(bottom)), top.shape[1])


def average(parts: Sequence[Bootstrap]) -> Bootstrap:
    """Mean over sets of prompts, each resampled within itself; sets where nothing was counted are left out."""
    parts = [part for part in parts if np.isfinite(part.value)] or parts
    draws = np.mean([part.draws for part in parts], axis=0)
    return Bootstrap(float(np.mean([part.value for part in parts])), draws, sum(part.count for part in parts))


def bootstrap(values: Sequence[float], seed: int = 0) -> Estimate:
    return mean(values, seed).estimate()


def paired(values: Sequence[float], baseline: Sequence[float], seed: int = 0) -> Estimate:
    """The mean difference, paired over prompts: the same prompts stand at the same places."""
    difference = np.asarray(values, dtype=float) - np.asarray(baseline, dtype=float)
    return bootstrap(difference.tolist(), seed)


@lru_cache(maxsize=16)
def _resamples(count: int, seed: int) -> np.ndarray:
    """[RESAMPLES, count] how often each prompt is drawn."""
    generator = np.random.default_rng(seed)
    return generator.multinomial(count, np.full(count, 1 / count), size=RESAMPLES).astype(float)


def _divide(top: Any, bottom: Any) -> Any:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.divide(top, bottom)
