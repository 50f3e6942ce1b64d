"""What ours, transformers' `generate` and vLLM make of the same prompts, counted by one definition."""

import copy

import torch
from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from draftopd.checkpoints.to_transformers import to_transformers
from draftopd.decoding.settings import Decoding
from draftopd.drafters.base import Drafter
from draftopd.evaluation.measure import roll
from draftopd.publishing.audit import PromptIds, Served
from draftopd.target.model import Target


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
