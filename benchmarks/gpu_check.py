"""Does everything run on this GPU, and how fast? One command, six minutes at most, no network, no server of MLflow.

    python -m benchmarks.gpu_check             # where there is no GPU: the rehearsal, on a tiny pair
    python -m benchmarks.gpu_check --rehearse  # the rehearsal in any case

Parts (`gpu_parts.py`) run one after the other, each in a process of its own and up to its own limit of time, so that
one which fails or hangs takes nothing away from the others. Each writes NAME.json into the folder as it goes on, and
its output into NAME.log; summary.json says what became of all. The exit code is 1 unless all have passed.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
CHECKPOINT = ROOT / "outputs/bench/checkpoints/last.ckpt"
SECONDS = {
    "tests": 100,
    "decoding": 55,
    "compiled": 60,
    "redraft": 40,
    "training": 100,
}  # together less than six minutes
SHOWN = 20  # last lines of a failed part's output


@dataclass(frozen=True)
class Part:
    command: Sequence[str]
    """writes what it finds into the file whose name follows it"""
    seconds: float


def main(words: Sequence[str] | None = None) -> None:
    args = arguments(words)
    rehearse = args.rehearse or not torch.cuda.is_available()
    folder = args.output or ROOT / "outputs" / f"gpu-check-{'rehearsal' if rehearse else 'cuda'}"
    options = ["--rehearse"] if rehearse else []
    options += ["--checkpoint", str(args.checkpoint)] if args.checkpoint and not rehearse else []
    part = [sys.executable, "-m", "benchmarks.gpu_parts", *options]
    results = check({name: Part([*part, name], SECONDS[name]) for name in args.parts}, folder)
    (folder / "summary.json").write_text(json.dumps({"rehearsal": rehearse, "parts": results}, indent=1) + "\n")
    print(f"written: {folder}")
    if any(result["outcome"] != "passed" for result in results.values()):
        sys.exit(1)


def check(parts: Mapping[str, Part], folder: Path) -> dict[str, dict[str, Any]]:
    """Runs parts one after the other: of each its outcome, which is in its file too, its seconds and their limit."""
    folder.mkdir(parents=True, exist_ok=True)
    results = {}
    for name, part in parts.items():
        file, output = folder / f"{name}.json", folder / f"{name}.log"
        file.unlink(missing_ok=True)  # of an earlier check
        start = time.perf_counter()
        outcome = run([*part.command, str(file)], part.seconds, output)
        seconds = round(time.perf_counter() - start, 1)
        results[name] = {"outcome": outcome, "seconds": seconds, "limit_seconds": part.seconds}
        file.write_text(json.dumps({**results[name], "found": found(file)}, indent=1) + "\n")
        print(f"{name:<10} {outcome:<12} {seconds:6.1f} s of {part.seconds:.0f}", flush=True)
        if outcome == "failed":
            print("\n".join(output.read_text().splitlines()[-SHOWN:]), file=sys.stderr, flush=True)
    return results


def run(command: Sequence[str], seconds: float, output: Path) -> str:
    """What became of a process: passed, failed, or out of time; those that it has started end with it."""
    with output.open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT, start_new_session=True)
        try:
            return "passed" if process.wait(seconds) == 0 else "failed"
        except subprocess.TimeoutExpired:
            return "out of time"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def found(file: Path) -> Any:
    """What a part has written, if it came so far."""
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError):
        return None


def arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--parts", nargs="+", choices=list(SECONDS), default=list(SECONDS))
    add("--rehearse", action="store_true", help="on the CPU, with a tiny pair and few texts")
    add("--output", type=Path, help="a folder; default: gpu-check-cuda or gpu-check-rehearsal in outputs/")
    default = CHECKPOINT if CHECKPOINT.exists() else None
    add("--checkpoint", type=Path, default=default, help="a DFlash drafter of the default target; default: random")
    args = parser.parse_args(words)
    args.output = args.output and args.output.absolute()  # parts start elsewhere
    args.checkpoint = args.checkpoint and args.checkpoint.absolute()
    return args


if __name__ == "__main__":
    main()
