"""Prompts out of records (the lines of a file, the rows of a data set): fields, held-out splits, what can be wrong."""

import json
import logging
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from draftopd.errors import DraftError
from draftopd.splits import SPLITS, Messages, Prompt, Splits, ask, digest

log = logging.getLogger(__name__)
Records = Iterable[tuple[str, Any]]  # each record after the place where it stands, for the error messages
ROLES = ("system", "user", "assistant", "tool")


@dataclass(kw_only=True)
class RecordPrompts(Splits):
    prompt_field: str = "prompt"
    messages_field: str | None = "messages"
    id_field: str | None = "id"
    answer_field: str | None = "answer"
    set_field: str | None = None
    template: str = "{prompt}"
    val: int = 64
    test: int = 64
    limit: int | None = None
    seed: int = 0

    @abstractmethod
    def _sources(self) -> dict[str, tuple[str, Records]]:
        """Name and records of train, and of val and test where they need not be held out of train."""

    def _deal(self) -> dict[str, list[Prompt]]:
        sources, seen = self._sources(), set[str]()
        splits = {name: self._read(name, *sources[name], seen) for name in SPLITS if name in sources}
        # By hash rather than by place: new lines move few others, and the head of train is a fair sample of the file.
        train = sorted(splits["train"], key=lambda prompt: digest([self.seed, prompt.text]))
        most = max(1, len(train) // 4)
        for name, wanted in (("test", self.test), ("val", self.val)):
            if name not in sources:
                if wanted > most:
                    log.warning("prompts.%s cut from %d to %d, to leave enough to train on", name, wanted, most)
                held = max(0, min(wanted, most))
                splits[name], train = train[:held], train[held:]
        return splits | {"train": train}

    def _read(self, split: str, source: str, records: Records, seen: set[str]) -> list[Prompt]:
        read = list(islice(records, self.limit if split == "train" else None))
        prompts: list[Prompt] = []
        for where, record in read:
            prompt = self._prompt(split, Path(source).stem, where, record)
            if prompt.text not in seen and prompt.messages[-1]["content"].strip():
                if prompt.id in seen:
                    raise DraftError(f"{where}: id {prompt.id} is taken: make ids unique or set prompts.id_field=null")
                seen |= {prompt.text, prompt.id}
                prompts.append(prompt)
        if not read:
            raise DraftError(f"{source} is empty: give at least 3 prompts")
        if len(prompts) < len(read):
            log.warning("%s: dropped %d of %d, blank or repeated", source, len(read) - len(prompts), len(read))
        return prompts

    def _prompt(self, split: str, stem: str, where: str, record: Any) -> Prompt:
        if not isinstance(record, Mapping):
            raise DraftError(f"{where} is not an object: write one with the field {self.prompt_field!r}")
        if "{prompt}" not in self.template:
            raise DraftError(f"prompts.template {self.template!r} leaves the prompt out: put {{prompt}} in it")
        label, answer, turns = (record.get(key) for key in (self.id_field, self.answer_field, self.messages_field))
        if turns is None:
            messages = ask(self.template.replace("{prompt}", _text(where, record, "prompt_field", self.prompt_field)))
        else:
            messages = _conversation(where, turns)
        source = stem if split == "train" else f"{stem}/{split}"
        return Prompt(
            id=f"{source}/{digest(messages) if label is None else label}",
            set=_text(where, record, "set_field", self.set_field) if self.set_field else stem,
            messages=messages,
            answer=None if answer is None else str(answer),
        )


def read_lines(path: Path) -> Records:
    if not path.is_file():
        raise DraftError(f"no prompt file {path}: give the path of a .jsonl file")
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        try:
            if line.strip():
                yield f"{path}:{number}", json.loads(line)
        except ValueError as error:
            raise DraftError(f"{path}:{number} is not JSON ({error}): write one JSON object a line") from error


def _text(where: str, record: Mapping[str, Any], setting: str, field: str) -> str:
    if not isinstance(record.get(field), str):
        fields = ", ".join(map(str, record)) or "none"
        raise DraftError(f"{where} has no text in field {field!r} (fields: {fields}): set prompts.{setting}")
    return str(record[field])


def _conversation(where: str, messages: Any) -> Messages:
    """Without the assistant's last turn: the target writes that one itself."""
    try:
        turns = [{"role": message["role"], "content": message["content"]} for message in messages]
    except (TypeError, KeyError):
        turns = []
    good = turns and all(turn["role"] in ROLES and isinstance(turn["content"], str) for turn in turns)
    kept = turns[:-1] if good and turns[-1]["role"] == "assistant" else turns
    if not good or not any(turn["role"] == "user" for turn in kept):
        raise DraftError(
            f"{where}: wrong messages: give role (one of {', '.join(ROLES)}) and content, one user at least"
        )
    return tuple(kept)
