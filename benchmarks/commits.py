"""Is this tree slower than an earlier commit? Decoding and optimizer steps of both, in processes that take turns.

    python -m benchmarks.commits COMMIT CHECKPOINT

Each process times what its own tree's benchmarks run: greedy decoding (plain, batch 1, batch 8), a step of SFT and one
of Draft-OPD. Ratios are of seconds, this tree's over the other's, taken within a round; who runs first changes
from round to round. The checkpoint has to be one that both can read: the older one's.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from benchmarks.bench import machine, rounds_of, spread, versions

from draftopd.tracking.header import git_commit

ROOT = Path(__file__).parents[1]
WORK = """
import json, statistics, sys, time, torch
from benchmarks.bench import opened
from benchmarks.decode_systems import ours
from benchmarks.train_step import module, prepare, run_steps

checkpoint, count, tokens = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
run, prompts = opened(checkpoint, "train", count, torch.device("cpu"))
seconds, texts = {}, []
for name, drafter, size in (("plain", None, 1), ("batch1", run.drafter, 1), ("batch8", run.drafter, 8)):
    system = ours(run.target, drafter, tokens, size)
    system(prompts[:2])
    start = time.perf_counter()
    done = system(prompts)
    seconds[name] = time.perf_counter() - start
    texts.append(done.texts)
work = prepare(run.target, run.drafter, prompts, tokens)
for name, objective, batch in (("sft_step", "cross_entropy", work.sft()), ("opd_step", "draft_opd", work.opd())):
    seconds[name] = statistics.median(run_steps(module(run.target, run.drafter, objective), [batch] * 6)[1:])
print(json.dumps({"seconds": seconds, "equal": texts[0] == texts[1] == texts[2], "tokens": sum(map(len, texts[0]))}))
"""


def main(words: Sequence[str] | None = None) -> None:
    args = arguments(words)
    output = args.output or ROOT / "benchmarks" / "results" / "commits-cpu.json"
    results: dict[str, Any] = {
        "commits": {"new": git_commit(), "old": args.commit},
        "machine": machine(torch.device("cpu")),
        "versions": versions("torch", "transformers", "lightning"),
        "settings": {"prompts": args.prompts, "max_new_tokens": args.tokens},
        "rounds": [],
    }
    with checked_out(args.commit) as old:
        trees = {"old": old, "new": ROOT}
        for number in rounds_of(args.rounds, "rounds"):
            order = list(trees) if number % 2 == 0 else list(trees)[::-1]
            results["rounds"].append({name: timed(trees[name], args) for name in order})
            results["ratios"] = ratios(results["rounds"])
            output.write_text(json.dumps(results, indent=1) + "\n")
    for name, ratio in results["ratios"].items():
        print(f"{name:<10} {ratio['median']:.3f} [{ratio['q1']:.3f}, {ratio['q3']:.3f}]  new / old, seconds")
    if not all(side["equal"] for turn in results["rounds"] for side in turn.values()):
        sys.exit(f"texts are not the plain greedy ones: see {output}")


def timed(tree: Path, args: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, "-c", WORK, str(Path(args.checkpoint).resolve()), str(args.prompts), str(args.tokens)]
    path = os.pathsep.join(map(str, (tree / "src", tree)))
    done = subprocess.run(command, cwd=tree, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{tree}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def ratios(rounds: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    names = rounds[0]["new"]["seconds"]
    return {name: spread([r["new"]["seconds"][name] / r["old"]["seconds"][name] for r in rounds]) for name in names}


@contextmanager
def checked_out(commit: str) -> Iterator[Path]:
    with TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        subprocess.run(["git", "worktree", "add", "--quiet", "--detach", str(tree), commit], cwd=ROOT, check=True)
        try:
            yield tree
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(tree)], cwd=ROOT, check=True)


def arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit", help="what this tree is compared with")
    parser.add_argument("checkpoint", help="a DFlash drafter's checkpoint file")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompts", type=int, default=8, help="of the drafter's training split")
    parser.add_argument("--tokens", type=int, default=48, help="longest response")
    parser.add_argument("--output", type=Path, help="default: results/commits-cpu.json beside this file")
    return parser.parse_args(words)


if __name__ == "__main__":
    main()
