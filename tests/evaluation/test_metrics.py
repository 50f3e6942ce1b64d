import pytest
import torch

from draftopd.evaluation import measure
from draftopd.evaluation.metrics import Acceptance, Speedup
from test_trace import WHOLE, trace

OTHER = trace([9, 1, 2, 3, 4, 5], 1, [1], [[2, 3, 4]], [3])  # everything held: 4 committed in one block


def test_acceptance_by_hand():
    metric = Acceptance(3)
    metric.update([WHOLE])
    metric.update([OTHER])
    values = {name: float(value) for name, value in metric.compute().items()}
    assert values["acceptance_length"] == pytest.approx((2.0 + 4.0) / 2)
    assert values["acceptance_length_pooled"] == pytest.approx(8 / 3)
    assert values["acceptance_rate"] == pytest.approx(5 / 9)
    assert [values[f"accept_at/{k}"] for k in (1, 2, 3)] == pytest.approx([2 / 3, 2 / 3, 1 / 3])
    assert [values[f"accept_at_given/{k}"] for k in (1, 2, 3)] == pytest.approx([2 / 3, 1.0, 1 / 2])
    assert metric.histogram.tolist() == [1, 0, 1, 1]


def test_a_block_cut_by_the_end_counts_only_judged_slots():
    metric = Acceptance(3)
    metric.update([trace([9, 1, 2, 3], 1, [1], [[2, 3, 7]], [2])])
    values = metric.compute()
    assert "accept_at/3" not in values
    assert float(values["acceptance_rate"]) == 1.0


def test_responses_of_one_token_are_left_out():
    metric = Acceptance(3)
    metric.update([OTHER, trace([9, 1], 1, torch.zeros(0).long().tolist(), torch.zeros(0, 3).long().tolist(), [])])
    assert float(metric.compute()["acceptance_length"]) == 4.0


def test_speedup_is_a_ratio_of_rates():
    metric = Speedup()
    metric.update(tokens=30, seconds=1.0, plain_tokens=10, plain_seconds=1.0)
    metric.update(tokens=10, seconds=1.0, plain_tokens=10, plain_seconds=1.0)
    values = metric.compute()
    assert float(values["speedup"]) == pytest.approx(2.0)
    assert float(values["tokens_per_second"]) == pytest.approx(20.0)


def test_by_set_reports_each_set_and_the_mean_over_sets():
    values = measure.by_set([WHOLE, OTHER, OTHER], ["a", "b", "b"])
    assert values["a"]["acceptance_length"] == 2.0
    assert values["b"]["acceptance_length"] == 4.0
    assert values[""]["acceptance_length"] == 3.0
