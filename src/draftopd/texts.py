"""The target's own texts, written once per (target, prompts, decoding) and kept on disk in shards."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from draftopd.errors import DraftError
from draftopd.ledger import Ledger
from draftopd.rollout import Decoding, rollout
from draftopd.target import Target
from draftopd.trace import Trace

FORMAT = 1


@dataclass(frozen=True)
class Texts:
    """Texts and, where they were stored, the features of their tokens (read from disk on demand)."""

    traces: list[Trace]
    places: list[tuple[Path, int]] | None = None
    """shard and first row of each text's features"""

    def __len__(self) -> int:
        return len(self.traces)

    def features(self, index: int) -> Tensor | None:
        """[T, F] in the stored precision; None when only ids are kept."""
        if self.places is None:
            return None
        path, first = self.places[index]
        with safe_open(path, "pt") as shard:
            return shard.get_slice("features")[first : first + len(self.traces[index].tokens)]


@dataclass(frozen=True)
class TextCache:
    """Where texts are kept.

    Args:
        folder: the cache; each set of texts has a folder of its own below it.
        features_dtype: precision of stored features, or None to store token ids alone and let every training step run
            the target over its texts. Features take 2 bytes · F a token in bfloat16.
        shard_size: texts a file; an interrupted run loses at most one shard.
    """

    folder: str
    features_dtype: str | None = "bfloat16"
    shard_size: int = 64

    def texts(
        self,
        target: Target,
        prompts: Sequence[Sequence[int]],
        decoding: Decoding,
        layer_ids: Sequence[int],
        ledger: Ledger | None = None,
        on_done: Callable[[int], None] = lambda finished: None,
    ) -> Texts:
        """One text per prompt, in order; only shards that are not there yet are written."""
        layer_ids = layer_ids if self.features_dtype else ()
        recipe = {
            "format": FORMAT,
            "target": target.fingerprint,
            "prompts": hashlib.sha256(json.dumps([list(p) for p in prompts]).encode()).hexdigest()[:16],
            "max_new_tokens": decoding.max_new_tokens,
            "layer_ids": list(layer_ids),
            "features_dtype": self.features_dtype,
            "shard_size": self.shard_size,
        }
        key = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]
        folder = Path(self.folder).expanduser() / "texts" / key
        shards = [
            (folder / f"{at // self.shard_size:05d}.safetensors", prompts[at : at + self.shard_size])
            for at in range(0, len(prompts), self.shard_size)
        ]
        missing = [part for path, part in shards if not path.exists()]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._require_space(folder, missing, decoding, target.config.hidden_size * len(layer_ids))
            (folder / "recipe.json").write_text(json.dumps(recipe, indent=1))
            for path, part in shards:
                if not path.exists():
                    self._write(path, target, part, decoding, layer_ids, ledger, on_done)
                else:
                    on_done(len(part))
        except OSError as error:
            raise DraftError(f"cannot keep texts in {folder}: {error} (texts.folder names the cache)") from error
        return self._load([path for path, _ in shards])

    def _require_space(self, folder: Path, missing: list, decoding: Decoding, width: int) -> None:
        bytes_a_token = 4 + width * (torch.empty((), dtype=self._dtype).element_size() if self.features_dtype else 0)
        tokens = sum(len(prompt) + decoding.max_new_tokens for part in missing for prompt in part)
        need, free = tokens * bytes_a_token, shutil.disk_usage(folder).free
        if need > free:
            raise DraftError(
                f"the texts may need {need / 1e9:.2f} GB in {folder} and {free / 1e9:.2f} GB are free: set cache_dir to "
                "another disk, or texts.features_dtype=null to keep token ids alone"
            )

    @property
    def _dtype(self) -> torch.dtype:
        return getattr(torch, self.features_dtype or "float32")

    def _write(self, path, target, prompts, decoding, layer_ids, ledger, on_done) -> None:
        keep = self.features_dtype is not None
        results = rollout(
            target, None, prompts, decoding, keep=keep, layer_ids=layer_ids, ledger=ledger, on_done=on_done
        )
        state = {
            "tokens": torch.cat([r.trace.tokens for r in results]).int(),
            "lengths": torch.tensor([len(r.trace.tokens) for r in results]),
            "prompt_lengths": torch.tensor([r.trace.prompt_length for r in results]),
        }
        if keep:
            state["features"] = torch.cat([r.features for r in results if r.features is not None]).to(self._dtype)
        unfinished = path.with_suffix(f".{os.getpid()}.tmp")
        try:
            save_file(state, unfinished)
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)

    def _load(self, paths: list[Path]) -> Texts:
        traces: list[Trace] = []
        places: list[tuple[Path, int]] = []
        nothing = torch.zeros(0, dtype=torch.long)
        for path in paths:
            with safe_open(path, "pt") as shard:
                lengths = shard.get_tensor("lengths").tolist()
                pieces = shard.get_tensor("tokens").long().split(lengths)
                first = 0
                for tokens, prompt_length in zip(pieces, shard.get_tensor("prompt_lengths").tolist(), strict=True):
                    traces.append(Trace(tokens, prompt_length, nothing, nothing.view(0, 0), nothing))
                    places.append((path, first))
                    first += len(tokens)
        return Texts(traces, places if self.features_dtype else None)
