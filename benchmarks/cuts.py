"""Fixed block sizes and blocks that are cut, by turns: tokens a second, drafts verified, acceptance length.

    python -m benchmarks.cuts CHECKPOINT[,CHECKPOINT] --out benchmarks/results/cuts-cpu.json

Costs and chances are fitted on validation prompts, then test prompts are decoded in alternating rounds, all settings
by turns in every round, batch 1 and 8. Every text is held against plain greedy decoding. Beside the clock of the wall
stands the processor's own (`cpu`), of one thread: on a busy machine it leaves the waiting out. `by_costs` is tokens a
second if each step took what the table of costs says, which no noise of the rounds reaches.
"""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch

from draftopd.checkpoints.native import Restored, restore
from draftopd.command import one_line_errors
from draftopd.decoding.cuts import Cuts
from draftopd.decoding.ledger import Ledger
from draftopd.decoding.rollout import rollout
from draftopd.evaluation import speed
from draftopd.evaluation.results import place
from draftopd.trace import Trace
from draftopd.tracking.header import header

CUT = "cut"


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


def drafts(traces: Sequence[Trace]) -> list[int]:
    """That each step verified."""
    full = [t.accepted * 0 + t.drafts.shape[1] if t.verified is None else t.verified for t in traces]
    return torch.cat(full).tolist()


def by_costs(traces: Sequence[Trace], cuts: Cuts, sequential: bool) -> float:
    """Tokens a second at batch 1 by the table of costs; drafting one by one, one more than is verified is drafted."""
    whole = len(cuts.draft) - 1
    at_most = traces[0].drafts.shape[1]
    seconds = sum(cuts.verify[m] + cuts.draft[min(m + 1, at_most) if sequential else whole] for m in drafts(traces))
    return sum(t.response_length - 1 for t in traces) / seconds


def summary(rounds: Sequence[dict[str, Any]], plain: list[list[int]]) -> dict[str, Any]:
    traces = rounds[0]["traces"]
    out: dict[str, Any] = {"texts_equal": all(one["texts"] == plain for one in rounds)}
    if len(traces[0].anchors):
        steps = sum(len(t.anchors) for t in traces)
        out["acceptance_length"] = sum(t.response_length - 1 for t in traces) / steps
        out["verified_tokens"] = 1 + sum(drafts(traces)) / steps
        out["lengths"] = torch.tensor(drafts(traces)).bincount(minlength=8).tolist()
    for name in ("tokens_per_second", "cpu"):
        values = [one[name] for one in rounds]
        quarter = quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
        out[name] = {"median": median(values), "quartiles": [quarter[0], quarter[2]], "rounds": values}
    return out


def ratios(rounds: dict[str, list[dict[str, Any]]], name: str) -> dict[str, Any]:
    """Of cut blocks to the fixed size that is fastest by this clock's median, round by round."""
    fixed = {key: median(one[name] for one in of) for key, of in rounds.items() if key not in (CUT, "1")}
    best = max(fixed, key=fixed.__getitem__)
    values = [a[name] / b[name] for a, b in zip(rounds[CUT], rounds[best], strict=True)]
    return {"best_fixed": best, "median": median(values), "rounds": values}


def measure(checkpoint: str, args: argparse.Namespace) -> dict[str, Any]:
    run = restore(checkpoint)
    fitting, prompts = run.encoded("val", args.fitting), run.encoded("test", args.prompts)
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    out: dict[str, Any] = {"checkpoint": place(checkpoint), "kind": type(run.drafter).__name__}
    for batch in args.batches:
        cuts = speed.fit_cuts(
            run.target, run.drafter, fitting, run.decoding, rows=batch, repeats=args.repeats, clock=clock
        )
        settings: dict[str, tuple[int, Cuts | None]] = {str(size): (size, None) for size in (1, *args.sizes)}
        settings[CUT] = (run.drafter.block_size, cuts)
        rounds: dict[str, list[dict[str, Any]]] = {key: [] for key in settings}
        for number in range(args.rounds):
            order = list(settings.items())
            for key, (size, of) in order[number % len(order) :] + order[: number % len(order)]:
                rounds[key].append(decode(run, prompts, batch, size, of))
        plain = rounds["1"][0]["texts"]
        found = {key: summary(of, plain) for key, of in rounds.items()}
        if batch == 1:
            sequential = cuts.draft[-1] > 1.5 * cuts.draft[1]
            for key, of in rounds.items():
                if key == "1":
                    continue
                table = cuts if key == CUT else replace(cuts, draft=cuts.draft[: int(key)])
                found[key]["by_costs"] = by_costs(of[0]["traces"], table, sequential)
        ratio = {name: ratios(rounds, name) for name in ("tokens_per_second", "cpu")}
        out[f"batch_{batch}"] = {"cuts": asdict(cuts), "settings": found, "cut_over_best_fixed": ratio}
        print(json.dumps({"kind": out["kind"], "batch": batch, **ratio}), flush=True)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("checkpoints")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--fitting", type=int, default=32, help="validation prompts")
    parser.add_argument("--sizes", type=int, nargs="+", default=[2, 3, 4, 5, 6, 7, 8])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=15, help="of each step that is timed")
    args = parser.parse_args()
    settings = {key: value for key, value in vars(args).items() if key not in ("out", "checkpoints")}
    drafters = []
    for checkpoint in args.checkpoints.split(","):
        drafters.append(measure(checkpoint, args))
        document = {**header(), **settings, "threads": torch.get_num_threads(), "drafters": drafters}
        args.out.write_text(json.dumps(document, indent=1))


if __name__ == "__main__":
    with one_line_errors():
        main()
