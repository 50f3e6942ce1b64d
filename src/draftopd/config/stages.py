"""A run's stages, each once for every combination of its grid's values."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

OF_RUN = ("experiment=", "only=", "resume=", "stages.", "stages=")
"""words of the command that are not for its stages"""


def members(stages: Mapping[Any, Any], words: Sequence[str]) -> Iterator[tuple[str, Any, list[str]]]:
    """Name, stage, and the words that compose it.

    Args:
        words: the overrides of the command.
    """
    given = [word for word in words if not word.lstrip("+~").startswith(OF_RUN)]
    for name, stage in stages.items():
        grid: dict[str, list[Any]] = dict(stage.get("grid") or {})
        fixed = [f"{key}={_word(value)}" for key, value in (stage.get("set") or {}).items()]
        for values in product(*grid.values()):
            point = list(zip(grid, values, strict=True))
            label = "".join(f"-{key.split('.')[-1]}{value}" for key, value in point)
            settings = fixed + [f"{key}={_word(value)}" for key, value in point]
            yield f"{name}{label}", stage, [f"experiment={stage['experiment']}", *given, *settings]


def _word(value: Any) -> str:
    """As Hydra reads it on a command line."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_word(part)}" for key, part in value.items()) + "}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ",".join(map(_word, value)) + "]"
    return "null" if value is None else str(value)
