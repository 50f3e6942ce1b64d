"""How much is a GPU given piece by piece in one step of decoding? Counted from a profile, eager and compiled.

    python -m benchmarks.launches              # SmolLM2, plain and with a DFlash drafter of random weights
    python -m benchmarks.launches --tiny

On a GPU: launches of kernels and of CUDA graphs. On a CPU: operators that call no other and compute something, each of
which would be a launch, and the loops that inductor has made of them. These are counted where Python calls them: for a
profile inductor would write each one's name into its C++, and build the same loop of 30 layers 30 times.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from types import FrameType
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from draftopd.command import one_line_errors
from draftopd.decoding.batch import DecodingBatch
from draftopd.decoding.rollout import rollout
from draftopd.decoding.settings import Decoding
from draftopd.drafters.base import Drafter
from draftopd.drafters.dflash import DFlash
from draftopd.target import load
from draftopd.target.model import Target

LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx", "cudaGraphLaunch")
NOTHING = {  # operators that give a view or room, or look at numbers
    f"aten::{name}"
    for name in (
        *("alias", "as_strided", "detach", "empty", "empty_strided", "expand", "item", "lift_fresh", "permute"),
        *("resolve_conj", "resolve_neg", "result_type", "select", "slice", "squeeze", "t", "to", "transpose", "unbind"),
        *(
            "unflatten",
            "unsqueeze",
            "view",
            "_local_scalar_dense",
            "_unsafe_view",
            "_reshape_alias",
            "reshape",
            "is_nonzero",
            "chunk",
            "empty_like",
            "expand_as",
            "flatten",
            "narrow",
            "promote_types",
            "resize_",
            "split",
            "type_as",
            "view_as",
        ),
    )
}
WATCHED = 4  # the step of a rollout that is counted: CUDA graphs are recorded in those before
PROMPT = [5 + i % 60 for i in range(20)]
TINY = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 128}


def of_a_step(target: Target, drafter: Drafter | None, prompt: Sequence[int], compile: bool | str) -> int | None:
    """Launches of one step, batch size 1, with all that a step does besides the forwards; None = it ended before."""
    counts: list[int] = []

    class Watched(DecodingBatch):
        def step(self) -> None:
            if len(counts) != WATCHED - 1:
                counts.append(0)
                return super().step()
            activities = [ProfilerActivity.CPU]
            activities += [ProfilerActivity.CUDA] if target.device.type == "cuda" else []
            with Loops() as loops, profile(activities=activities) as profiler:
                super().step()
            counts.append(counted(profiler, target.device) + loops.count)

    tokens = (WATCHED + 1) * (1 if drafter is None else drafter.block_size)
    rollout(target, drafter, [prompt], Decoding(tokens, 1, compile=compile), kind=Watched)
    return counts[WATCHED - 1] if len(counts) >= WATCHED else None


def counted(profiler: Any, device: torch.device) -> int:
    events = profiler.events()
    if device.type == "cuda":
        return sum(event.name in LAUNCHES for event in events)
    return sum(computing(event) for event in events if event.cpu_parent is None)


def computing(event: Any) -> int:
    """Operators that compute, of this one and those that it calls; one that calls only views computes itself."""
    if event.name.startswith("aten::_scaled_dot_product"):
        return 1  # whatever it calls on a CPU
    inner = sum(computing(child) for child in event.cpu_children)
    return inner or int(event.name.startswith("aten::") and event.name not in NOTHING)


class Loops:
    """Counts inductor's compiled C++ loops, each of which is a function `kernel` of a module of its own."""

    def __init__(self) -> None:
        self.count = 0

    def __enter__(self) -> "Loops":
        sys.setprofile(self._called)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    def _called(self, _frame: FrameType, event: str, called: Any) -> None:
        self.count += event == "c_call" and called.__name__ == "kernel"


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compile", default="inductor", help="a backend of torch.compile, or cudagraphs' mode: true")
    parser.add_argument("--tiny", action="store_true", help="a tiny pair instead of SmolLM2")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    args = parser.parse_args(words)
    tiny = {"model_type": "llama", "num_hidden_layers": 4, **TINY}
    made = load.tiny(tiny, cpu_layers=False) if args.tiny else load.smollm2("~/.cache/draftopd", cpu_layers=False)
    target = made.to(args.device)
    drafter = DFlash(target.shape, num_layers=2, block_size=8, num_taps=1 if args.tiny else 5).to(args.device)
    compile = True if args.compile == "true" else args.compile
    for name, one in {"plain": None, "dflash": drafter}.items():
        start, found = time.perf_counter(), {}
        for how in (False, compile):
            found["eager" if not how else str(how)] = of_a_step(target, one, PROMPT, how)
        print(json.dumps({"step": name, **found, "seconds": round(time.perf_counter() - start)}), flush=True)


if __name__ == "__main__":
    with one_line_errors():
        main()
