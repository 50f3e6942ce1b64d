"""Responses that are not yet a file of the cache: a line each, added as it comes, so that no kill loses one."""

import json
from collections.abc import Iterable
from pathlib import Path

from draftopd.data.writers import TextSet
from draftopd.errors import DraftError


class Journal:
    """For each shard of a set of texts a file of JSON lines, until the shard is written."""

    def __init__(self, texts: TextSet) -> None:
        self.texts = texts

    def missing(self, shards: Iterable[int]) -> list[int]:
        """Texts that are neither here nor in their shard; one process at a time."""
        out = list[int]()
        for shard in shards:
            known = self.read(shard)  # first: whoever writes a shard drops the file after that
            out += [] if self.texts.path(shard).exists() else [i for i in self.texts.shard(shard) if i not in known]
        return out

    def read(self, shard: int) -> dict[int, list[int]]:
        """Responses by text; a last line that a kill has cut is taken out of the file."""
        path = self._path(shard)
        content = path.read_bytes() if path.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:
            path.write_bytes(whole)
        return {line["text"]: line["ids"] for line in map(json.loads, whole.splitlines())}

    def add(self, index: int, ids: list[int]) -> None:
        """Raises DraftError where the disk is full."""
        try:
            with self._path(index // self.texts.shard_size).open("a") as file:
                file.write(json.dumps({"text": index, "ids": ids}) + "\n")
        except OSError as error:
            raise DraftError(f"cannot write {error.filename}: {error} (set cache_dir to another disk)") from error

    def drop(self, shard: int) -> None:
        self._path(shard).unlink(missing_ok=True)

    def _path(self, shard: int) -> Path:
        return self.texts.path(shard).with_suffix(".jsonl")
