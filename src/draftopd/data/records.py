"""Prompts from records (the lines of a file, the rows of a data set): fields, held-out splits, error messages."""

import importlib
import json
import logging
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from draftopd.data.prompts import SPLITS, Messages, Prompt, Splits, ask, digest
from draftopd.errors import DraftError
from draftopd.values.types import Count, Natural, Seed, Template

log = logging.getLogger(__name__)
TOOLS = ("tools", "functions")  # of a record
CALLS = ("tool_calls", "function_call")  # of a message
Records = Iterable[tuple[str, Any]]  # (where it stands, for error messages; the record)
ROLES = ("system", "user", "assistant", "tool")


@dataclass(kw_only=True)
class RecordReader(Splits):
    """Which fields of a record are read, and how."""

    prompt_field: str = "prompt"
    messages_field: str | None = "messages"
    id_field: str | None = "id"
    answer_field: str | None = "answer"
    set_field: str | None = None
    template: Template = "{prompt}"

    def _read(self, source: str, records: Records, seen: set[str], prefix: str, set_name: str) -> list[Prompt]:
        """Prompts that are neither blank nor `seen`, in order.

        Args:
            source: what the error messages call it.
            seen: texts and ids so far; grows.
            prefix: of the ids.
            set_name: where `set_field` is None.
        """
        read, prompts, unread = list(records), list[Prompt](), set[str]()
        for where, record in read:
            prompt = self._prompt(where, record, prefix, set_name)
            unread |= _unread(record.get(self.messages_field))
            if prompt.text not in seen and prompt.messages[-1]["content"].strip():
                if prompt.id in seen:
                    raise DraftError(f"{where}: id {prompt.id} is taken: make ids unique or set prompts.id_field=null")
                seen |= {prompt.text, prompt.id}
                prompts.append(prompt)
        if not read:
            raise DraftError(f"{source} is empty: give at least one prompt")
        if unread:
            log.warning("%s: %s of messages not read, only role and content", source, ", ".join(sorted(unread)))
        if len(prompts) < len(read):
            log.warning("%s: dropped %d of %d, blank or repeated", source, len(read) - len(prompts), len(read))
        return prompts

    def _prompt(self, where: str, record: Any, prefix: str, set_name: str) -> Prompt:
        if not isinstance(record, Mapping):
            raise DraftError(f"{where} is not an object: write one with the field {self.prompt_field!r}")
        label, answer, turns = (record.get(key) for key in (self.id_field, self.answer_field, self.messages_field))
        _refuse_tools(where, record, turns)
        questions = self._questions(where, record) if turns is None else ()
        followups = questions[1:]
        messages = ask(self.template.replace("{prompt}", questions[0])) if questions else _conversation(where, turns)
        prompt = Prompt(
            id=f"{prefix}/{digest([*messages, *followups]) if label is None else label}",
            set=_text(where, record, "set_field", self.set_field) if self.set_field else set_name,
            messages=messages,
            answer=None if answer is None else str(answer),
            followups=followups,
            where=where,
        )
        _refuse_half_characters(prompt)
        return prompt

    def _questions(self, where: str, record: Mapping[str, Any]) -> tuple[str, ...]:
        """The user turns of a record without messages, at least one."""
        return (_text(where, record, "prompt_field", self.prompt_field),)


@dataclass(kw_only=True)
class RecordPrompts(RecordReader):
    """Records to train on; val and test are held out of them unless they have records of their own.

    Args:
        train: use the first so many training prompts; None = all. Those of a smaller number are the first of a larger.
        val, test: prompts to hold out.
        limit: read this many records at most.
        seed: of the order of the prompts.
    """

    train: Count | None = None
    val: Natural = 64
    test: Natural = 64
    limit: Count | None = None
    seed: Seed = 0

    @abstractmethod
    def _sources(self) -> dict[str, tuple[str, Records]]:
        """Name and records of train, and of val and test where they need not be held out of train."""

    def _deal(self) -> dict[str, list[Prompt]]:
        sources, seen, splits = self._sources(), set[str](), dict[str, list[Prompt]]()
        for name in (name for name in SPLITS if name in sources):
            source, records = sources[name]
            stem = Path(source).stem
            limited, prefix = (islice(records, self.limit), stem) if name == "train" else (records, f"{stem}/{name}")
            splits[name] = self._read(source, limited, seen, prefix, stem)
        # By hash, not by place: new lines move few others, and the head of train is a fair sample of the file.
        train = sorted(splits["train"], key=lambda prompt: digest([self.seed, prompt.text]))
        most = max(1, len(train) // 4)
        for name, wanted in (("test", self.test), ("val", self.val)):
            if name not in sources:
                if wanted > most:
                    log.warning("prompts.%s cut from %d to %d, to leave enough to train on", name, wanted, most)
                held = max(0, min(wanted, most))
                splits[name], train = train[:held], train[held:]
        return splits | {"train": train[: self.train]}


def prompt_file(path: str) -> Path:
    """Raises DraftError where there is no such file."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise DraftError(f"no prompt file {file}: give the path of a .jsonl file")
    return file


def read_lines(path: Path) -> Records:
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        try:
            if line.strip():
                yield f"{path}:{number}", json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DraftError(f"{path}:{number} is not JSON ({error}): write one JSON object a line") from error


def load_rows(path: str, name: str | None, hub_split: str, revision: str | None) -> Any:
    """A `datasets.Dataset` of the hub, or of a local folder."""
    try:
        load = importlib.import_module("datasets").load_dataset
    except ImportError as error:
        raise DraftError("prompts from the hub need the datasets library: pip install draftopd[hub]") from error
    try:
        return load(path, name, split=hub_split, revision=revision)
    except (OSError, ValueError) as error:
        raise DraftError(f"cannot load {path} from the hub: {' '.join(str(error).split())}") from error


def _text(where: str, record: Mapping[str, Any], setting: str, field: str) -> str:
    if not isinstance(record.get(field), str):
        fields = ", ".join(map(str, record)) or "none"
        raise DraftError(f"{where} has no text in field {field!r} (fields: {fields}): set prompts.{setting}")
    return str(record[field])


def _refuse_tools(where: str, record: Mapping[str, Any], turns: Any) -> None:
    """Raises DraftError where a record has tools or calls of tools, which chat templates write, and we do not read."""
    named = [name for name in TOOLS if record.get(name) and (turns is not None or isinstance(record[name], list))]
    messages = turns if isinstance(turns, list) else []
    named += [name for name in CALLS if any(isinstance(m, Mapping) and m.get(name) for m in messages)]
    if named:
        raise DraftError(
            f"{where} has {named[0]}, and only texts are read: write them into the content of messages as the target's "
            "chat template does, or leave such records out"
        )


def _unread(turns: Any) -> set[str]:
    """Keys of messages that say something and are not read."""
    messages = [m for m in turns if isinstance(m, Mapping)] if isinstance(turns, list) else []
    return {key for m in messages for key, value in m.items() if value and key not in ("role", "content")}


def _refuse_half_characters(prompt: Prompt) -> None:
    """JSON can write one half of a pair of surrogates, which is no character, and no tokenizer takes it."""
    for text in (*prompt.said, prompt.id, prompt.set, prompt.answer or ""):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            half = f"\\u{ord(text[error.start]):04x}"
            raise DraftError(
                f"{prompt.where} holds {half}, half of a character: write the whole character, or leave it out"
            ) from error


def _conversation(where: str, messages: Any) -> Messages:
    """Without the assistant's last turn, which the target writes itself."""
    try:
        turns = [{"role": message["role"], "content": message["content"]} for message in messages]
    except (TypeError, KeyError):
        turns = []
    good = turns and all(turn["role"] in ROLES and isinstance(turn["content"], str) for turn in turns)
    asked = turns[:-1] if good and turns[-1]["role"] == "assistant" else turns
    if not good or not any(turn["role"] == "user" for turn in asked):
        raise DraftError(
            f"{where}: wrong messages: give role (one of {', '.join(ROLES)}) and content, with at least one user turn"
        )
    return tuple(asked)
