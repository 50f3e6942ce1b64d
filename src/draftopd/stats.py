"""How sure a number is: bootstrap over prompts."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval; `p_value` is two-sided, for the mean being 0."""

    mean: float
    low: float
    high: float
    p_value: float
    count: int

    def __str__(self) -> str:
        return f"{self.mean:.2f} [{self.low:.2f}, {self.high:.2f}]"


def bootstrap(values: Sequence[float], resamples: int = 10_000, seed: int = 0) -> Estimate:
    """Percentile bootstrap of the mean over prompts. NaN values (nothing was drafted) are left out."""
    data = np.asarray(values, dtype=float)
    data = data[np.isfinite(data)]
    if not len(data):
        return Estimate(float("nan"), float("nan"), float("nan"), float("nan"), 0)
    generator = np.random.default_rng(seed)
    means = data[generator.integers(0, len(data), (resamples, len(data)))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    # of a resampled mean on the other side of 0; +1 keeps it from being 0
    tail = min((means <= 0).sum(), (means >= 0).sum())
    return Estimate(float(data.mean()), float(low), float(high), min(1.0, 2 * (tail + 1) / (resamples + 1)), len(data))


def paired(values: Sequence[float], baseline: Sequence[float], resamples: int = 10_000, seed: int = 0) -> Estimate:
    """Bootstrap of the mean difference, paired over prompts: the same prompts stand at the same places."""
    difference = np.asarray(values, dtype=float) - np.asarray(baseline, dtype=float)
    return bootstrap(difference.tolist(), resamples, seed)
