"""One response, handed out while it is made: what each step of its rollout commits."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from draftopd.decoding.batch import DecodingBatch, Response, RolloutOptions
from draftopd.decoding.ledger import Ledger
from draftopd.decoding.rollout import affordable_rows, required_capacity
from draftopd.decoding.settings import Decoding
from draftopd.drafters.base import Drafter
from draftopd.target.model import Target


@dataclass(frozen=True)
class Commit:
    """Tokens that one step added to a text."""

    tokens: list[int]
    accepted: int
    """so many of them, the first ones, were drafted; the rest is the target's own"""


@torch.no_grad()
def stream(
    target: Target, drafter: Drafter | None, prompt: Sequence[int], decoding: Decoding, ledger: Ledger, key: int = 0
) -> Iterator[Commit]:
    """The response that `rollout` writes for this prompt and key, step by step; the first is the prefill's.

    Whoever reads no further leaves the rest unwritten. The ledger has the seconds of `prefill` and `decode`, without
    those that the reader takes.

    Raises:
        DraftError: as `rollout`.
    """
    capacity = required_capacity(target, drafter, [prompt], decoding)
    affordable_rows(target, drafter, decoding, capacity=capacity, prompt=len(prompt), states=0)
    layers = () if drafter is None else drafter.layer_ids
    options = RolloutOptions(False, layers, [key], 0, ledger, lambda finished: None, Tensor.cpu)
    batch = DecodingBatch(target, drafter, decoding, options, rows=1, capacity=capacity, prefix=[])
    response = Response(0, prompt, key)
    with nullcontext() if drafter is None else drafter.evaluating():
        with ledger.timed("prefill"):
            batch.join([response])
        yield Commit(response.tokens[len(prompt) :], 0)
        while not bool(batch.done):
            before = len(response.tokens)
            with ledger.timed("decode"):
                batch.step()
            yield Commit(response.tokens[before:], response.accepted[-1] if response.accepted else 0)
