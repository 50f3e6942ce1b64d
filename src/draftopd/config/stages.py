"""A run's stages, each once for every combination of its grid's values."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

OF_RUN = ("experiment=", "only=", "resume=", "stages.", "stages=")
"""words of the command that are not for its stages"""


@dataclass(frozen=True)
class Member:
    """A stage at one point of its grid.

    Attributes:
        start: the run or the stage that it starts from. Of a stage with a grid, the member at the same point.
        words: what composes it.
    """

    name: str
    experiment: str
    start: str | None
    words: list[str]


def members(stages: Mapping[Any, Any], words: Sequence[str]) -> Iterator[Member]:
    """Every stage, once for every point of its grid.

    Args:
        words: the overrides of the command.
    """
    given = [word for word in words if not word.lstrip("+~").startswith(OF_RUN)]
    for name, stage in stages.items():
        grid: dict[str, list[Any]] = dict(stage.get("grid") or {})
        fixed = [f"{key}={_word(value)}" for key, value in (stage.get("set") or {}).items()]
        for values in product(*grid.values()):
            point = dict(zip(grid, values, strict=True))
            settings = fixed + [f"{key}={_word(value)}" for key, value in point.items()]
            composing = [f"experiment={stage['experiment']}", *given, *settings]
            yield Member(f"{name}{_label(point)}", stage["experiment"], _start(stages, stage, point), composing)


def _label(point: Mapping[str, Any]) -> str:
    return "".join(f"-{key.split('.')[-1]}{value}" for key, value in point.items())


def _start(stages: Mapping[Any, Any], stage: Mapping[str, Any], point: Mapping[str, Any]) -> str | None:
    start: str | None = stage.get("init_from")
    grid = (stages[start].get("grid") or {}) if start in stages else {}
    if grid and all(point.get(key) in values for key, values in grid.items()):
        return f"{start}{_label({key: point[key] for key in grid})}"
    return start


def _word(value: Any) -> str:
    """As Hydra reads it on a command line."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_word(part)}" for key, part in value.items()) + "}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ",".join(map(_word, value)) + "]"
    return "null" if value is None else str(value)
