"""How fast is greedy decoding? Ours beside transformers, on one target, drafter and set of prompts.

    python -m benchmarks.decode CHECKPOINT

Every round runs every system once over the same prompts, in an order that changes from round to round; ratios are taken
within a round. Results are written after each round; the last line printed is one JSON object with the medians.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from benchmarks.bench import bars, machine, opened, pair, profiles, spread, versions
from benchmarks.decode_systems import Pass, Prompts, System, systems
from rich.console import Console
from rich.progress import Progress

from draftopd.checkpoints.native import Restored
from draftopd.command import one_line_errors
from draftopd.evaluation import speed
from draftopd.evaluation.metrics import Acceptance
from draftopd.trace import Trace
from draftopd.tracking.header import git_commit

WARM_UP = 2  # prompts
PEERS = (
    "transformers",
    "transformers_our_layers",
    "prompt_lookup",
    "transformers_dflash",
    "transformers_dflash_our_layers",
)
PROFILED = ("plain", "transformers", "ours_batch1", "transformers_dflash")
RATIOS = {  # of tokens per second
    "plain_vs_transformers": ("plain", "transformers"),
    "plain_vs_transformers_our_layers": ("plain", "transformers_our_layers"),
    "batch1_vs_transformers_dflash": ("ours_batch1", "transformers_dflash"),
    "batch1_vs_transformers_dflash_our_layers": ("ours_batch1", "transformers_dflash_our_layers"),
    "batch1_full_head_vs_transformers_dflash": ("ours_batch1_full_head", "transformers_dflash"),
    "batch1_vs_plain": ("ours_batch1", "plain"),
    "batch8_vs_batch1": ("ours_batch8", "ours_batch1"),
}
PRINTED = ("plain_vs_transformers", "batch1_vs_transformers_dflash", "batch8_vs_batch1", "measured_vs_model")
NOTES = {
    "tokens_per_second": "response tokens of all prompts / seconds of the whole pass, prefill included",
    "transformers": "as it comes; the systems named our_layers run the same loop of transformers over our layers",
    "transformers_dflash": "transformers always reads drafts off the target's full head; ours_batch1 restricts it "
    "to the drafter's vocabulary, as it is shipped; ours_batch1_full_head drafts with the full head like transformers",
    "prompt_lookup": "as many candidates a step as the drafter drafts",
    "measured_vs_model": "(plain decode seconds a token / ours_batch1 decode seconds a token, both without prefill) / "
    "the speedup that the speed model predicts from costs measured in the same round",
    "differing_texts": "texts that are not the plain greedy text of the same round, token for token",
}


def main(words: Sequence[str] | None = None) -> None:
    args = arguments(words)
    device = torch.device(args.device)
    run, prompts = opened(args.checkpoint, "test", args.prompts, device)
    ways = systems(run.target, run.drafter, args.tokens)
    output = args.output or Path(__file__).parent / "results" / f"decode-{device.type}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {**facts(run, args, prompts), "notes": NOTES, "rounds": []}
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("warming up", total=(args.rounds + 1) * len(ways))
        for way in ways.values():
            way(prompts[:WARM_UP])
            progress.advance(task)
        for number in range(args.rounds):
            progress.update(task, description=f"round {number + 1} of {args.rounds}")
            results["rounds"].append(
                one_round(run, ways, prompts, number, args.repeats, lambda: progress.advance(task))
            )
            results["summary"] = summary(results["rounds"])
            output.write_text(json.dumps(results, indent=1) + "\n")
    picture(results, output.with_suffix(".png"))
    if args.profile:
        runs = {f"{name}, {WARM_UP} prompts": partial(ways[name], prompts[:WARM_UP]) for name in PROFILED}
        output.with_suffix(".profile.txt").write_text(profiles(runs))
    ratios = results["summary"]["ratios"]
    print(json.dumps({name: round(ratios[name]["median"], 3) for name in PRINTED}))
    if results["summary"]["differing_texts"]:
        sys.exit(f"{results['summary']['differing_texts']} texts are not the plain greedy text: see {output}")


def one_round(
    run: Restored,
    ways: dict[str, System],
    prompts: Prompts,
    number: int,
    repeats: int,
    advance: Callable[[], None],
) -> dict[str, Any]:
    names = list(ways)
    shift = 2 * number % len(names)  # by two: with few rounds, every system still stands early and late
    passes, timings, model = {}, {}, {}
    for name in names[shift:] + names[:shift]:
        start = time.perf_counter()
        passes[name] = ways[name](prompts)
        timings[name] = timing(passes[name], prompts, time.perf_counter() - start)
        if name == "ours_batch1":
            model = model_speedup(run, passes[name].traces, repeats)
        advance()
    ratios = {
        name: timings[a]["tokens_per_second"] / timings[b]["tokens_per_second"] for name, (a, b) in RATIOS.items()
    }
    measured = timings["plain"]["decode_seconds_per_token"] / timings["ours_batch1"]["decode_seconds_per_token"]
    ratios["measured_vs_model"] = measured / model["predicted"]
    return {
        "order": list(passes),
        "systems": {name: timings[name] for name in names},
        "differing_texts": {name: differing(passes[name].texts, passes["plain"].texts) for name in names},
        "decode_speedup": {"measured": measured, **model},
        "ratios": ratios,
    }


def timing(done: Pass, prompts: Prompts, seconds: float) -> dict[str, Any]:
    tokens = sum(len(text) - len(prompt) for text, prompt in zip(done.texts, prompts, strict=True))
    out: dict[str, Any] = {"seconds": seconds, "tokens": tokens, "tokens_per_second": tokens / seconds}
    if done.seconds:
        out |= {f"{phase}_seconds": value for phase, value in done.seconds.items()}
        # the first token of a response comes with the prefill
        out["decode_seconds_per_token"] = done.seconds["decode"] / (tokens - len(prompts))
    return out | {"acceptance_length": done.acceptance_length}


def model_speedup(run: Restored, traces: Sequence[Trace], repeats: int) -> dict[str, Any]:
    """What the speed model says of decoding without prefill, from costs measured now and the acceptance of `traces`."""
    size = run.drafter.block_size
    metric = Acceptance(size - 1)
    metric.update(traces)
    values = metric.compute()
    accept_at = [float(values.get(f"accept_at/{k}", 0.0)) for k in range(1, size)]
    half = [trace.tokens[: trace.prompt_length + trace.response_length // 2].tolist() for trace in traces]
    text = sorted(half, key=len)[len(half) // 2]
    costs = speed.costs(run.target, run.drafter, text, [size], repeats=repeats)
    return {"predicted": speed.predict(costs, accept_at)[size], "accept_at": accept_at, "costs": asdict(costs)}


def differing(texts: list[list[int]], plain: list[list[int]]) -> list[int]:
    """Indices of the prompts whose texts differ."""
    return [index for index, pair in enumerate(zip(texts, plain, strict=True)) if pair[0] != pair[1]]


def summary(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Median and quartiles over rounds; acceptance lengths do not change from round to round."""
    first = rounds[0]["systems"]
    lengths = {name: system["acceptance_length"] for name, system in first.items()}
    return {
        "rounds": len(rounds),
        "ratios": {name: spread([r["ratios"][name] for r in rounds]) for name in rounds[0]["ratios"]},
        "tokens_per_second": {name: spread(column(rounds, name, "tokens_per_second")) for name in first},
        "decode_seconds_per_token": {
            name: spread(column(rounds, name, "decode_seconds_per_token"))
            for name, system in first.items()
            if "decode_seconds_per_token" in system
        },
        "acceptance_length": {name: length for name, length in lengths.items() if length is not None},
        "differing_texts": sum(len(texts) for r in rounds for texts in r["differing_texts"].values()),
    }


def column(rounds: list[dict[str, Any]], system: str, key: str) -> list[float]:
    return [r["systems"][system][key] for r in rounds]


def facts(run: Restored, args: argparse.Namespace, prompts: Prompts) -> dict[str, Any]:
    return {
        "commit": git_commit(),
        "machine": machine(torch.device(args.device)),
        "versions": versions("torch", "transformers"),
        "settings": {
            **pair(args.checkpoint, run.target, run.drafter),
            "target": f"{run.config.target._target_.rpartition('.')[2]}, {type(run.target.model).__name__}",
            "prompts": len(prompts),
            "prompt_tokens": sum(map(len, prompts)),
            "max_new_tokens": args.tokens,
            "temperature": 0.0,
            "cost_repeats": args.repeats,
        },
    }


def picture(results: dict[str, Any], path: Path) -> None:
    settings, rounds = results["settings"], results["rounds"]
    values = {name: column(rounds, name, "tokens_per_second") for name in rounds[0]["systems"]}
    millions = settings["target_parameters"] / 1e6
    what = f"{settings['target']} ({millions:.3g}M, {settings['dtype']}), greedy"
    work = f"prompts: {settings['prompts']}, new tokens: up to {settings['max_new_tokens']}, rounds: {len(rounds)}"
    computer = f"{results['machine']['processor']}, threads: {results['machine']['threads']}"
    bars(values, PEERS, "tokens per second", f"{what}\n{work}\n{computer}", path)


def arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="a DFlash drafter's checkpoint file")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompts", type=int, default=16, help="of the drafter's own test split")
    parser.add_argument("--tokens", type=int, default=48, help="longest response, at least 2")
    parser.add_argument("--repeats", type=int, default=15, help="measurements of each cost for the speed model")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--output", type=Path, help="default: results/decode-DEVICE.json beside this file")
    parser.add_argument("--profile", action="store_true", help="also write profiles of two systems beside the results")
    args = parser.parse_args(words)
    if min(args.rounds, args.prompts, args.repeats) < 1 or args.tokens < 2:
        parser.error("--rounds, --prompts and --repeats must be at least 1, --tokens at least 2")
    return args


if __name__ == "__main__":
    with one_line_errors():
        main()
