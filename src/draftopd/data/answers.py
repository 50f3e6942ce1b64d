"""`texts=jsonl`: the target's texts from a file of token ids, as an engine's batch mode writes it."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from draftopd.data.first_texts import FirstTexts, Source
from draftopd.data.writers import Elsewhere, TextSet, require_response, sampling_parameters
from draftopd.errors import DraftError
from draftopd.values.checked import checked
from draftopd.values.types import Name, Natural, NonNegative


class UnansweredError(DraftError):
    """Prompts without a response; they have been written down."""


@checked
@dataclass(frozen=True)
class Answers(Elsewhere):
    """A file with an object `{"prompt_token_ids": [...], "token_ids": [...]}` a line, in any order.

    Prompts that it lacks are written to a file of that name and `.todo`, with the parameters to sample with.

    Args:
        path: of the file. Where a prompt is there twice, the later line counts.
        check: texts that are held against the target here.
        tie: see `FirstTexts`.
    """

    path: Name
    check: Natural = 8
    tie: NonNegative | None = None

    def recipe(self) -> dict[str, Any]:
        return {"writer": "jsonl", "answers": self._read[0]}

    def prepare(self, texts: TextSet, shards: Sequence[int], title: str) -> None:
        """Raises UnansweredError where responses are missing, DraftError where one is not the target's."""
        index = [i for shard in shards for i in texts.shard(shard)]
        missing = [i for i in index if _key(texts.prompts[i]) not in self._read[1]]
        if missing:
            todo = self._note(texts, missing)
            raise UnansweredError(
                f"{self.path} has no response to {len(missing)} of {len(index)} prompts: they are in {todo}; let an "
                "engine answer them, add its answers to the file, and run again"
            )
        first, source = FirstTexts(texts, self.check, self.tie), Source(f"the engine that wrote {self.path}")
        for i in index:
            ids = self._ids(texts, i)
            require_response(
                ids, texts, f"{self.path}: the response to prompt {i}", "write it again, as the file .todo says"
            )
            first.check(i, ids, source)

    def ids(self, texts: TextSet, shard: int) -> list[list[int]]:
        return [self._ids(texts, i) for i in texts.shard(shard)]

    def _ids(self, texts: TextSet, index: int) -> list[int]:
        with self._file.open("rb") as file:
            file.seek(self._read[1][_key(texts.prompts[index])])
            return list(json.loads(file.readline())["token_ids"])

    @property
    def _file(self) -> Path:
        return Path(self.path).expanduser()

    @cached_property
    def _read(self) -> tuple[str, dict[str, int]]:
        """A digest of the responses, and where each prompt's line begins."""
        places, digest, at = dict[str, int](), hashlib.sha256(), 0
        for number, line in enumerate(self._file.open("rb") if self._file.exists() else (), 1):
            try:
                entry = json.loads(line)
                prompt, ids = entry["prompt_token_ids"], entry["token_ids"]
                if not all(type(token) is int for token in [*prompt, *ids]):
                    raise ValueError("an id is no whole number")
            except (KeyError, TypeError, ValueError) as error:
                raise DraftError(
                    f"{self.path} line {number} is no object with prompt_token_ids and token_ids, two lists of whole "
                    f"numbers ({type(error).__name__}: {error})"
                ) from error
            places[_key(prompt)] = at
            digest.update(line)
            at += len(line)
        return digest.hexdigest()[:16], places

    def _note(self, texts: TextSet, index: Sequence[int]) -> Path:
        """Adds prompts to those that are to be answered; those that have been are taken out."""
        path = self._file.with_name(f"{self._file.name}.todo")
        lines = [json.dumps(line) for line in self._todo(path, texts, index)]
        path.write_text("".join(f"{line}\n" for line in lines))
        return path

    def _todo(self, path: Path, texts: TextSet, index: Sequence[int]) -> Iterator[dict[str, Any]]:
        noted = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        fresh: list[dict[str, Any]] = [
            {
                "prompt_token_ids": list(texts.prompts[i]),
                "sampling_params": {**sampling_parameters(texts, i), "ignore_eos": True, "detokenize": False},
            }
            for i in index
        ]
        entries = {_key(entry["prompt_token_ids"]): entry for entry in [*noted, *fresh]}
        yield from (entry for key, entry in entries.items() if key not in self._read[1])


def _key(prompt: Sequence[int]) -> str:
    return hashlib.sha256(json.dumps(list(prompt)).encode()).hexdigest()
