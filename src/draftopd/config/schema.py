"""What stands at the top of each command's configuration, beside hydra's own part.

A section with a `_target_` has the settings of what it names: their types stand in that signature, and only there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from draftopd.checkpoints.checks import LAYOUTS
from draftopd.data.prompts import SPLITS
from draftopd.decoding.settings import Decoding
from draftopd.training.budget import Budget
from draftopd.values.types import BlockSize, Count, Name, Natural, Seed


@dataclass(frozen=True)
class Schema:
    """One command's.

    Args:
        values: a class with the names and types of single values.
        sections: name -> class with those of a section without a `_target_`.
        nullable: sections of which every value may be null.
        groups, optional_groups: config groups that need a choice, and that do not.
    """

    values: type
    groups: Sequence[str] = ()
    optional_groups: Sequence[str] = ()
    sections: Mapping[str, type] = field(default_factory=dict)
    nullable: Sequence[str] = ()


@dataclass
class Fit:
    name: Name
    seed: Seed
    cache_dir: Name
    init_from: Name | None
    from_scratch: bool
    init_optimizer: bool
    resume: Name | None
    stages: dict[str, dict[str, Any]] | None
    only: list[str] | None
    output_dir: Name | None
    reached_only: bool
    texts_only: bool


@dataclass
class Test:
    prompts: Natural | None
    speedup_prompts: Natural
    redraft: bool = False


@dataclass
class Stage:
    experiment: Name
    init_from: Name | None
    set: dict[str, Any] | None = None
    grid: dict[str, list[Any]] | None = None


@dataclass
class Evaluate:
    checkpoint: Name | list[Name]
    against: Name | None
    name: Name
    device: Name
    split: Literal[SPLITS] | None  # type: ignore[valid-type]
    limit: Count | None
    max_prompt_length: Count | None
    enable_thinking: bool | None
    cache_dir: Name
    output_dir: Name | None


@dataclass
class Speed:
    prompts: Natural
    block_sizes: list[BlockSize] | None
    cut: bool


@dataclass
class Chat:
    checkpoint: Name
    prompt: Name | None
    plain: bool
    device: Name
    enable_thinking: bool | None
    cache_dir: Name
    name: Name


@dataclass
class Export:
    run: Name
    layout: Literal[tuple(layout.name for layout in LAYOUTS)] | None  # type: ignore[valid-type]
    to: Name | None
    target_name: Name | None
    license: Name | None
    results: Name | None
    push_to_hub: Name | None
    private: bool
    cache_dir: Name
    name: Name


@dataclass
class Compare:
    runs: list[Name]
    against: Name | None
    to: Name | None
    name: Name


@dataclass
class Check:
    folder: Name
    cache_dir: Name


SCHEMAS = {
    "fit": Schema(
        Fit,
        ["target", "drafter", "objective", "traces", "data", "prompts", "texts", "module", "trainer", "callbacks"],
        optional_groups=("random_objective", "logger", "loggers"),
        sections={"budget": Budget, "test": Test},
    ),
    "evaluate": Schema(
        Evaluate,
        optional_groups=("target", "prompts", "logger", "loggers"),
        sections={"decoding": Decoding, "speed": Speed},
        nullable=("decoding",),
    ),
    "compare": Schema(Compare, optional_groups=("logger", "loggers")),
    "chat": Schema(
        Chat,
        optional_groups=("target", "logger", "loggers"),
        sections={"decoding": Decoding},
        nullable=("decoding",),
    ),
    "export": Schema(Export, optional_groups=("target", "logger", "loggers")),
    "check": Schema(Check, optional_groups=("target",)),
}
