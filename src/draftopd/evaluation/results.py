"""Results files: what drafters did on test prompts, one JSON schema for `fit` and `evaluate` (docs/results-json.md)."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from draftopd.data.storage import replacing
from draftopd.decoding.settings import Decoding
from draftopd.errors import DraftError
from draftopd.evaluation.curves import Curve, Point
from draftopd.evaluation.scores import Answer, Sets, compare, numbers, same_prompts, score
from draftopd.evaluation.speed import BlockSize, Costs, Cut
from draftopd.tracking.header import header

SCHEMA = 1
FILE = "results.json"
HEADER = ("command", "git_commit", "machine")


@dataclass(frozen=True)
class Training:
    """What the training of a drafter cost, without that of the drafter it started from."""

    start: str | None
    """name of the result whose weights it started from"""
    flops: float
    seconds: float
    curve: list[Point]
    """costs so far and acceptance length on the validation prompts, at each validation"""
    before: float | None = None
    """FLOPs of the training that it started from, back to random weights; None = not known"""


@dataclass(frozen=True)
class Result:
    """One drafter and what it did on the test prompts."""

    name: str
    answers: list[Answer]
    checkpoint: str | None = None
    run_id: str | None = None
    """of MLflow"""
    training: Training | None = None
    costs: Costs | None = None
    """of single steps on this machine, for the speed model"""
    block_sizes: list[BlockSize] = field(default_factory=list)
    cuts: list[Cut] = field(default_factory=list)

    @cached_property
    def scores(self) -> Sets:
        return score(self.answers)

    @property
    def start(self) -> str | None:
        return self.training.start if self.training else None

    @property
    def curve(self) -> Curve:
        return Curve(self.name, self.training.curve if self.training else [])

    @classmethod
    def read(cls, saved: Mapping[str, Any]) -> "Result":
        """From a results file."""
        training = saved["training"]
        if training is not None:
            training = Training(**{**training, "curve": [Point.read(point) for point in training["curve"]]})
        answers = [Answer.read(answer) for answer in saved["answers"]]
        costs = saved["costs"] and Costs.read(saved["costs"])
        sizes = [BlockSize.read(row) for row in saved["block_sizes"]]
        cuts = [Cut(**row) for row in saved.get("cuts", [])]  # older files have none
        return cls(saved["name"], answers, saved["checkpoint"], saved["run_id"], training, costs, sizes, cuts)

    def write(self) -> dict[str, Any]:
        return {**asdict(self), "scores": numbers(self.scores, "mean", "low", "high", "count")}


@dataclass(frozen=True)
class Results:
    """Drafters that were tested on the same prompts."""

    target_fingerprint: str
    decoding: Decoding
    results: Sequence[Result]
    header: Mapping[str, str] = field(default_factory=dict)
    """of a file that was read: command, commit and machine of the process that wrote it"""

    @property
    def own(self) -> Result:
        """Of the drafter that the file is about: of the first that was trained, else of the first."""
        return next((result for result in self.results if result.training), self.results[0])

    @property
    def pairs(self) -> list[tuple[Result, Result]]:
        """Which results on the same prompts are compared.

        Stages with their start and with stages of the same start; the drafters of an evaluation with the first.
        """
        earlier = [
            (late, early)
            for i, late in enumerate(self.results)
            for early in self.results[:i]
            if late.answers and same_prompts(late.answers, early.answers)
        ]
        if any(result.training for result in self.results):
            return [(late, early) for late, early in earlier if late.start in (early.start, early.name)]
        return [(late, early) for late, early in earlier if early is self.results[0]]

    def save(self, folder: Path, extra: Mapping[str, Any] | None = None) -> Path:
        """Writes results.json.

        Args:
            extra: further keys at the top.

        Raises:
            DraftError: it cannot be written; an older one stays as it was.
        """
        parts = ("mean", "low", "high", "p_value", "count")
        document = {
            "schema": SCHEMA,
            **header(),
            "target_fingerprint": self.target_fingerprint,
            "decoding": asdict(self.decoding),
            **(extra or {}),
            "results": [result.write() for result in self.results],
            "differences": [
                {"of": a.name, "less": b.name, "scores": numbers(compare(a.scores, b.scores), *parts)}
                for a, b in self.pairs
            ],
        }
        path = folder / FILE
        with replacing(path) as part:
            part.write_text(json.dumps(_plain(document), indent=1))
        return path


def load(path: Path) -> Results:
    """
    Raises:
        DraftError: no such file, or one of another schema.
    """
    try:
        saved = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DraftError(f"cannot read {path}: {error}") from error
    if not isinstance(saved, dict) or saved.get("schema") != SCHEMA:
        raise DraftError(
            f"{path} is not of schema {SCHEMA}, so another version wrote it: run python -m draftopd.evaluate on its "
            "checkpoint"
        )
    decoding = Decoding(**saved["decoding"])
    results = [Result.read(r) for r in saved["results"]]
    return Results(saved["target_fingerprint"], decoding, results, {key: saved[key] for key in HEADER if key in saved})


def distinct(names: Sequence[str], told: Sequence[str]) -> list[str]:
    """Names that occur once: `name (told)` where several share a name, and a number where that is not enough."""
    out = [f"{name} ({tell})" if names.count(name) > 1 else name for name, tell in zip(names, told, strict=True)]
    before = [out[:at].count(name) for at, name in enumerate(out)]
    return [f"{name}-{count + 1}" if count else name for name, count in zip(out, before, strict=True)]


def place(word: str) -> str:
    """In short, where a drafter or a results file is: the folder of its run, or the first letters of an MLflow id."""
    folders = [part for part in Path(word).parts[:-1] if part != "checkpoints"]
    return folders[-1] if folders else Path(word).stem[:6]


def earlier_answers(checkpoint: Path, target_fingerprint: str, decoding: Decoding) -> list[Answer]:
    """To the test prompts of the run that made a checkpoint; none where it had no such test, or another decoding."""
    file = checkpoint.absolute().parents[1] / FILE
    try:
        found = load(file)
        newer = file.stat().st_mtime >= checkpoint.stat().st_mtime
    except (DraftError, OSError):
        return []
    texts = [(of.max_new_tokens, of.rule, of.recipe) for of in (found.decoding, decoding)]
    if not newer or found.target_fingerprint != target_fingerprint or texts[0] != texts[1]:
        return []
    places = {result.checkpoint: result.answers for result in found.results}
    return places.get(str(checkpoint.resolve()), [])


def _plain(value: Any) -> Any:
    """NaN, which JSON does not know, becomes null: nothing was drafted, or one prompt gives no interval."""
    if isinstance(value, dict):
        return {key: _plain(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and math.isnan(value) else value
