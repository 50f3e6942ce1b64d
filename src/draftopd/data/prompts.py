"""What a prompt is, and how prompts are dealt out to train, val and test."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import cycle, islice
from typing import Any, Protocol

from draftopd.errors import DraftError

Messages = tuple[dict[str, str], ...]

SPLITS = ("test", "val", "train")  # in the order of dealing: test stays the same whatever the size of train
STALE = 1000  # after so many repeats in a row a task has no more questions to give


@dataclass(frozen=True)
class Prompt:
    id: str
    set: str
    messages: Messages
    answer: str | None = None
    followups: tuple[str, ...] = ()
    """later user turns, each asked after the target's own answer to the one before"""
    where: str = field(default="", compare=False)
    """file and line, or row, that it was read from"""

    @property
    def name(self) -> str:
        """What error messages call it."""
        return self.where or f"prompt {self.id}"

    @property
    def said(self) -> list[str]:
        """What its messages and later turns say."""
        return [message["content"] for message in self.messages] + list(self.followups)

    @property
    def text(self) -> str:
        """What tells two prompts apart."""
        turns = [(message["role"], message["content"].strip()) for message in self.messages]
        return json.dumps(turns + [("user", turn.strip()) for turn in self.followups])


def continued(prompt: Prompt, answer: str) -> Prompt:
    """The prompt of the next turn: the target's answer to this one (text, no special tokens), then the next follow-up.

    Raises ValueError where there is none.
    """
    if not prompt.followups:
        raise ValueError(f"{prompt.id} has no follow-ups")
    question, *later = prompt.followups
    turn = sum(message["role"] == "user" for message in prompt.messages)
    return replace(
        prompt,
        id=f"{prompt.id.removesuffix(f'/turn{turn}')}/turn{turn + 1}",
        messages=(*prompt.messages, {"role": "assistant", "content": answer}, *ask(question)),
        answer=None,  # the reference belongs to the first turn
        followups=tuple(later),
    )


class Prompts(Protocol):
    def split(self, name: str) -> list[Prompt]: ...

    def measured(self) -> list[Prompt]:
        """Of a source that is only measured: all that it has, without questions made to train on."""

    @property
    def fingerprint(self) -> str: ...


class Splits(ABC):
    @abstractmethod
    def _deal(self) -> dict[str, list[Prompt]]: ...

    @cached_property
    def _dealt(self) -> dict[str, list[Prompt]]:
        return self._deal()

    def split(self, name: str) -> list[Prompt]:
        """Raises DraftError where there is no such split, or nothing in it."""
        if name not in SPLITS:
            raise DraftError(f"there is no split {name!r}: it is train, val or test")
        if not self._dealt[name]:
            sizes = ", ".join(f"{split} {len(self._dealt[split])}" for split in SPLITS)
            raise DraftError(f"no prompts in split {name} ({sizes}): raise prompts.{name} or give more prompts")
        return list(self._dealt[name])

    def measured(self) -> list[Prompt]:
        return self.split("test")

    @cached_property
    def fingerprint(self) -> str:
        """Of the prompts themselves: it changes with every setting that changes them, and with no other."""
        return fingerprint(*(self._dealt[name] for name in SPLITS))


def fingerprint(*splits: list[Prompt]) -> str:
    return digest([[(p.id, p.set, p.messages, p.answer, p.followups) for p in split] for split in splits])


def interleave(streams: Mapping[str, Iterator[Prompt]], **counts: int) -> dict[str, list[Prompt]]:
    """Splits of these sizes without repeated texts; streams take turns. Raises DraftError where one has no new text."""
    seen: set[str] = set()
    splits: dict[str, list[Prompt]] = {name: [] for name in counts}
    turns = cycle(streams.items())
    for split in (name for name, size in counts.items() for _ in range(size)):
        name, stream = next(turns)
        prompt = next((prompt for prompt in islice(stream, STALE) if prompt.text not in seen), None)
        if prompt is None:
            raise DraftError(f"{name} has no more different prompts: lower prompts.train or change the task's options")
        seen.add(prompt.text)
        splits[split].append(prompt)
    return splits


def ask(question: str) -> Messages:
    return ({"role": "user", "content": question},)


def digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
