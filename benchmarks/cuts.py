"""Fixed block sizes and blocks that are cut, by turns: tokens a second, drafts verified, acceptance length.

    python -m benchmarks.cuts CHECKPOINT[,CHECKPOINT] --out benchmarks/results/cuts-cpu.json

Costs and chances are fitted on validation prompts, then test prompts are decoded in alternating rounds, all settings
by turns in every round, batch 1 and 8. Every text is held against plain greedy decoding. Beside the clock of the wall
stands the processor's own (`cpu`), of one thread: on a busy machine it leaves the waiting out. `by_costs` follows more
texts without the target, and adds up what each step takes by the table of costs. `--longest` cuts longer blocks than
those that the drafter was trained with: where every draft costs a forward, what is not drafted is not paid for.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from torch import Tensor

from draftopd.checkpoints.native import Restored, restore
from draftopd.command import one_line_errors
from draftopd.decoding.cuts import Chance, Cuts, Cutter, log_odds
from draftopd.decoding.ledger import Ledger
from draftopd.decoding.rollout import rollout
from draftopd.drafters.base import Propose
from draftopd.drafters.dflash import DFlash
from draftopd.drafters.markov import MarkovDrafter
from draftopd.evaluation import speed
from draftopd.evaluation.results import place
from draftopd.trace import Trace
from draftopd.tracking.header import git_commit, machine

CUT, KNOWING = "cut", "knowing"  # the second knows what will be accepted: no cut gains more at the same acceptance


class BothClocks(Ledger):
    """Also counts the processor's seconds."""

    def __init__(self) -> None:
        super().__init__()
        self.cpu = dict[str, float]()

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        start = time.process_time()
        with super().timed(phase):
            yield
        self.cpu[phase] = self.cpu.get(phase, 0.0) + time.process_time() - start


def decode(run: Restored, prompts: Sequence[list[int]], batch: int, size: int, cuts: Cuts | None) -> dict[str, Any]:
    """One round of one setting; size 1 = plain decoding."""
    ledger, decoding = BothClocks(), replace(run.decoding, batch_size=batch)
    with run.drafter.blocks_of(max(2, size)):
        drafter = None if size == 1 else run.drafter
        results = rollout(run.target, drafter, prompts, decoding, ledger=ledger, cuts=cuts)
    traces = [result.trace for result in results]
    tokens = sum(trace.response_length - 1 for trace in traces)
    return {
        "traces": traces,
        "texts": [trace.tokens.tolist() for trace in traces],
        "tokens_per_second": tokens / ledger.seconds["decode"],
        "cpu": tokens / ledger.cpu["decode"],
    }


class Recorder(Propose):
    """Keeps what a cut reads, [B, n] of each call."""

    def __init__(self) -> None:
        self.evidence: list[Tensor] = []

    def __call__(self, logits: Tensor, confidence: Callable[[], Tensor] | None = None) -> Tensor:
        self.evidence.append(log_odds(logits) if confidence is None else confidence())
        return super().__call__(logits)


@dataclass(frozen=True)
class Blocks:
    """Of one text and one block size: the block that decoding would draft after each token of the response."""

    held: list[int]
    """leading drafts that are the text"""
    chances: list[Tensor]
    """[1, K] of each, to be accepted if those before were"""


@torch.no_grad()
def everywhere(run: Restored, text: Trace, features: Tensor, size: int, cuts: Cuts) -> Blocks:
    """All blocks of a text in one forward, each as a row whose state ends at its anchor; features [1, T, F]."""
    drafter, target, tokens = run.drafter, run.target, text.tokens
    anchors = torch.arange(text.prompt_length, len(tokens) - 1)
    one = drafter.start(1, len(tokens), target.device)
    drafter.extend(one, features, tokens[None].roll(-1, 1), target.embed)
    state = drafter.start(len(anchors), len(tokens), target.device)
    state.put(slice(None), one)
    state.lengths = anchors
    recorder = Recorder()
    with drafter.blocks_of(size):
        drafts = drafter.draft(state, tokens[anchors], target.embed, drafter.head(target.head), recorder)
    after = anchors[:, None] + torch.arange(1, size)
    held = (drafts == tokens[after.clamp(max=len(tokens) - 1)]) & (after < len(tokens))
    chances = cuts.chance(torch.cat(recorder.evidence, 1), 0)
    return Blocks(held.long().cumprod(1).sum(1).tolist(), list(chances.split(1)))


def walk(blocks: Blocks, cuts: Cuts, how: str, *, at_once: bool) -> tuple[int, int, float]:
    """Steps of greedy decoding at batch 1, the drafts that it verifies, and its seconds by the table of costs."""
    at, seconds, steps, verified = 0, 0.0, 0, 0
    while at < len(blocks.held):
        chance, held = blocks.chances[at], blocks.held[at]
        length = drafted = chance.shape[1]
        if how == CUT:
            cutter = Given(cuts)
            for part in [chance] if at_once else chance.split(1, 1):
                cutter(part)
                if cutter.ended:
                    break
            length, drafted = cutter.length, cutter.known
        elif how == KNOWING:
            enough = range(max(1, held), length + 1)
            length = min(enough, key=lambda m: cuts.verify[m] + (0 if at_once else cuts.draft[m]))
            drafted = drafted if at_once else length
        seconds += cuts.verify[length] + cuts.draft[drafted]
        at += min(held, length) + 1
        steps, verified = steps + 1, verified + length
    return steps, verified, seconds


class Given(Cutter):
    """A cut of one block by chances that are known."""

    def __init__(self, cuts: Cuts) -> None:
        super().__init__(replace(cuts, chance=Known(*vars(cuts.chance).values())), torch.ones(1, dtype=torch.bool))

    @property
    def known(self) -> int:
        return len(self._reach)


class Known(Chance):
    def __call__(self, evidence: Tensor, first: int) -> Tensor:
        return evidence


def by_costs(run: Restored, texts: Sequence[Trace], sizes: Sequence[int], longest: int, cuts: Cuts) -> dict[str, Any]:
    """Every setting along the texts, which greedy decoding writes whatever the blocks are; `longest` ones are cut."""
    out = dict[str, Any]()
    at_once = isinstance(run.drafter, DFlash) and not isinstance(run.drafter, MarkovDrafter)
    walks: dict[str, list[tuple[int, int, float]]] = {**{str(size): [] for size in sizes}, CUT: [], KNOWING: []}
    for text in texts:
        _, features = run.target.read(text.tokens[None], run.drafter.layer_ids)
        for size in sorted({*sizes, longest}):
            blocks = everywhere(run, text, features, size, cuts)
            for key in [str(size)] * (size in sizes) + [CUT, KNOWING] * (size == longest):
                walks[key].append(walk(blocks, cuts, key, at_once=at_once))
    tokens = sum(text.response_length - 1 for text in texts)
    for key, of in walks.items():
        steps, verified, seconds = (sum(part) for part in zip(*of, strict=True))
        out[key] = {
            "acceptance_length": tokens / steps,
            "verified_tokens": 1 + verified / steps,
            "tokens_per_second": tokens / seconds,
        }
    best = max(map(str, sizes), key=lambda key: out[key]["tokens_per_second"])
    over = {key: out[key]["tokens_per_second"] / out[best]["tokens_per_second"] for key in (CUT, KNOWING)}
    return {"settings": out, "over_best_fixed": {"best_fixed": best, **over}}


def summary(rounds: Sequence[dict[str, Any]], plain: list[list[int]]) -> dict[str, Any]:
    traces = rounds[0]["traces"]
    out: dict[str, Any] = {"texts_equal": all(one["texts"] == plain for one in rounds)}
    if len(traces[0].anchors):
        steps = sum(len(t.anchors) for t in traces)
        out["acceptance_length"] = sum(t.response_length - 1 for t in traces) / steps
        sent = torch.cat([t.sent for t in traces])
        out["verified_tokens"] = 1 + float(sent.double().mean())
        out["lengths"] = sent.bincount(minlength=8).tolist()
    for name in ("tokens_per_second", "cpu"):
        out[name] = spread([one[name] for one in rounds])
    return out


def spread(values: list[float]) -> dict[str, Any]:
    quarter = quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return {"median": median(values), "quartiles": [quarter[0], quarter[2]], "rounds": values}


def ratios(rounds: dict[str, list[dict[str, Any]]], name: str) -> dict[str, Any]:
    """Of cut blocks to the fixed size that is fastest by this clock's median, round by round."""
    fixed = {key: median(one[name] for one in of) for key, of in rounds.items() if key != CUT}
    best = max(fixed, key=fixed.__getitem__)
    values = [a[name] / b[name] for a, b in zip(rounds[CUT], rounds[best], strict=True)]
    return {"best_fixed": best, **spread(values)}


def fit(run: Restored, longest: int, rows: int, args: argparse.Namespace) -> Cuts:
    """For blocks of up to `longest`."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    fitting, words = run.encoded("val", args.fitting), {"rows": rows, "repeats": args.repeats, "clock": clock}
    with run.drafter.blocks_of(longest):
        return speed.fit_cuts(run.target, run.drafter, fitting, run.decoding, **words)


def measure(checkpoint: str, args: argparse.Namespace) -> dict[str, Any]:
    run = restore(checkpoint)
    prompts, longest = run.encoded("test", args.prompts), args.longest or run.drafter.block_size
    run = replace(run, decoding=replace(run.decoding, max_new_tokens=args.tokens or run.decoding.max_new_tokens))
    out: dict[str, Any] = {"checkpoint": place(checkpoint), "kind": type(run.drafter).__name__, "longest": longest}
    if args.walked:
        cuts = fit(run, longest, 1, args)
        texts = [r.trace for r in rollout(run.target, run.drafter, run.encoded("test", args.walked), run.decoding)]
        with run.drafter.evaluating():
            out["by_costs"] = {"cuts": asdict(cuts), **by_costs(run, texts, args.sizes, longest, cuts)}
        print(out["kind"], json.dumps(out["by_costs"]), flush=True)
    for batch in args.batches if args.rounds else ():
        cuts = fit(run, longest, batch, args)
        settings: dict[str, tuple[int, Cuts | None]] = {str(size): (size, None) for size in args.sizes}
        settings[CUT] = (longest, cuts)
        rounds: dict[str, list[dict[str, Any]]] = {key: [] for key in settings}
        for number in range(args.rounds):
            order = list(settings.items())
            for key, (size, of) in order[number % len(order) :] + order[: number % len(order)]:
                rounds[key].append(decode(run, prompts, batch, size, of))
        plain = decode(run, prompts, batch, 1, None)["texts"]
        found = {key: summary(of, plain) for key, of in rounds.items()}
        ratio = {name: ratios(rounds, name) for name in ("tokens_per_second", "cpu")}
        out[f"batch_{batch}"] = {"cuts": asdict(cuts), "settings": found, "cut_over_best_fixed": ratio}
        print(json.dumps({"kind": out["kind"], "batch": batch, **ratio}), flush=True)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("checkpoints")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--walked", type=int, default=32, help="test prompts whose steps are only counted")
    parser.add_argument("--fitting", type=int, default=32, help="validation prompts")
    parser.add_argument("--tokens", type=int, help="at most so many new ones; the run's own number by default")
    parser.add_argument("--longest", type=int, help="block size that is cut; the drafter's own by default")
    parser.add_argument("--sizes", type=int, nargs="+", default=[2, 3, 4, 5, 6, 7, 8])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=15, help="of each step that is timed")
    args = parser.parse_args()
    settings = {key: value for key, value in vars(args).items() if key not in ("out", "checkpoints")}
    drafters = []
    for checkpoint in args.checkpoints.split(","):
        drafters.append(measure(checkpoint, args))
        document = {
            "git_commit": git_commit(),
            "machine": machine(),
            **settings,
            "threads": torch.get_num_threads(),
            "drafters": drafters,
        }
        args.out.write_text(json.dumps(document, indent=1))


if __name__ == "__main__":
    with one_line_errors():
        main()
