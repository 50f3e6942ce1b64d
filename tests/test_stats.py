import math

import numpy as np

from draftopd import stats


def test_the_interval_covers_the_true_mean_about_as_often_as_it_says():
    generator = np.random.default_rng(0)
    covered = 0
    for seed in range(200):
        values = generator.normal(2.0, 0.5, 60)
        estimate = stats.bootstrap(values.tolist(), resamples=400, seed=seed)
        covered += estimate.low <= 2.0 <= estimate.high
    assert 180 <= covered <= 199


def test_pairing_finds_a_difference_that_the_spread_of_prompts_hides():
    generator = np.random.default_rng(1)
    prompts = generator.normal(2.0, 0.5, 80)
    better = prompts + 0.05 + generator.normal(0, 0.05, 80)
    difference = stats.paired(better.tolist(), prompts.tolist())
    assert difference.low > 0
    assert difference.p_value < 0.01
    a, b = stats.bootstrap(better.tolist()), stats.bootstrap(prompts.tolist())
    assert a.low < b.high  # unpaired, the intervals overlap


def test_no_difference_has_no_significance():
    assert stats.paired([1.0, 2.0], [1.0, 2.0]).p_value == 1.0


def test_missing_values_are_left_out():
    estimate = stats.bootstrap([1.0, math.nan, 3.0])
    assert (estimate.mean, estimate.count) == (2.0, 2)
    assert stats.bootstrap([math.nan]).count == 0
