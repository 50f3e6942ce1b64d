"""What does an on-policy epoch's data cost? Rollouts beside drafting along texts that the target has written before.

    python -m benchmarks.redraft CHECKPOINT

Every round makes the same traces in every way, in an order that changes from round to round; ratios are taken within a
round. Results are written after each round; the last line printed is one JSON object with the medians.
"""

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from benchmarks.bench import bars, machine, spread, versions
from rich.console import Console
from rich.progress import Progress

from draftopd.command import one_line_errors
from draftopd.drafters.base import Drafter
from draftopd.errors import DraftError
from draftopd.ledger import Ledger
from draftopd.record import git_commit
from draftopd.redraft import redraft
from draftopd.restore import restore
from draftopd.rollout import Decoding, Rollout, rollout
from draftopd.target import Target
from draftopd.trace import Trace, collate_rollouts

Way = Callable[[Ledger], list[Trace]]
RATIOS = {  # of seconds
    "redraft_vs_rollout_b1": ("rollout_b1", "redraft"),
    "redraft_vs_rollout_b8": ("rollout_b8", "redraft"),
    "redraft_replay_vs_rollout_b1": ("rollout_b1", "redraft_replay"),
    "redraft_replay_vs_rollout_b8": ("rollout_b8", "redraft_replay"),
}
NOTES = {
    "rollout": "writes the responses again and keeps features and what judges the drafts, as training does",
    "redraft": "traces alone, from the texts and their features in memory; the target runs not at all",
    "redraft_replay": "and Target.replay of the new traces: everything that a rollout keeps. The target reads the "
    "texts and the rejected tails behind them",
    "texts": "written once, before the rounds and not timed with them",
    "ratios": "seconds of the rollout / seconds of the other, above 1 where the other is faster",
    "differing_traces": "traces that are not those of rollout_b1 of the same round",
}


def main(words: Sequence[str] | None = None) -> None:
    args = arguments(words)
    run = restore(args.checkpoint)
    device = torch.device(args.device)
    run.target.to(device)
    run.drafter.to(device)
    prompts = run.encoded("train", args.prompts)
    if len(prompts) < args.prompts:
        raise DraftError(f"the drafter's training split has {len(prompts)} prompts: lower --prompts={args.prompts}")
    ways = systems(run.target, run.drafter, prompts, args.tokens, args.micro_batch_size)
    output = args.output or Path(__file__).parent / "results" / f"redraft-{device.type}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {
        "commit": git_commit(),
        "machine": machine(device),
        "versions": versions("torch", "transformers"),
        "settings": {
            "target_parameters": run.target.model.num_parameters(),
            "dtype": str(run.target.model.dtype).removeprefix("torch."),
            "drafter": type(run.drafter).__name__,
            "checkpoint_sha256": hashlib.sha256(Path(args.checkpoint).read_bytes()).hexdigest()[:16],
            "block_size": run.drafter.block_size,
            "prompts": len(prompts),
            "prompt_tokens": sum(map(len, prompts)),
            "max_new_tokens": args.tokens,
            "micro_batch_size": args.micro_batch_size,
        },
        "notes": NOTES,
        "rounds": [],
    }
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("comparing", total=args.rounds * len(ways))
        for number in range(args.rounds):
            results["rounds"].append(one_round(ways, number, lambda: progress.advance(task)))
            results["summary"] = summary(results["rounds"])
            output.write_text(json.dumps(results, indent=1) + "\n")
    seconds = {name: [r["systems"][name]["seconds"] for r in results["rounds"]] for name in ways}
    title = f"Traces of {len(prompts)} prompts, up to {args.tokens} tokens"
    bars(seconds, ("rollout_b1", "rollout_b8"), "seconds", title, output.with_suffix(".png"))
    print(json.dumps({name: round(value["median"], 3) for name, value in results["summary"]["ratios"].items()}))
    if results["summary"]["differing_traces"]:
        sys.exit(f"{results['summary']['differing_traces']} traces are not those of the rollout: see {output}")


def systems(
    target: Target, drafter: Drafter, prompts: Sequence[Sequence[int]], max_new_tokens: int, micro_batch_size: int
) -> dict[str, Way]:
    """The ways to the traces of these prompts, by name; the target writes its texts first."""
    decoding = Decoding(max_new_tokens)
    texts = rollout(target, None, prompts, decoding, keep=True, layer_ids=drafter.layer_ids)

    def rolled(batch_size: int, ledger: Ledger) -> list[Trace]:
        size = Decoding(max_new_tokens, batch_size)
        return [r.trace for r in rollout(target, drafter, prompts, size, keep=True, ledger=ledger)]

    def redrafted(replay: bool, ledger: Ledger) -> list[Trace]:
        fresh = redraft(target, drafter, texts, decoding, ledger=ledger)
        drafted = [r for r in fresh if len(r.trace.anchors)]
        for at in range(0, len(drafted) if replay else 0, micro_batch_size):
            replayed(drafted[at : at + micro_batch_size], ledger)
        return [r.trace for r in fresh]

    def replayed(part: list[Rollout], ledger: Ledger) -> None:
        batch = collate_rollouts(part).to(target.device)
        ledger.replay(target, batch)
        target.replay(batch, drafter.layer_ids)

    return {
        "rollout_b1": partial(rolled, 1),
        "rollout_b8": partial(rolled, 8),
        "redraft": partial(redrafted, False),
        "redraft_replay": partial(redrafted, True),
    }


def one_round(ways: dict[str, Way], number: int, advance: Callable[[], None]) -> dict[str, Any]:
    names = list(ways)
    shift = number % len(names)
    done, traces = {}, {}
    for name in names[shift:] + names[:shift]:
        ledger, start = Ledger(), time.perf_counter()
        traces[name] = ways[name](ledger)
        seconds = time.perf_counter() - start
        tokens = sum(trace.response_length for trace in traces[name])
        done[name] = {
            "seconds": seconds,
            "response_tokens_per_second": tokens / seconds,
            "target_tokens": ledger.target_tokens,
            "flops": ledger.training_flops,
        }
        advance()
    return {
        "order": list(done),
        "systems": {name: done[name] for name in names},
        "differing_traces": {name: differing(traces[name], traces["rollout_b1"]) for name in names},
        "acceptance_length": acceptance_length(traces["rollout_b1"]),
        "ratios": {name: done[a]["seconds"] / done[b]["seconds"] for name, (a, b) in RATIOS.items()},
    }


def differing(traces: list[Trace], others: list[Trace]) -> list[int]:
    """Numbers of the prompts whose traces differ."""

    def same(a: Trace, b: Trace) -> bool:
        pairs = ((a.tokens, b.tokens), (a.anchors, b.anchors), (a.drafts, b.drafts), (a.accepted, b.accepted))
        return all(torch.equal(x, y) for x, y in pairs)

    return [i for i, pair in enumerate(zip(traces, others, strict=True)) if not same(*pair)]


def acceptance_length(traces: list[Trace]) -> float:
    """Mean over the responses in which something was drafted."""
    lengths = [trace.acceptance_length for trace in traces if len(trace.anchors)]
    return sum(lengths) / len(lengths) if lengths else float("nan")


def summary(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Median and quartiles over rounds; what is counted does not change from round to round."""
    systems = rounds[0]["systems"]
    return {
        "rounds": len(rounds),
        "ratios": {name: spread([r["ratios"][name] for r in rounds]) for name in RATIOS},
        "seconds": {name: spread([r["systems"][name]["seconds"] for r in rounds]) for name in systems},
        "target_tokens": {name: system["target_tokens"] for name, system in systems.items()},
        "flops": {name: system["flops"] for name, system in systems.items()},
        "acceptance_length": rounds[0]["acceptance_length"],
        "differing_traces": sum(len(found) for r in rounds for found in r["differing_traces"].values()),
    }


def arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="a drafter's checkpoint file")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompts", type=int, default=32, help="of the drafter's own training split")
    parser.add_argument("--tokens", type=int, default=128, help="longest response, at least 2")
    parser.add_argument("--micro-batch-size", type=int, default=8, help="texts of one replay")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--output", type=Path, help="default: results/redraft-DEVICE.json beside this file")
    args = parser.parse_args(words)
    if min(args.rounds, args.prompts, args.micro_batch_size) < 1 or args.tokens < 2:
        parser.error("--rounds, --prompts and --micro-batch-size must be at least 1, --tokens at least 2")
    return args


if __name__ == "__main__":
    with one_line_errors():
        main()
