"""What ours, transformers' `generate` and vLLM make of the same prompts, counted by one definition."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from draftopd.checkpoints.spec import DrafterSpec
from draftopd.checkpoints.to_transformers import to_transformers
from draftopd.decoding.settings import Decoding
from draftopd.drafters.base import Drafter
from draftopd.errors import DraftError
from draftopd.evaluation.measure import roll
from draftopd.publishing.engines import METHODS
from draftopd.target.model import Target

PromptIds = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Served:
    """What an engine made of the prompts."""

    texts: list[list[int]]
    """prompt and response"""
    committed: list[list[int]]
    """tokens of each verification of a response, bonus included; those behind the response's end do not count"""

    @property
    def tau(self) -> float:
        """Tokens committed / verifications over all responses, without the prefill's token; NaN: no verification."""
        verifications = sum(map(len, self.committed))
        return sum(map(sum, self.committed)) / verifications if verifications else float("nan")


def ours(target: Target, drafter: Drafter | None, prompts: PromptIds, tokens: int) -> Served:
    traces = roll(target, drafter, prompts, Decoding(tokens, batch_size=8))
    return Served([trace.tokens.tolist() for trace in traces], [trace.committed.tolist() for trace in traces])


def full_head(drafter: Drafter) -> Drafter:
    """The same weights over the target's whole vocabulary."""
    whole = copy.deepcopy(drafter)
    whole.d2t = None
    return whole


def by_transformers(target: Target, drafter: Drafter, prompts: PromptIds, tokens: int) -> Served:
    """transformers' own loop, drafter class and caches; one prompt at a time."""
    assistant = to_transformers(drafter, target)
    stop = target.stop_tokens.tolist()
    texts, committed = [], []
    for prompt in prompts:
        ids, counter = torch.tensor([prompt], device=target.device), Commits()
        out = target.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            do_sample=False,
            eos_token_id=stop or None,
            pad_token_id=stop[0] if stop else 0,
            assistant_model=assistant,
            speculation_type="dflash",
            streamer=counter,
        )
        texts.append(out[0].tolist())
        committed.append(counter.sizes[2:])
    return Served(texts, committed)


class Commits(BaseStreamer):
    """How many tokens `generate` hands out at a time: the prompt, the prefill's token, those of each verification."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def put(self, value: Tensor) -> None:
        self.sizes.append(value.numel())

    def end(self) -> None:
        pass


def request(target: Target, drafter: Drafter, folder: Path, prompts: PromptIds, tokens: int) -> dict[str, Any]:
    source = target.model.config.name_or_path
    if not source:
        raise DraftError("the target was not loaded from a folder or hub id, so vLLM cannot load it")
    room = max(map(len, prompts)) + tokens + 2 * drafter.block_size  # vLLM drafts only where a whole block fits
    return {
        "target": source,
        "drafter": str(folder),
        "method": METHODS[DrafterSpec.of(drafter, target).kind],
        "prompts": [list(prompt) for prompt in prompts],
        "stop": target.stop_tokens.tolist(),
        "max_new_tokens": tokens,
        "max_model_len": room,
        "num_speculative_tokens": drafter.num_draft_tokens,
        "dtype": str(target.model.dtype).removeprefix("torch."),
    }


def from_vllm(prompts: PromptIds, responses: list[dict[str, Any]]) -> Served:
    """vLLM counts drafts that it accepted behind the end of the response; here they are cut off as in ours."""
    texts, committed = [], []
    for prompt, response in zip(prompts, responses, strict=True):
        texts.append([*prompt, *response["tokens"]])
        left, counts = len(response["tokens"]) - 1, []
        for accepted in response["accepted"]:
            counts.append(min(accepted + 1, left))
            left -= counts[-1]
        # a step without drafts commits one token
        committed.append([count for count in counts if count > 0] + [1] * left)
    return Served(texts, committed)
