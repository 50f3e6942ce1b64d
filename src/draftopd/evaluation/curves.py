"""How acceptance grew with what training cost: in FLOPs, in tokens that the target read, in minutes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

AXES = {"flops": "training FLOPs", "target_tokens": "tokens read by the target", "minutes": "minutes of training"}


@dataclass(frozen=True)
class Point:
    """What a run had spent at a validation (training.budget.Budget), and the acceptance length it had reached."""

    flops: float
    target_tokens: float
    minutes: float
    acceptance_length: float

    @classmethod
    def of(cls, saved: Mapping[str, float] | Sequence[float]) -> "Point":
        """From JSON or a checkpoint; the first ones held (FLOPs, acceptance length) alone."""
        if isinstance(saved, Mapping):
            return cls(**saved)
        flops, length = saved
        return cls(flops, math.nan, math.nan, length)


@dataclass(frozen=True)
class Curve:
    """The validations of one run or stage, in order."""

    name: str
    points: list[Point]

    def behind(self, start: "Curve | None") -> "Curve":
        """The same, begun where the stage that it started from ended."""
        if start is None or not start.points:
            return self
        end = start.points[-1]
        moved = [replace(p, **{axis: getattr(p, axis) + getattr(end, axis) for axis in AXES}) for p in self.points]
        return Curve(self.name, [end, *moved])
