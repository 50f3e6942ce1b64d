from dataclasses import replace

import pytest
import torch

from draftopd.decoding.settings import Decoding
from draftopd.evaluation import measure
from draftopd.evaluation.measure import Clock
from draftopd.evaluation.metrics import Acceptance, Counts
from draftopd.evaluation.results import Result, Results, Training
from draftopd.evaluation.scores import Answer, metrics, score
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
    assert [values[f"accepted/{k}"] for k in range(4)] == pytest.approx([1 / 3, 0, 1 / 3, 1 / 3])


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
    clocks = [(Clock(30, 3, 1.0, 0.9), Clock(10, 0, 1.0, 0.9)), (Clock(10, 3, 1.0, 0.9), Clock(10, 0, 1.0, 0.9))]
    answers = [Answer(str(i), "a", "", [Counts.of(WHOLE)], fast, plain) for i, (fast, plain) in enumerate(clocks)]
    values = score(answers)["mean"]
    assert values["speedup"].value == pytest.approx(2.0)
    assert values["tokens_per_second"].value == pytest.approx(20.0)
    assert values["decode_speedup"].value == pytest.approx(38 / 18)


def test_every_number_is_the_same_from_traces_and_from_results():
    metric = Acceptance(3)
    metric.update([WHOLE, OTHER])
    scores = score([Answer(str(i), "a", "", [Counts.of(t)]) for i, t in enumerate((WHOLE, OTHER))])["mean"]
    values = {name: float(value) for name, value in metric.compute().items()}
    assert {name: estimate.value for name, estimate in scores.items()} == pytest.approx(values)


def test_a_set_that_was_not_timed_does_not_hide_the_speed_of_another():
    timed = Answer("1", "a", "", [Counts.of(WHOLE)], Clock(30, 3, 1.0, 0.9), Clock(10, 0, 1.0, 0.9))
    scores = score([timed, Answer("2", "b", "", [Counts.of(OTHER)])])
    assert scores["mean"]["speedup"].value == pytest.approx(3.0)
    assert "speedup" not in scores["b"]


def test_by_set_reports_each_set_and_the_mean_over_sets():
    values = measure.by_set([WHOLE, OTHER, OTHER], ["a", "b", "b"])
    assert values["a"]["acceptance_length"] == 2.0
    assert values["b"]["acceptance_length"] == 4.0
    assert values[""]["acceptance_length"] == 3.0


def test_a_set_in_which_nothing_was_drafted_leaves_the_mean_to_the_others():
    single = trace([9, 1], 1, [], torch.zeros(0, 3).tolist(), [])
    empty = torch.zeros(0, dtype=torch.long)
    nothing = Counts.of(replace(single, anchors=empty, accepted=empty, drafts=empty.view(0, 3)))
    answers = [Answer("1", "a", "", [Counts.of(WHOLE)]), Answer("2", "b", "", [nothing])]
    assert score(answers)["mean"]["acceptance_length"].value == Counts.of(WHOLE).acceptance_length
    assert metrics(score(answers))["test/acceptance_length"] == 2.0


def test_stages_are_compared_only_on_the_same_prompts():
    def stage(name: str, start: str | None, digest: str) -> Result:
        return Result(name, [Answer("1", "a", digest, [Counts.of(WHOLE)])], training=Training(start, 1.0, 1.0, []))

    results = Results("", Decoding(), [stage("sft", None, "x"), stage("same", "sft", "x"), stage("other", "sft", "y")])
    assert [(a.name, b.name) for a, b in results.pairs] == [("same", "sft")]
