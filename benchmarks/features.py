"""Stored texts in batches beside one by one: the target reads them for features, a drafter redrafts along them.

    python -m benchmarks.features CHECKPOINT SHARD

SHARD is a file of the cache of texts (`<cache_dir>/texts/<key>/00000.safetensors`) with the features that the drafter
reads. Every round does other texts of it, batched and one by one, in an order that changes from round to round; ratios
are taken within a round.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from benchmarks.bench import machine, pair, rounds_of, spread, versions
from safetensors.torch import load_file
from torch import Tensor

from draftopd.checkpoints.native import restore
from draftopd.command import one_line_errors
from draftopd.decoding.ledger import Ledger
from draftopd.decoding.reading import read_features
from draftopd.decoding.redraft import redraft
from draftopd.decoding.settings import Decoding
from draftopd.drafters.base import Drafter
from draftopd.errors import DraftError
from draftopd.target.model import Target
from draftopd.trace import Rollout, Trace
from draftopd.tracking.header import git_commit

NOTES = {
    "features": "the first tokens of texts, read by the target",
    "redraft": "drafted again along whole texts, features in memory; the target does not run",
    "batched": "at most batch_size texts in a forward, on a CPU at most reading.CPU_TOKENS tokens where they are read",
    "ratios": "one by one / batched, above 1 where batches are faster: of seconds, and of the process's CPU seconds, "
    "which other work on the machine does not lengthen",
    "largest_difference": "of features: of one value, over the largest value of its text",
}


def main(words: Sequence[str] | None = None) -> None:
    args = arguments(words)
    output = args.output or Path(__file__).parent / "results" / "features-cpu.json"
    with one_line_errors():
        run = restore(args.checkpoint)
        target, drafter = run.target, run.drafter
        texts = stored(args.shard, args.rounds * max(args.reads, args.redrafts), drafter.fc.in_features)
        results: dict[str, Any] = {
            "commit": git_commit(),
            "machine": machine(target.device),
            "versions": versions("torch", "transformers"),
            "pair": pair(args.checkpoint, target, drafter),
            "settings": {name: getattr(args, name) for name in ("batch_size", "reads", "redrafts", "tokens")},
            "notes": NOTES,
            "rounds": [],
        }
        for number in rounds_of(args.rounds, "rounds"):
            results["rounds"].append(one_round(target, drafter, texts, args, number))
            results["summary"] = summary(results["rounds"])
            output.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results["summary"]))


def one_round(
    target: Target, drafter: Drafter, texts: Sequence[Rollout], args: argparse.Namespace, number: int
) -> dict[str, Any]:
    sizes = {"one_by_one": Decoding(batch_size=1), "batched": Decoding(batch_size=args.batch_size)}
    order = list(sizes)[:: 1 if number % 2 == 0 else -1]

    def read(part: Sequence[Rollout], decoding: Decoding) -> list[Tensor]:
        tokens = [text.trace.tokens[: args.tokens] for text in part]
        return read_features(target, tokens, drafter.layer_ids, decoding, Ledger())

    def draft(part: Sequence[Rollout], decoding: Decoding) -> list[Rollout]:
        return redraft(target, drafter, part, decoding)

    clocks: dict[str, Any] = {"order": order}
    found: dict[str, list[Any]] = {}
    for name, work, count in (("features", read, args.reads), ("redraft", draft, args.redrafts)):
        if number == 0:
            work(texts[:2], sizes["batched"])  # what happens once in a process
        part = texts[number * count : (number + 1) * count]
        done = {way: timed(work, part, sizes[way]) for way in order}
        clocks[name] = {way: clock for way, (clock, _) in done.items()}
        found[name] = [result for _, result in done.values()]
    same = {"largest_difference": largest(*found["features"]), "differing_traces": differing(*found["redraft"])}
    return clocks | same


def stored(shard: Path, count: int, width: int) -> list[Rollout]:
    """The first texts of a file of the cache, with features [T, width]."""
    tensors = load_file(shard)
    lengths, nothing = tensors["lengths"].tolist(), torch.zeros(0, dtype=torch.long)
    if len(lengths) < count:
        raise DraftError(f"{shard} has {len(lengths)} texts, and {count} are wanted: lower --reads and --redrafts")
    if "features" not in tensors or tensors["features"].shape[1] != width:
        raise DraftError(f"{shard} has not the features that the drafter reads: take texts of the drafter's own run")
    pieces = zip(tensors["tokens"].long().split(lengths), tensors["prompt_lengths"].tolist(), strict=True)
    traces = [Trace(tokens, length, nothing, nothing.view(0, 0), nothing) for tokens, length in pieces]
    features = tensors["features"].split(lengths)
    return [Rollout(trace, f.float()) for trace, f in list(zip(traces, features, strict=True))[:count]]


def timed(work: Callable[..., Any], part: Sequence[Rollout], decoding: Decoding) -> tuple[dict[str, float], Any]:
    start, used = time.perf_counter(), time.process_time()
    found = work(part, decoding)
    return {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - used}, found


def largest(some: Sequence[Tensor], others: Sequence[Tensor]) -> float:
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in zip(some, others, strict=True))


def differing(some: Sequence[Rollout], others: Sequence[Rollout]) -> int:
    """Texts with other blocks; ties of the drafter's logits may be decided otherwise."""
    return sum(
        not (torch.equal(a.trace.anchors, b.trace.anchors) and torch.equal(a.trace.drafts, b.trace.drafts))
        for a, b in zip(some, others, strict=True)
    )


def summary(rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Median and quartiles over rounds."""
    ratios = {
        f"{work}_{clock}": spread([r[work]["one_by_one"][clock] / r[work]["batched"][clock] for r in rounds])
        for work in ("features", "redraft")
        for clock in ("seconds", "cpu_seconds")
    }
    return {
        "rounds": len(rounds),
        "ratios": ratios,
        "largest_difference": max(r["largest_difference"] for r in rounds),
        "differing_traces": sum(r["differing_traces"] for r in rounds),
    }


def arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="a drafter's checkpoint file")
    parser.add_argument("shard", type=Path, help="texts with the drafter's features")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--reads", type=int, default=200, help="texts that are read in a round")
    parser.add_argument("--redrafts", type=int, default=40, help="texts that are redrafted in a round")
    parser.add_argument("--tokens", type=int, default=64, help="of a text, at most, that are read")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--output", type=Path, help="default: results/features-cpu.json beside this file")
    return parser.parse_args(words)


if __name__ == "__main__":
    main()
