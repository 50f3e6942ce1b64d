"""Time of a block by the length of the text, with and without a sliding window.

    python -m benchmarks.window --out benchmarks/results/window-cpu.json

Drafters of SmolLM2-135M's sizes with random weights: time does not depend on them. Lengths and windows take turns in
every round. Seconds are the processor's own where torch has one thread, so that a busy machine's waiting is left out.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

from draftopd.command import one_line_errors
from draftopd.drafters.base import Drafter, Propose
from draftopd.drafters.dflash import DFlash
from draftopd.drafters.dspark import DSpark
from draftopd.drafters.eagle3 import Eagle3
from draftopd.target.head import Head, TargetShape
from draftopd.tracking.header import git_commit, machine

SHAPE = TargetShape(
    hidden_size=576,
    intermediate_size=1536,
    num_attention_heads=9,
    num_key_value_heads=3,
    head_dim=64,
    rms_norm_eps=1e-5,
    rope_theta=100_000.0,
    num_layers=30,
    vocab_size=4096,
    mask_token_id=0,
)
KINDS: dict[str, Callable[..., Drafter]] = {
    "DFlash": lambda **words: DFlash(SHAPE, num_layers=2, block_size=8, num_taps=5, **words),
    "DSpark": lambda **words: DSpark(SHAPE, num_layers=2, block_size=8, num_taps=5, markov_rank=64, **words),
    "EAGLE-3": lambda **words: Eagle3(SHAPE, block_size=8, **words),
}


class Bench:
    """One drafter after a text, whose state is filled with random keys and values."""

    def __init__(self, make: Callable[..., Drafter], window: int | None, length: int) -> None:
        torch.manual_seed(0)
        self.drafter = make(window=window).eval()
        self.table = torch.randn(SHAPE.vocab_size, SHAPE.hidden_size)
        self.state = self.drafter.start(1, length + 8, torch.device("cpu"))
        features = torch.randn(1, length, self.drafter.fc.in_features)
        self.drafter.extend(self.state, features, torch.zeros(1, length, dtype=torch.long), self.embed)
        self.state.lengths += length
        self.head = self.drafter.head(lambda _: Head(self.table))

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.table[tokens]

    def draft(self) -> None:
        self.drafter.draft(self.state, torch.zeros(1, dtype=torch.long), self.embed, self.head, Propose())


@torch.no_grad()
def measure(kind: str, args: argparse.Namespace) -> dict[str, Any]:
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    settings = [(window, length) for window in (args.window, None) for length in args.lengths]
    benches = {setting: Bench(KINDS[kind], *setting) for setting in settings}
    seconds: dict[tuple[int | None, int], list[float]] = {setting: [] for setting in settings}
    for turn in range(args.rounds + 1):
        for setting, bench in benches.items():
            bench.draft()  # caches of the processor, as in decoding
            start = clock()
            bench.draft()
            seconds[setting] += [clock() - start] if turn else []
    out: dict[str, Any] = {"kind": kind}
    for window in (args.window, None):
        times = {length: median(seconds[window, length]) for length in args.lengths}
        ratio = times[max(args.lengths)] / times[min(args.lengths)]
        out["whole text" if window is None else "window"] = {"seconds": times, "longest_over_shortest": ratio}
    print(json.dumps(out), flush=True)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 4096])
    parser.add_argument("--rounds", type=int, default=21)
    args = parser.parse_args()
    settings = {key: value for key, value in vars(args).items() if key != "out"}
    found = [measure(kind, args) for kind in KINDS]
    document = {
        "git_commit": git_commit(),
        "machine": machine(),
        **settings,
        "threads": torch.get_num_threads(),
        "drafters": found,
    }
    args.out.write_text(json.dumps(document, indent=1))


if __name__ == "__main__":
    with one_line_errors():
        main()
