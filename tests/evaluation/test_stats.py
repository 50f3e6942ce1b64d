import math

import numpy as np
import pytest

from draftopd.evaluation import stats


def test_the_interval_covers_the_true_mean_about_as_often_as_it_says():
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        values = generator.normal(2.0, 0.5, 60)
        estimate = stats.bootstrap(values.tolist())
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


def test_a_ratio_is_of_sums_and_its_interval_covers_the_truth():
    generator = np.random.default_rng(2)
    covered = 0
    for _ in range(200):
        blocks = generator.integers(5, 40, 80)
        tokens = blocks * generator.normal(2.5, 0.4, 80)
        estimate = stats.ratio(tokens.tolist(), blocks.tolist()).estimate()
        covered += estimate.low <= 2.5 <= estimate.high
    assert 180 <= covered <= 199
    assert stats.ratio([1.0, 5.0], [1.0, 2.0]).value == 2.0


def test_quotients_and_differences_are_paired():
    generator = np.random.default_rng(3)
    tokens = generator.integers(20, 200, 60).astype(float)
    slow = tokens * generator.uniform(0.5, 2.0, 60)
    fast = slow / 1.5 * generator.normal(1.0, 0.01, 60)
    speedup = (stats.ratio(tokens, fast.tolist()) / stats.ratio(tokens, slow.tolist())).estimate(null=1.0)
    assert 1.48 < speedup.low < speedup.mean < speedup.high < 1.52
    assert speedup.p_value < 0.01
    same = (stats.ratio(tokens, slow) - stats.ratio(tokens, slow)).estimate()
    assert (same.low, same.high, same.p_value) == (0.0, 0.0, 1.0)


def test_the_mean_over_sets_weighs_sets_alike():
    small, large = stats.mean([4.0, 4.0], seed=1), stats.mean([1.0] * 50, seed=2)
    both = stats.average([small, large])
    assert both.estimate().mean == 2.5
    assert both.count == 52


def test_runs_and_prompts_are_both_resampled():
    """In a table of run effect + prompt effect the variance of the mean is the sum of both."""
    runs, prompts = np.array([0.0, 0.3, -0.3]), np.random.default_rng(0).normal(size=200)
    table = 3 + runs[:, None] + prompts
    estimate = stats.crossed(table, np.ones_like(table))
    assert estimate.value == pytest.approx(table.mean())
    assert estimate.draws.var() == pytest.approx(runs.var() / 3 + prompts.var() / 200, rel=0.05)
    better = stats.crossed(table + 0.1, np.ones_like(table))
    assert (better - estimate).draws == pytest.approx(0.1)  # paired in runs and in prompts


def test_of_one_run_only_the_prompts_are_resampled():
    tops, bottoms = [1.0, 4.0, 2.0], [1.0, 2.0, 1.0]
    assert stats.crossed([tops], [bottoms]).draws == pytest.approx(stats.ratio(tops, bottoms).draws)
