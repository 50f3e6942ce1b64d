"""Steps of decoding that are compiled once: fixed shapes, so that a GPU is given a whole step at a time.

A step of a small model is hundreds of launches, each of which costs the CPU more than the GPU. `mode="reduce-overhead"`
records them as one CUDA graph. That needs the same shapes and addresses in every step: caches of a fixed capacity, all
of which every forward sees under a mask (`RaggedCache.fixed`), and rows that stay when their responses have ended.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor

from draftopd.decoding.settings import Decoding

KINDS = 64  # of steps in a process; torch runs further ones uncompiled, and its own limit is 8
SLOTS = 64  # capacities are multiples: prompts of similar length share what was compiled


def capacity_of(positions: int, decoding: Decoding) -> int:
    """Of a row that needs this many positions."""
    return -(-positions // SLOTS) * SLOTS if decoding.compile else positions


def untimed(_phase: str) -> AbstractContextManager[None]:
    """Inside a compiled step there is no clock."""
    return nullcontext()


@cache
def compiled(compute: Callable[..., tuple[Tensor, ...]], backend: bool | str) -> Callable[..., tuple[Tensor, ...]]:
    """What a step computes. Every shape and kind of target and drafter is compiled at its first step."""
    how: dict[str, Any] = {"mode": "reduce-overhead"} if backend is True else {"backend": backend}
    step: Callable[..., tuple[Tensor, ...]] = torch.compile(compute, dynamic=False, **how)

    def run(*inputs: Any) -> tuple[Tensor, ...]:
        with torch._dynamo.config.patch(recompile_limit=KINDS):
            torch.compiler.cudagraph_mark_step_begin()
            # a CUDA graph's own outputs are overwritten by the next step
            return tuple(output.clone() for output in step(*inputs))

    return run
