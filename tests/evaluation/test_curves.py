"""Acceptance against cost: axes, continuations, and points read back."""

import math

import pytest

from draftopd.errors import DraftError
from draftopd.evaluation import plots
from draftopd.evaluation.curves import AXES, Curve, Point

FIRST = Curve("sft", [Point(1e9, 0.0, 1.0, 1.5), Point(2e9, 0.0, 2.0, 1.8)])
SECOND = Curve("opd", [Point(5e8, 300.0, 0.5, 1.9)])


def test_a_continuation_begins_where_its_start_ended():
    assert SECOND.after(FIRST).points == [FIRST.points[-1], Point(2.5e9, 300.0, 2.5, 1.9)]
    assert SECOND.after(None) == SECOND.after(Curve("empty", [])) == SECOND


@pytest.mark.parametrize("axis", AXES)
def test_any_cost_can_be_the_axis(axis: str):
    figure = plots.curves([FIRST, SECOND.after(FIRST)], axis=axis)
    (plot,) = figure.axes
    assert plot.get_xlabel() == AXES[axis]
    drawn = [list(line.get_xdata()) for line in plot.get_lines()]
    assert drawn == [[getattr(p, axis) for p in curve.points] for curve in (FIRST, SECOND.after(FIRST))]


def test_an_unknown_axis_is_named():
    with pytest.raises(DraftError, match="'steps': choose one of flops, target_tokens, minutes"):
        plots.curves([FIRST], axis="steps")


def test_a_point_is_read_back_from_json():
    point = Point.read({"flops": 1.0, "target_tokens": 2.0, "minutes": 3.0, "acceptance_length": None})
    assert point.minutes == 3.0
    assert math.isnan(point.acceptance_length)
