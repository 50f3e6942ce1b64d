"""Sliding windows of drafters: time of a block by the length of the text, and τ beyond the length of training.

    python -m benchmarks.window --out benchmarks/results/window-cpu.json
    python -m benchmarks.window --trained CHECKPOINT,CHECKPOINT --out benchmarks/results/window-tau-cpu.json

Time: drafters of SmolLM2-135M's sizes with random weights, on which it does not depend. Lengths and windows take turns
in every round. Seconds are the processor's own where torch has one thread: a busy machine's waiting is left out.

τ: trained drafters along the same texts of the target, of up to `--times` times `--length` new tokens. By the part of
the response in which a verification's anchor is, of texts that reach the last part; and of all texts, ended after
`--length` tokens and whole. Texts get easier or harder as they go on, so a drafter's last part over its first says
little by itself: it is held against that of the first drafter that is named, text by text. Tokens over verifications,
pooled; intervals by a bootstrap over prompts.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from draftopd.checkpoints.native import Restored, restore
from draftopd.command import one_line_errors
from draftopd.data.texts import TextCache
from draftopd.decoding.redraft import redraft
from draftopd.drafters.base import Drafter, Propose
from draftopd.drafters.dflash import DFlash
from draftopd.drafters.dflash2 import DFlash2
from draftopd.drafters.dspark import DSpark
from draftopd.drafters.eagle3 import Eagle3
from draftopd.errors import DraftError
from draftopd.evaluation.results import place
from draftopd.evaluation.stats import Bootstrap, ratio
from draftopd.target.head import Head, TargetShape
from draftopd.trace import Rollout
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
    "DFlash2": lambda **words: DFlash2(SHAPE, num_layers=2, block_size=8, num_taps=5, selector_rank=64, **words),
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


def texts_of(run: Restored, args: argparse.Namespace) -> list[Rollout]:
    """The target's greedy texts of test prompts with features, each ended after times * length tokens."""
    cache = TextCache(str(args.cache_dir))  # those of the run's own test, where it was one by redrafts
    decoding = replace(run.decoding, max_new_tokens=args.written or args.times * args.length)
    texts = cache.open(run.target, run.encoded("test", args.prompts), decoding, run.drafter.layer_ids)
    found = [ended(Rollout(texts[i], texts.features(i)), args.times * args.length) for i in range(len(texts))]
    return [text for text in found if text.trace.response_length > 1]


def ended(text: Rollout, length: int) -> Rollout:
    """Its first `length` new tokens."""
    end = text.trace.prompt_length + length
    features = None if text.features is None else text.features[:end]
    return Rollout(replace(text.trace, tokens=text.trace.tokens[:end]), features)


class Along:
    """Tokens and verifications of one drafter along texts, by the prompt."""

    def __init__(self, run: Restored, texts: Sequence[Rollout]) -> None:
        found = redraft(run.target, run.drafter, texts, run.decoding)
        self.traces = [rollout.trace for rollout in found]

    def tau(self, start: int = 0, end: int | None = None) -> Bootstrap:
        """Of verifications whose anchor is one of the response's tokens from `start` to before `end`."""
        tokens, blocks = list[float](), list[float]()
        for trace in self.traces:
            at = trace.anchors - trace.prompt_length
            inside = (at >= start) & (at < (len(trace.tokens) if end is None else end))
            tokens.append(float(trace.committed[inside].sum()))
            blocks.append(float(inside.sum()))
        return ratio(tokens, blocks)


def numbers(of: Bootstrap, null: float = 1.0) -> dict[str, float]:
    found = of.estimate(null)
    return {"value": found.mean, "low": found.low, "high": found.high}


def far_ones(texts: Sequence[Rollout], length: int, times: int) -> list[Rollout]:
    """Those with a last part."""
    return [text for text in texts if text.trace.response_length > (times - 1) * length + 1]


def beyond(run: Restored, texts: Sequence[Rollout], length: int, times: int) -> dict[str, Bootstrap]:
    """τ of one drafter by name of what it is of."""
    far = Along(run, far_ones(texts, length, times))
    parts = {f"part_{part + 1}": far.tau(part * length, (part + 1) * length) for part in range(times)}
    short = Along(run, [ended(text, length) for text in texts]).tau()
    whole = Along(run, texts).tau()
    last = parts[f"part_{times}"] / parts["part_1"]
    return {**parts, "last_over_first": last, "short": short, "whole": whole, "whole_over_short": whole / short}


def tau(args: argparse.Namespace) -> dict[str, Any]:
    first, drafters, found = restore(args.trained[0]), list[dict[str, Any]](), list[dict[str, Bootstrap]]()
    texts = texts_of(first, args)
    for checkpoint in args.trained:
        run = restore(checkpoint, target=first.target)
        if run.drafter.layer_ids != first.drafter.layer_ids:
            raise DraftError(
                f"{checkpoint} reads other layers than {args.trained[0]}: the texts' features are not its own"
            )
        found.append(beyond(run, texts, args.length, args.times))
        compared = {name: of / found[0][name] for name, of in found[-1].items()}
        drafters.append(
            {
                "checkpoint": place(checkpoint),
                "kind": type(run.drafter).__name__,
                "window": run.drafter.window,
                "trained_length": run.decoding.max_new_tokens,
                **{name: numbers(of) for name, of in found[-1].items()},
                "over_the_first_drafter": {name: numbers(of) for name, of in compared.items()},
            }
        )
        print(json.dumps(drafters[-1]), flush=True)
    lengths = {"texts": len(texts), "with_a_last_part": len(far_ones(texts, args.length, args.times))}
    return {**lengths, "prompt_tokens": median(text.trace.prompt_length for text in texts), "drafters": drafters}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--window", type=int, default=256, help="time: of the drafters that have one")
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 4096], help="time: tokens of the text")
    parser.add_argument("--rounds", type=int, default=21, help="time")
    parser.add_argument("--trained", type=lambda text: text.split(","), help="τ: checkpoints, instead of time")
    parser.add_argument("--length", type=int, default=64, help="τ: new tokens of the shorter training texts")
    parser.add_argument("--times", type=int, default=4, help="τ: the length of the texts over it")
    parser.add_argument("--prompts", type=int, help="τ: test prompts, all by default")
    parser.add_argument("--written", type=int, help="τ: limit under which the cache holds the texts, if it is another")
    parser.add_argument("--cache-dir", default="~/.cache/draftopd", help="τ: of the texts")
    args = parser.parse_args()
    of_time, of_tau = ("window", "lengths", "rounds"), ("length", "times", "prompts")
    settings = {name: getattr(args, name) for name in (of_tau if args.trained else of_time)}
    found = tau(args) if args.trained else {"drafters": [measure(kind, args) for kind in KINDS]}
    document = {
        "git_commit": git_commit(),
        "machine": machine(),
        **settings,
        "threads": torch.get_num_threads(),
        **found,
    }
    args.out.write_text(json.dumps(document, indent=1))


if __name__ == "__main__":
    with one_line_errors():
        main()
