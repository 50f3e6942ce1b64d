"""Benchmarks as prompts, only to test on."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, zip_longest
from typing import Any

from draftopd.data.prompts import Prompt, Prompts, digest
from draftopd.data.records import RecordReader, load_rows
from draftopd.errors import DraftError
from draftopd.values.checked import checked
from draftopd.values.types import Count, Seed

log = logging.getLogger(__name__)


@checked
@dataclass(kw_only=True)
class HubEvaluation(RecordReader):
    """A data set of the hub, used only as the split `test`.

    Where `prompt_field` holds a list, its texts are the user turns of one conversation; `template` wraps the first.

    Args:
        set: what the metrics call it; ids begin with it.
        hub_split: the hub's name of the split.
        test: take at most this many; None: all.
        left_out: rows that hold this text are left out: placeholders for what a data set may not pass on.
        shuffle_seed: take them after the `shuffle` of the datasets library, as the z-lab/dflash benchmark does; None:
            in order.
    """

    path: str
    set: str
    name: str | None = None
    hub_split: str = "test"
    revision: str | None = None
    test: Count | None = None
    left_out: str | None = None
    shuffle_seed: Seed | None = None

    def split(self, name: str) -> list[Prompt]:
        if name in ("train", "val"):
            raise DraftError(f"{self.set} is for evaluation and has no split {name}: choose other prompts to train on")
        return super().split(name)

    def _deal(self) -> dict[str, list[Prompt]]:
        rows = load_rows(self.path, self.name, self.hub_split, self.revision)
        if self.test is not None and len(rows) > self.test:
            rows = rows if self.shuffle_seed is None else rows.shuffle(seed=self.shuffle_seed)
            rows = rows.select(range(self.test))
        samples = [(f"{self.path} sample {index}", row) for index, row in enumerate(rows)]
        groups = self._read(self.path, self._whole(samples), set(), self.set, self.set)
        return {"train": [], "val": [], "test": [group[-1] for group in groups]}

    def _whole(self, samples: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
        if self.left_out is None:
            return samples
        whole = [(where, row) for where, row in samples if self.left_out not in str(row)]
        if not whole:
            raise DraftError(
                f"{self.path} has only placeholders instead of texts: give the path of a folder with the texts"
            )
        if len(whole) < len(samples):
            numbers = (self.path, len(samples) - len(whole), len(samples))
            log.warning("%s: %d of %d samples left out: placeholders instead of texts", *numbers)
        return whole

    def _questions(self, where: str, record: Mapping[str, Any]) -> tuple[str, ...]:
        turns = record.get(self.prompt_field)
        if isinstance(turns, list) and turns and all(isinstance(turn, str) for turn in turns):
            return tuple(turns)
        return super()._questions(where, record)


@dataclass
class UnionPrompts:
    """Several sources as one; each is a set of its own, named by its key, and ids begin with that key.

    The sources take turns, so that the head of a split is a mix of all of them.
    """

    sources: Mapping[str, Prompts]

    def split(self, name: str) -> list[Prompt]:
        return self._joined(lambda source: source.split(name))

    def measured(self) -> list[Prompt]:
        return self._joined(lambda source: source.measured())

    def _joined(self, part: Callable[[Prompts], list[Prompt]]) -> list[Prompt]:
        parts = [[_under(key, prompt) for prompt in part(source)] for key, source in self.sources.items()]
        return [prompt for prompt in chain.from_iterable(zip_longest(*parts)) if prompt is not None]

    @cached_property
    def fingerprint(self) -> str:
        return digest([(key, source.fingerprint) for key, source in self.sources.items()])


def _under(key: str, prompt: Prompt) -> Prompt:
    """An id that begins with the key stays as it is, so that a set has the same ids by itself and in a union."""
    return replace(prompt, set=key, id=prompt.id if prompt.id.startswith(f"{key}/") else f"{key}/{prompt.id}")
