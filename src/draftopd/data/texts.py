"""The target's own texts, written once per (target, prompts, decoding, writer) and stored on disk in shards.

Several processes may use one cache at a time; the first that reaches a shard writes it.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from safetensors import safe_open
from torch import Tensor

from draftopd.console import progress
from draftopd.data import storage
from draftopd.data.journal import Journal
from draftopd.data.writers import LocalTarget, TextSet, Writer
from draftopd.decoding.ledger import Ledger
from draftopd.decoding.settings import Decoding
from draftopd.errors import DraftError
from draftopd.target.model import Target
from draftopd.trace import Trace
from draftopd.values.checked import checked
from draftopd.values.types import Count, FloatType, Name

FORMAT = 2


@checked
@dataclass(frozen=True)
class TextCache:
    """Where texts are stored.

    Args:
        folder: the cache; each set of texts has a folder of its own below it.
        features_dtype: precision of stored features, or None to store only token ids and run the target over the texts
            of every training step. Features take 2 bytes · F a token in bfloat16.
        shard_size: texts a file; an interrupted run loses at most one shard.
        charged: a run's ledger and budget pay for the training texts that it reads, as if it had written them: for
            comparisons with runs that write their own. Otherwise the texts count in no run.
        writer: the target in this process, or someone else whose ids it reads.
    """

    folder: Name
    features_dtype: FloatType | None = "bfloat16"
    shard_size: Count = 256
    charged: bool = False
    writer: Writer = LocalTarget()  # noqa: RUF009 - it has no state

    def open(
        self,
        target: Target,
        prompts: Sequence[Sequence[int]],
        decoding: Decoding,
        layer_ids: Sequence[int],
        title: str = "target writes texts",
    ) -> "Texts":
        """The texts of these prompts, in order; a shard is written when one of its texts is first asked for."""
        texts = self.find(target, prompts, decoding, layer_ids, title)
        try:
            texts.folder.mkdir(parents=True, exist_ok=True)
            texts.require_space()
        except OSError as error:
            where = "(set cache_dir to another folder)"
            raise DraftError(f"cannot store texts in {texts.folder}: {error} {where}") from error
        with storage.replacing(texts.folder / "recipe.json", "set cache_dir to another folder") as part:
            part.write_text(texts.recipe)
        return texts

    def find(
        self,
        target: Target,
        prompts: Sequence[Sequence[int]],
        decoding: Decoding,
        layer_ids: Sequence[int],
        title: str = "target writes texts",
    ) -> "Texts":
        """The same without a folder for them: to see which there are. Nothing is written."""
        layer_ids = tuple(layer_ids) if self.features_dtype else ()
        recipe = {
            "format": FORMAT,
            "target": target.fingerprint,
            "prompts": hashlib.sha256(json.dumps([list(p) for p in prompts]).encode()).hexdigest()[:16],
            "max_new_tokens": decoding.max_new_tokens,
            "sampling": decoding.recipe,
            "stop_tokens": target.stop_tokens.tolist(),
            "layer_ids": layer_ids,
            "features_dtype": self.features_dtype,
            "shard_size": self.shard_size,
            **self.writer.recipe(),
        }
        key = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]
        folder = Path(self.folder).expanduser() / "texts" / key
        stored = (layer_ids, self.features_dtype, self.shard_size)
        words = json.dumps(recipe, indent=1)
        return Texts(folder, target, prompts, decoding, *stored, writer=self.writer, title=title, recipe=words)


@dataclass(kw_only=True)
class Texts(TextSet):
    """Texts by index; those that are not on disk yet are written."""

    writer: Writer
    title: str
    """of the progress bar while texts are written"""
    recipe: str
    """what they depend on, as JSON"""
    ledger: Ledger = field(default_factory=Ledger)
    """what writing has cost in this process"""
    _loaded: dict[int, list[Trace]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, index: int) -> Trace:
        """The text as a trace without blocks; raises DraftError where its shard is damaged."""
        return self._shard(index // self.shard_size)[index % self.shard_size]

    def features(self, index: int) -> Tensor | None:
        """[T, F] in the stored precision, memory-mapped from the file; None when only ids are stored."""
        if self.features_dtype is None:
            return None
        shard, place = divmod(index, self.shard_size)
        traces = self._shard(shard)
        first = sum(len(t.tokens) for t in traces[:place])
        with safe_open(self.path(shard), "pt") as file:
            return file.get_slice("features")[first : first + len(traces[place].tokens)]

    def write(self, count: int | None = None) -> None:
        """Makes sure that the first `count` texts, default all, exist; processes that call it share the work."""
        self._write(self._shards(count))

    def require_space(self) -> None:
        """Raises DraftError where the disk cannot hold the texts that are still to be written."""
        need = self.size(self.missing())
        free = shutil.disk_usage(self.folder).free
        if need > free:
            raise DraftError(
                f"the texts may need {need / 1e9:.2f} GB in {self.folder} and {free / 1e9:.2f} GB are free: set "
                "cache_dir to another disk, or texts.features_dtype=null to store only token ids"
            )

    def missing(self, count: int | None = None) -> list[Sequence[int]]:
        """Prompts of the first `count` texts, default all, that are still to be written; whole shards."""
        return [self.prompts[i] for s in self._shards(count) if not self.path(s).exists() for i in self.shard(s)]

    def _shards(self, count: int | None) -> range:
        """Of the first `count` texts, default all."""
        return range(-(-min(len(self), len(self) if count is None else count) // self.shard_size))

    def size(self, prompts: Sequence[Sequence[int]]) -> int:
        """Bytes that the texts of these prompts may need on disk."""
        element = torch.empty((), dtype=self._dtype).element_size()
        width = 8 + element * self.target.config.hidden_size * len(self.layer_ids)
        return width * sum(len(prompt) + self.decoding.max_new_tokens for prompt in prompts)

    @property
    def _dtype(self) -> torch.dtype:
        return getattr(torch, self.features_dtype or "float32")

    def _write(self, shards: Iterable[int]) -> None:
        """Writes those that do not exist."""
        missing = [s for s in shards if not self.path(s).exists()]
        if not missing:
            return
        self.writer.prepare(self, missing, self.title)
        with progress(self.writer.reads or self.title, sum(len(self.shard(s)) for s in missing)) as on_done:
            for patience in (0, -1):  # shards that others are writing come last: by then they may exist
                for shard in missing:
                    lock = FileLock(self.folder.parent / f"{self.folder.name}-{shard:05d}.lock", timeout=patience)
                    with suppress(Timeout), lock:
                        if not self.path(shard).exists():
                            self._save(shard, on_done)

    def _save(self, shard: int, on_done: Callable[[int], None]) -> None:
        results = self.writer.responses(self, shard, self.ledger, on_done)
        tensors = {
            "tokens": torch.cat([r.trace.tokens for r in results]).int(),
            "lengths": torch.tensor([len(r.trace.tokens) for r in results]),
            "prompt_lengths": torch.tensor([r.trace.prompt_length for r in results]),
        }
        if features := [r.features for r in results if r.features is not None]:
            tensors["features"] = torch.cat(features).to(self._dtype)
        storage.save(tensors, self.path(shard))
        Journal(self).drop(shard)

    def _shard(self, shard: int) -> list[Trace]:
        if shard not in self._loaded:
            self._write([shard])
            storage.check(self.path(shard))
            nothing = torch.zeros(0, dtype=torch.long)
            with safe_open(self.path(shard), "pt") as file:
                pieces = file.get_tensor("tokens").long().split(file.get_tensor("lengths").tolist())
                prompt_lengths = file.get_tensor("prompt_lengths").tolist()
            self._loaded[shard] = [
                Trace(tokens, length, nothing, nothing.view(0, 0), nothing, drafter_step=-1)
                for tokens, length in zip(pieces, prompt_lengths, strict=True)
            ]
        return self._loaded[shard]
