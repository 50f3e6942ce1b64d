"""Where prompts come from, each source cut into train, val and test; and their encoding for the target."""

import hashlib
import importlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from itertools import count, cycle, islice
from pathlib import Path
from random import Random
from typing import Any, Protocol, cast

from transformers import PreTrainedTokenizerBase

from draftopd.errors import DraftError

log = logging.getLogger(__name__)
Messages = tuple[dict[str, str], ...]
Records = Iterable[tuple[str, Any]]  # each record after the place where it stands, for the error messages

SPLITS = ("test", "val", "train")  # in the order of dealing out: test stays the same whatever the size of train
ROLES = ("system", "user", "assistant", "tool")
STALE = 1000  # this many repeats in a row: a task has no more questions to give
POOL = 200_000  # questions that a reasoning_gym task may be asked for; some tasks make a list of this length
SEED_STRIDE = 1_000_003  # reasoning_gym seeds question i with seed + i: near seeds would share most questions
WORDS = ("red", "dog", "sun", "cat", "hat", "sea", "ice", "map", "box", "cup", "fox", "jar", "key", "net", "oak", "pen")


@dataclass(frozen=True)
class Prompt:
    id: str
    set: str
    messages: Messages
    answer: str | None = None

    @property
    def text(self) -> str:
        """What tells two prompts apart."""
        return json.dumps([(message["role"], message["content"].strip()) for message in self.messages])


class Prompts(Protocol):
    def split(self, name: str) -> list[Prompt]: ...

    @property
    def fingerprint(self) -> str: ...


class _Splits:
    def _deal(self) -> dict[str, list[Prompt]]:
        raise NotImplementedError

    @cached_property
    def _dealt(self) -> dict[str, list[Prompt]]:
        return self._deal()

    def split(self, name: str) -> list[Prompt]:
        if name not in SPLITS:
            raise DraftError(f"there is no split {name!r}: it is train, val or test")
        if not self._dealt[name]:
            sizes = ", ".join(f"{split} {len(self._dealt[split])}" for split in SPLITS)
            raise DraftError(f"no prompts in split {name} ({sizes}): raise prompts.{name} or give more prompts")
        return list(self._dealt[name])

    @cached_property
    def fingerprint(self) -> str:
        """Of the prompts themselves, so that every setting that changes them counts, and no other."""
        return _digest([[(p.id, p.set, p.messages, p.answer) for p in self._dealt[name]] for name in SPLITS])


@dataclass
class ReasoningGymPrompts(_Splits):
    tasks: Mapping[str, Mapping[str, Any] | None]  # each task's options; null: its own defaults
    train: int
    val: int
    test: int
    seed: int = 0

    def _deal(self) -> dict[str, list[Prompt]]:
        if not self.tasks:
            raise DraftError("no reasoning_gym task: name at least one under prompts.tasks")
        streams = {name: self._questions(name, options or {}) for name, options in self.tasks.items()}
        return _interleave(streams, test=self.test, val=self.val, train=self.train)

    def _questions(self, name: str, options: Mapping[str, Any]) -> Iterator[Prompt]:
        from reasoning_gym.factory import DATASETS, create_dataset  # a second of imports

        if name not in DATASETS:
            near = ", ".join(get_close_matches(name, DATASETS, cutoff=0.5)) or "none"
            raise DraftError(f"reasoning_gym has no task {name!r} (close matches: {near}): change prompts.tasks")
        try:
            dataset = create_dataset(name, seed=self.seed * SEED_STRIDE, size=POOL, **options)
        except (AssertionError, TypeError, ValueError) as error:
            raise DraftError(f"reasoning_gym refuses the options of prompts.tasks.{name}: {error}") from error
        for index in range(POOL):
            item = dataset[index]
            yield Prompt(f"{name}/{index}", name, _ask(item["question"]), item["answer"] and str(item["answer"]))


@dataclass
class TinyPrompts(_Splits):
    train: int = 16
    val: int = 4
    test: int = 4
    seed: int = 0

    def _deal(self) -> dict[str, list[Prompt]]:
        random = Random(self.seed)
        words = (random.sample(WORDS, 4) for _ in count())
        prompts = (Prompt(f"tiny/{i}", "tiny", _ask(f"which is odd: {' '.join(w)}?")) for i, w in enumerate(words))
        return _interleave({"tiny": prompts}, test=self.test, val=self.val, train=self.train)


@dataclass(kw_only=True)
class _Records(_Splits):
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

    def _sources(self) -> dict[str, tuple[str, Records]]:
        """Name and records of train, and of val and test where they need not be held out of train."""
        raise NotImplementedError

    def _deal(self) -> dict[str, list[Prompt]]:
        sources, seen = self._sources(), set[str]()
        splits = {name: self._read(name, *sources[name], seen) for name in SPLITS if name in sources}
        # By hash rather than by place: new lines move few others, and the head of train is a fair sample of the file.
        train = sorted(splits["train"], key=lambda prompt: _digest([self.seed, prompt.text]))
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
            prompt = self._prompt(Path(source).stem, where, record)
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

    def _prompt(self, stem: str, where: str, record: Any) -> Prompt:
        if not isinstance(record, Mapping):
            raise DraftError(f"{where} is not an object: write one with the field {self.prompt_field!r}")
        if "{prompt}" not in self.template:
            raise DraftError(f"prompts.template {self.template!r} leaves the prompt out: put {{prompt}} in it")
        label, answer, turns = (record.get(key) for key in (self.id_field, self.answer_field, self.messages_field))
        if turns is None:
            messages = _ask(self.template.replace("{prompt}", _text(where, record, "prompt_field", self.prompt_field)))
        else:
            messages = _conversation(where, turns)
        return Prompt(
            id=f"{stem}/{_digest(messages) if label is None else label}",
            set=_text(where, record, "set_field", self.set_field) if self.set_field else stem,
            messages=messages,
            answer=None if answer is None else str(answer),
        )


@dataclass
class JsonlPrompts(_Records):
    path: str
    val_path: str | None = None
    test_path: str | None = None

    def _sources(self) -> dict[str, tuple[str, Records]]:
        paths = {"train": self.path, "val": self.val_path, "test": self.test_path}
        return {name: (str(path), _lines(Path(path))) for name, path in paths.items() if path is not None}


@dataclass
class HubPrompts(_Records):
    path: str
    name: str | None = None
    hub_split: str = "train"
    revision: str | None = None

    def _sources(self) -> dict[str, tuple[str, Records]]:
        try:
            load = importlib.import_module("datasets").load_dataset
        except ImportError as error:
            raise DraftError("prompts=hub needs the datasets library: pip install draftopd[hub]") from error
        try:
            rows = load(self.path, self.name, split=self.hub_split, revision=self.revision)
        except (OSError, ValueError) as error:
            raise DraftError(f"cannot load {self.path} from the hub: {' '.join(str(error).split())}") from error
        return {"train": (self.path, ((f"{self.path} row {index}", row) for index, row in enumerate(rows)))}


def encode(
    prompt: Prompt,
    tokenizer: PreTrainedTokenizerBase,
    enable_thinking: bool | None = None,
    max_length: int | None = None,
) -> list[int] | None:
    """Token ids up to where the target's answer begins; None where longer than max_length."""
    messages = list(prompt.messages)
    if tokenizer.chat_template is None:
        ids = tokenizer("\n".join(message["content"] for message in messages)).input_ids
    else:
        # Only when asked for: some templates have a default of their own.
        options: dict[str, Any] = {} if enable_thinking is None else {"enable_thinking": enable_thinking}
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False, **options)
    return cast(list[int], ids) if max_length is None or len(ids) <= max_length else None


def _interleave(streams: Mapping[str, Iterator[Prompt]], **counts: int) -> dict[str, list[Prompt]]:
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


def _lines(path: Path) -> Records:
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


def _ask(question: str) -> Messages:
    return ({"role": "user", "content": question},)


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
