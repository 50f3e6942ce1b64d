"""Who writes the target's texts: the target here, or someone else whose token ids the target here then reads."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from draftopd.decoding.ledger import Ledger
from draftopd.decoding.reading import read_features
from draftopd.decoding.rollout import rollout
from draftopd.decoding.settings import Decoding
from draftopd.errors import DraftError
from draftopd.target.model import Target
from draftopd.trace import Rollout, Trace


@dataclass
class TextSet:
    """Texts that share a folder of the cache: what is to be written, and what is stored of it."""

    folder: Path
    target: Target
    prompts: Sequence[Sequence[int]]
    decoding: Decoding
    layer_ids: tuple[int, ...]
    features_dtype: str | None
    shard_size: int

    def shard(self, number: int) -> range:
        """The texts of one file."""
        return range(number * self.shard_size, min((number + 1) * self.shard_size, len(self.prompts)))

    def path(self, number: int) -> Path:
        return self.folder / f"{number:05d}.safetensors"


class Writer(ABC):
    """Writes texts; whoever reads them does not know who wrote."""

    reads: str | None = None
    """the title while shards are made, where the texts are written before that"""

    def recipe(self) -> dict[str, Any]:
        """What gives its texts a folder of their own."""
        return {}

    def prepare(self, texts: TextSet, shards: Sequence[int], title: str) -> None:  # noqa: B027 - most need nothing
        """Has what must be there before these shards are made. Several processes may call it at a time."""

    @abstractmethod
    def responses(
        self, texts: TextSet, shard: int, ledger: Ledger, on_done: Callable[[int], None] = lambda finished: None
    ) -> list[Rollout]:
        """The texts of a shard, with features [T, F] where they are stored."""


class LocalTarget(Writer):
    """Plain decoding in this process."""

    def responses(
        self, texts: TextSet, shard: int, ledger: Ledger, on_done: Callable[[int], None] = lambda finished: None
    ) -> list[Rollout]:
        index = texts.shard(shard)
        return rollout(
            texts.target,
            None,
            [texts.prompts[i] for i in index],
            texts.decoding,
            keep_states=texts.features_dtype is not None,
            layer_ids=texts.layer_ids,
            keys=index,
            ledger=ledger,
            on_done=on_done,
        )


class Elsewhere(Writer):
    """Someone else chooses the tokens; their features come from the target here, which reads each text once."""

    reads = "target reads texts"

    @abstractmethod
    def ids(self, texts: TextSet, shard: int) -> list[list[int]]:
        """Responses of a shard that `prepare` has seen to."""

    def responses(
        self, texts: TextSet, shard: int, ledger: Ledger, on_done: Callable[[int], None] = lambda finished: None
    ) -> list[Rollout]:
        index, nothing = texts.shard(shard), torch.zeros(0, dtype=torch.long)
        tokens = [torch.tensor([*texts.prompts[i], *ids]) for i, ids in zip(index, self.ids(texts, shard), strict=True)]
        features: list[Tensor | None] = [None] * len(tokens)
        if texts.features_dtype is None:
            on_done(len(tokens))
        else:
            features[:] = _features(texts, tokens, ledger, on_done)
        return [
            Rollout(Trace(t, len(texts.prompts[i]), nothing, nothing.view(0, 0), nothing, drafter_step=-1), f)
            for i, t, f in zip(index, tokens, features, strict=True)
        ]


def _features(texts: TextSet, tokens: Sequence[Tensor], ledger: Ledger, on_done: Callable[[int], None]) -> list[Tensor]:
    """[T, F] as rollouts have them: none of the last token, which no forward of a rollout reads."""
    features = read_features(texts.target, tokens, texts.layer_ids, texts.decoding, ledger, on_done=on_done)
    for one in features:
        one[-1] = 0
    return features


def require_response(ids: Sequence[int], texts: TextSet, name: str, remedy: str) -> None:
    """Raises DraftError unless a response ends as the target's own does: with its first stop token, or at the limit.

    Args:
        name, remedy: of the message.
    """
    stop, limit = set(texts.target.stop_tokens.tolist()), texts.decoding.max_new_tokens
    wrong = next((i for i in ids if not 0 <= i < texts.target.vocab_size), None)
    early = next((at for at, token in enumerate(ids[:-1]) if token in stop), None)
    if wrong is not None:
        fault = f"holds token {wrong}, and the target has {texts.target.vocab_size}"
    elif early is not None:
        fault = f"goes on after stop token {ids[early]}"
    elif len(ids) > limit:
        fault = f"has {len(ids)} tokens, and the limit is {limit}"
    elif not ids or (len(ids) < limit and ids[-1] not in stop):
        fault = f"ends after {len(ids)} of {limit} tokens and not with a stop token ({sorted(stop)})"
    else:
        return
    raise DraftError(f"{name} {fault}: {remedy}")


def sampling_parameters(texts: TextSet, index: int) -> dict[str, Any]:
    """How an engine is to write a text, in the words of vLLM and SGLang.

    All are given, because engines take what is not from the model's generation_config.json.
    """
    decoding = texts.decoding
    seed = {} if decoding.greedy else {"seed": (decoding.seed * 1_000_003 + index) % 2**31}
    return {
        "max_tokens": decoding.max_new_tokens,
        "temperature": decoding.temperature,
        "top_k": -1 if decoding.greedy or decoding.top_k is None else decoding.top_k,
        "top_p": 1.0 if decoding.greedy or decoding.top_p is None else decoding.top_p,
        "min_p": 0.0 if decoding.greedy or decoding.min_p is None else decoding.min_p,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "stop_token_ids": texts.target.stop_tokens.tolist(),
        **seed,
    }
