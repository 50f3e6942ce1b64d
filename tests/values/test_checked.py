"""Arguments against the types of a signature: what passes, what does not, and the words for it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import torch
from omegaconf import OmegaConf
from pydantic import Field

from draftopd.errors import DraftError
from draftopd.values.checked import Setting, checked, plain, signature
from draftopd.values.types import Count, Layers, Positive, Probability, Template

GOOD = [
    (Count, 3),
    (Count | None, None),
    (Positive, 2),  # a whole number is a number
    (Probability, 1.0),
    (Layers, [0, 3]),
    (Template, "Q: {prompt}"),
    (bool | str, "inductor"),
    (tuple[float, float], [0.9, 0.999]),
    (Mapping[str, Mapping[str, Any] | None], {"a": {"b": 3}, "c": None}),
    (str | Path, "x"),
    (float | torch.Tensor, 0.1),
    (Any, {"a": [1, None]}),
]
WRONG = [
    (Count, 0, "a whole number of at least 1"),
    (Count, 2.0, "a whole number of at least 1"),
    (Count, True, "a whole number of at least 1"),
    (Count, "2", "a whole number of at least 1"),
    (Count | None, -1, "a whole number of at least 1, or null"),
    (Positive, float("nan"), "a number above 0"),
    (Positive, float("inf"), "a number above 0"),
    (Probability, 0, "a number above 0 and at most 1"),
    (bool, 1, "true or false"),
    (bool | str, 3, "true or false or text"),
    (int | float, "x", "a number"),
    (Literal["sdpa", "flex_attention"], "flex_atention", "sdpa or flex_attention: did you mean flex_attention?"),
    (Literal["a", "b"] | None, "c", "a, b, or null"),
    (Sequence[Count], [1, 0], "a list, each a whole number of at least 1"),
    (tuple[float, float], [0.9], "a list, each a number"),
    (dict[str, Any], [1], "a section of names and values"),
    (Template, "Q", "text with {prompt} in it"),
    (Annotated[str, Field(min_length=1)], "", "text"),
    (str, "\ud83d", "text"),
    (Any, {"a": [float("nan")]}, "finite"),
    (torch.Tensor, 3, "a section with a _target_"),
    (Callable[..., Any], "sgd", "a section with a _target_"),
]


@pytest.mark.parametrize(("kind", "value"), GOOD)
def test_what_a_type_allows_passes(kind: Any, value: Any):
    Setting(plain(kind)).require("here", value)


@pytest.mark.parametrize(("kind", "value", "words"), WRONG)
def test_what_it_does_not_allow_is_said(kind: Any, value: Any, words: str):
    with pytest.raises(DraftError, match=r"^here=.* must be ") as caught:
        Setting(plain(kind)).require("here", value)
    assert str(caught.value).endswith(f" must be {words}")


@checked
@dataclass(frozen=True)
class Point:
    x: Count
    weight: torch.Tensor | None = None
    ids: Layers | None = None


@checked
def scale(x: torch.Tensor, by: Positive = 1.0) -> torch.Tensor:
    return x * by


def test_calls_are_checked_too_and_objects_pass():
    assert Point(3, torch.ones(1), (1, 2)).ids == (1, 2)
    assert Point(3, ids=OmegaConf.create([1, 2])).x == 3
    assert scale(torch.ones(1), by=2.0).item() == 2
    with pytest.raises(DraftError, match="Point: x=0 must be a whole number of at least 1"):
        Point(0)
    with pytest.raises(DraftError, match="Point: ids="):
        Point(1, ids=OmegaConf.create([-1]))
    with pytest.raises(DraftError, match="scale: by=0 must be a number above 0"):
        scale(torch.ones(1), 0)
    assert signature(Point).settings["x"].required
    assert not signature(Point).settings["weight"].required


def test_names_are_checked_with_the_nearest_one():
    known = signature(Point)
    known.require_all("point", {"x": 3, "ids": None}, "point")
    with pytest.raises(
        DraftError, match=r"point has no setting wieght: did you mean weight\? \(it has x, weight, ids\)"
    ):
        known.require_all("point", {"x": 3, "wieght": None}, "point")
    with pytest.raises(DraftError, match=r"point\.x must be given"):
        known.require_all("point", {}, "point")
    known.require_all("point", {}, "point", complete=False)
    signature(dict.fromkeys)
    signature(lambda **options: options).require_all("free", {"anything": 3})
