"""Sources of prompts, each split into train, val and test, and the encoding of prompts for the target."""

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

from transformers import PreTrainedTokenizerBase

from draftopd.data import templates
from draftopd.data.files import Records, prompt_file, read_file
from draftopd.data.prompts import Prompt, Splits, ask, interleave
from draftopd.data.records import RecordPrompts, load_rows
from draftopd.errors import DraftError
from draftopd.values.checked import checked
from draftopd.values.types import Count, Name, Natural, Seed

log = logging.getLogger(__name__)
POOL = 200_000  # questions a reasoning_gym task may give; some tasks make a list of this length
SEED_STRIDE = 1_000_003  # reasoning_gym seeds question i with seed + i: near seeds would share most questions
WORDS = ("red", "dog", "sun", "cat", "hat", "sea", "ice", "map", "box", "cup", "fox", "jar", "key", "net", "oak", "pen")


@checked
@dataclass
class ReasoningGymPrompts(Splits):
    """Questions of reasoning_gym's tasks, which take turns; made offline from a seed.

    Args:
        tasks: name -> options of the task; null or {}: its own defaults.
        train, val, test: questions over all tasks; test and val stay the same whatever `train` is.

    Raises:
        DraftError: no task, an unknown one, a refused option, or too few different questions.
    """

    tasks: Mapping[str, Mapping[str, Any] | None]
    train: Count
    val: Natural
    test: Natural
    seed: Seed = 0

    def _deal(self) -> dict[str, list[Prompt]]:
        if not self.tasks:
            raise DraftError("no reasoning_gym task: name at least one under prompts.tasks")
        streams = {name: self._questions(name, options or {}) for name, options in self.tasks.items()}
        return interleave(streams, test=self.test, val=self.val, train=self.train)

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
            yield Prompt(f"{name}/{index}", name, ask(item["question"]), item["answer"] and str(item["answer"]))


@checked
@dataclass
class TinyPrompts(Splits):
    train: Count = 16
    val: Natural = 4
    test: Natural = 4
    seed: Seed = 0

    def _deal(self) -> dict[str, list[Prompt]]:
        random = Random(self.seed)
        words = (random.sample(WORDS, 4) for _ in count())
        prompts = (Prompt(f"tiny/{i}", "tiny", ask(f"which is odd: {' '.join(w)}?")) for i, w in enumerate(words))
        return interleave({"tiny": prompts}, test=self.test, val=self.val, train=self.train)


@checked
@dataclass
class JsonlPrompts(RecordPrompts):
    """One JSON object a line, or an array of them: `prompt_field`, chat messages in `messages_field`, or a known shape.

    Args:
        path: of the training prompts; val and test are held out of them, unless they have files of their own.

    Raises:
        DraftError: no such file, no prompt in it, or a line that cannot be read; it is named.
    """

    path: Name
    val_path: Name | None = None
    test_path: Name | None = None

    def files(self) -> dict[str, Path]:
        """By split; raises DraftError where one is missing."""
        paths = {"train": self.path, "val": self.val_path, "test": self.test_path}
        return {name: prompt_file(path) for name, path in paths.items() if path is not None}

    def _sources(self) -> dict[str, tuple[str, Records]]:
        return {name: (str(file), read_file(file)) for name, file in self.files().items()}


@checked
@dataclass
class HubPrompts(RecordPrompts):
    """A data set of the Hugging Face hub, or a folder that `datasets` can load; needs the extra `hub`.

    Args:
        path, name, revision: as `datasets.load_dataset` takes them.
        hub_split: of the data set; our val and test are held out of it.

    Raises:
        DraftError: `datasets` is not installed, the data set cannot be loaded, or a row cannot be read.
    """

    path: Name
    name: str | None = None
    hub_split: Name = "train"
    revision: str | None = None

    def _sources(self) -> dict[str, tuple[str, Records]]:
        rows = load_rows(self.path, self.name, self.hub_split, self.revision)
        return {"train": (self.path, ((f"{self.path} row {index}", row) for index, row in enumerate(rows)))}


def encode(
    prompt: Prompt,
    tokenizer: PreTrainedTokenizerBase,
    enable_thinking: bool | None = None,
    max_length: int | None = None,
) -> list[int] | None:
    """Token ids up to where the target's answer begins, None where longer than max_length.

    Raises DraftError where the target's chat template or tokenizer refuses the messages, or makes nothing of them.
    """
    try:
        ids = templates.token_ids(prompt.messages, tokenizer, enable_thinking)
    except Exception as error:  # a template is a program of the model's publisher: it may raise anything
        reason = " ".join(str(error).split())[:200]
        raise DraftError(
            f"{prompt.name}: the target's chat template or tokenizer refuses it ({type(error).__name__}: {reason})"
        ) from error
    if not ids:
        raise DraftError(f"{prompt.name}: the target's chat template and tokenizer make no token of it")
    return ids if max_length is None or len(ids) <= max_length else None


def encode_all(
    prompts: Sequence[Prompt],
    tokenizer: PreTrainedTokenizerBase,
    enable_thinking: bool | None,
    max_length: int | None,
    setting: str,
) -> list[tuple[Prompt, list[int]]]:
    """Prompts and their token ids, without those that are too long; says how many, and what is read otherwise.

    Args:
        setting: the name of `max_length` in the config, for the message.

    Raises:
        DraftError: all are too long, one is refused (`encode`), or the chat template does not read what users say.
    """
    pairs = [(p, encode(p, tokenizer, enable_thinking, max_length)) for p in prompts]
    out = [(p, ids) for p, ids in pairs if ids is not None]
    if not out:
        raise DraftError(f"no prompts left: each of the {len(prompts)} is longer than {setting}={max_length} tokens")
    templates.check_reads_text(out[0][0].messages, tokenizer, enable_thinking)
    if len(out) < len(prompts):
        left_out = (len(prompts) - len(out), len(prompts), setting, max_length)
        log.warning("%d of %d prompts left out: longer than %s=%d tokens", *left_out)
    _say_special_tokens([p for p, _ in out], tokenizer)
    return out


def _say_special_tokens(prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase) -> None:
    tokens = [re.escape(token) for token in templates.special_tokens(tokenizer) if len(token) > 1]
    found = [(p, token) for p in prompts if tokens and (token := re.search("|".join(tokens), " ".join(p.said)))]
    if found:
        first, token = found[0]
        log.warning(
            "%d of %d prompts hold special tokens in their text, which the target reads as control tokens: the first "
            "is %s in %s",
            *(len(found), len(prompts), token.group(), first.name),
        )
