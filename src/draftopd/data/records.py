"""Prompts from records (of a file, the rows of a data set): fields, held-out splits, what is left out."""

import importlib
import logging
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import Any

from draftopd.data import conversations
from draftopd.data.files import Records, stem
from draftopd.data.prompts import SPLITS, Messages, Prompt, Splits, ask, digest
from draftopd.errors import DraftError
from draftopd.values.types import Count, Natural, Seed, Template

log = logging.getLogger(__name__)
PROMPT = "prompt"  # the default of prompt_field
Group = list[Prompt]
"""prompts of one record, a later one with the turns of the earlier ones in it"""


@dataclass(kw_only=True)
class RecordReader(Splits):
    """Which fields of a record are read, and how."""

    prompt_field: str = PROMPT
    messages_field: str | None = "messages"
    id_field: str | None = "id"
    answer_field: str | None = "answer"
    set_field: str | None = None
    template: Template = "{prompt}"

    def _read(self, source: str, records: Records, seen: set[str], prefix: str, set_name: str) -> list[Group]:
        """Prompts that are neither blank nor `seen`, in order; says what is left out.

        Args:
            source: what the messages call it.
            seen: texts and ids so far; grows.
            prefix: of the ids.
            set_name: where `set_field` is None.
        """
        groups, unread, left, total, empty = list[Group](), set[str](), Counter[str](), 0, True
        for where, record in records:
            empty, group = False, self._prompts(where, record, prefix, set_name)
            total += len(group) or 1
            unread |= set(conversations.unread(conversations.turns(record, self.messages_field)))
            left += Counter(["without a question"] if not group else ())
            groups.append(_unseen(group, seen, left))
        if empty:
            raise DraftError(f"{source} is empty: give at least one prompt")
        if unread:
            log.warning("%s: %s of messages not read, only who says what", source, ", ".join(sorted(unread)))
        if left:
            reasons = ", ".join(f"{count} {reason}" for reason, count in left.items())
            log.warning("%s: %d of %d prompts left out: %s", source, left.total(), total, reasons)
        return [group for group in groups if group]

    def _prompts(self, where: str, record: Any, prefix: str, set_name: str) -> Group:
        """One for each turn of the assistant."""
        if not isinstance(record, Mapping):
            raise DraftError(f"{where} is not an object: write one with the field {self.prompt_field!r}")
        label, answer = (record.get(key) for key in (self.id_field, self.answer_field))
        asked, later = self._asked(where, record)
        if not asked:
            return []
        last = Prompt(
            id="",
            set=_text(where, record, "set_field", self.set_field) if self.set_field else set_name,
            messages=asked[-1],
            answer=None if answer is None else str(answer),
            followups=later,
            where=where,
        )
        earlier = [replace(last, messages=messages, answer=None) for messages in asked[:-1]]
        group = [replace(prompt, id=f"{prefix}/{_own_id(prompt, label)}") for prompt in (*earlier, last)]
        _refuse_half_characters(group[-1])  # it has all texts of the others
        return group

    def _asked(self, where: str, record: Mapping[str, Any]) -> tuple[list[Messages], tuple[str, ...]]:
        """What was said before each turn of the assistant; user turns after those."""
        turns = conversations.turns(record, self.messages_field)
        conversations.refuse_tools(where, record, turns)
        if turns is not None:
            return conversations.prompts_of(where, turns), ()
        first, *later = self._questions(where, record)
        return [ask(self.template.replace("{prompt}", first))], tuple(later)

    def _questions(self, where: str, record: Mapping[str, Any]) -> tuple[str, ...]:
        """The user turns of a record without messages, at least one."""
        task = conversations.instruction(record) if self.prompt_field == PROMPT and PROMPT not in record else None
        return (_text(where, record, "prompt_field", self.prompt_field) if task is None else task,)


@dataclass(kw_only=True)
class RecordPrompts(RecordReader):
    """Records to train on; val and test are held out of them unless they have records of their own.

    Conversations are trained on at every turn of the assistant, with the record's own turns before it. In val and test
    each is one prompt, its last: so prompts are independent of each other, as intervals over them assume.

    Args:
        train: use the first so many training prompts; None = all. Those of a smaller number are the first of a larger.
        val, test: records to hold out.
        records: read the first so many; None = all.
        seed: of the order of the prompts.
    """

    train: Count | None = None
    val: Natural = 64
    test: Natural = 64
    records: Count | None = None
    seed: Seed = 0

    @abstractmethod
    def _sources(self) -> dict[str, tuple[str, Records]]:
        """Name and records of train, and of val and test where they need not be held out of train."""

    @cached_property
    def _groups(self) -> dict[str, list[Group]]:
        """By source, in the order of dealing."""
        sources, seen, groups = self._sources(), set[str](), dict[str, list[Group]]()
        for name in (name for name in SPLITS if name in sources):
            source, records = sources[name]
            limited = islice(records, self.records) if name == "train" else records
            prefix = stem(source) if name == "train" else f"{stem(source)}/{name}"
            groups[name] = self._read(source, limited, seen, prefix, stem(source))
        # By hash, not by place: new lines move few others, and the head of train is a fair sample of the file.
        return groups | {"train": sorted(groups["train"], key=lambda group: self._place(group[-1]))}

    def _place(self, prompt: Prompt) -> str:
        return digest([self.seed, prompt.text])

    def _deal(self) -> dict[str, list[Prompt]]:
        splits = {name: _last(groups) for name, groups in self._groups.items()}
        train = self._groups["train"]
        most = max(1, len(train) // 4)
        for name, wanted in (("test", self.test), ("val", self.val)):
            if name not in splits:
                if wanted > most:
                    log.warning("prompts.%s cut from %d to %d, to leave enough to train on", name, wanted, most)
                held = max(0, min(wanted, most))
                splits[name], train = _last(train[:held]), train[held:]
        return splits | {"train": sorted((p for group in train for p in group), key=self._place)[: self.train]}

    def measured(self) -> list[Prompt]:
        return _last(self._groups.get("test", self._groups["train"]))


def _last(groups: Iterable[Group]) -> list[Prompt]:
    return [group[-1] for group in groups]


def _unseen(group: Group, seen: set[str], left: Counter[str]) -> Group:
    """Those that are neither blank nor seen; the others are counted by their reason."""
    found = []
    for prompt in group:
        if not prompt.messages[-1]["content"].strip():
            left["blank"] += 1
        elif prompt.text in seen:
            left["repeated"] += 1
        elif prompt.id in seen:
            raise DraftError(f"{prompt.where}: id {prompt.id} is taken: make ids unique or set prompts.id_field=null")
        else:
            seen |= {prompt.text, prompt.id}
            found.append(prompt)
    return found


def _own_id(prompt: Prompt, label: Any) -> str:
    if label is None:
        return digest([*prompt.messages, *prompt.followups])
    turn = sum(message["role"] == "user" for message in prompt.messages)
    return f"{label}/turn{turn}" if turn > 1 else str(label)


def load_rows(path: str, name: str | None, hub_split: str, revision: str | None) -> Any:
    """A `datasets.Dataset` of the hub, or of a local folder."""
    try:
        load = importlib.import_module("datasets").load_dataset
    except ImportError as error:
        raise DraftError("prompts from the hub need the datasets library: pip install draftopd[hub]") from error
    try:
        return load(path, name, split=hub_split, revision=revision)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise DraftError(
            f"cannot load {path} from the hub: {reason} (prompts.name and prompts.hub_split say which part is read)"
        ) from error


def _text(where: str, record: Mapping[str, Any], setting: str, field: str) -> str:
    if not isinstance(record.get(field), str):
        fields = ", ".join(map(str, record)) or "none"
        option = conversations.advice(record) if setting == "prompt_field" else f"prompts.{setting}"
        raise DraftError(f"{where} has no text in field {field!r} (fields: {fields}): set {option}")
    return str(record[field])


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
