"""Acceptance against cost: axes, continuations, and what older runs saved."""

import math

import pytest

from draftopd.errors import DraftError
from draftopd.evaluation import plots
from draftopd.evaluation.curves import AXES, Curve, Point

FIRST = Curve("sft", [Point(1e9, 0.0, 1.0, 1.5), Point(2e9, 0.0, 2.0, 1.8)])
SECOND = Curve("opd", [Point(5e8, 300.0, 0.5, 1.9)])


def test_a_continuation_begins_where_its_start_ended():
    assert SECOND.behind(FIRST).points == [FIRST.points[-1], Point(2.5e9, 300.0, 2.5, 1.9)]
    assert SECOND.behind(None) == SECOND.behind(Curve("empty", [])) == SECOND


@pytest.mark.parametrize("axis", AXES)
def test_any_cost_can_be_the_axis(axis: str):
    figure = plots.curves([FIRST, SECOND.behind(FIRST)], axis=axis)
    (plot,) = figure.axes
    assert plot.get_xlabel() == AXES[axis]
    drawn = [list(line.get_xdata()) for line in plot.get_lines()]
    assert drawn == [[getattr(p, axis) for p in curve.points] for curve in (FIRST, SECOND.behind(FIRST))]
    plots.close(figure)


def test_an_unknown_axis_is_named():
    with pytest.raises(DraftError, match="'steps': choose one of flops, target_tokens, minutes"):
        plots.curves([FIRST], axis="steps")


def test_points_of_older_runs_have_flops_alone():
    old = Point.of((3.0, 1.7))
    assert (old.flops, old.acceptance_length) == (3.0, 1.7)
    assert math.isnan(old.target_tokens)
    assert Point.of({"flops": 1.0, "target_tokens": 2.0, "minutes": 3.0, "acceptance_length": 1.5}).minutes == 3.0
