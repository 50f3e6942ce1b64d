"""Stops tiny runs by every signal in every place, resumes them, and compares them with runs that were not stopped.

`python tests/kills.py [number]` prints a table of the first so many; every run is a process of its own. With
`TMPDIR` on another file system than the current folder, checkpoints and temporary files lie on two.
"""

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch

from draftopd import fit
from draftopd.data import storage
from draftopd.training import trace_sources
from draftopd.training.callbacks import AcceptanceLength
from draftopd.training.module import DraftModule
from runs import UNTIMED

ON_POLICY = ("experiment=smoke/draft_opd", "budget.epochs=3")
RUNS = {
    "sft": ("experiment=smoke/sft", "budget.epochs=2"),
    "rollouts": ON_POLICY,
    "redrafts": (*ON_POLICY, "traces=redrafts"),
    "mixed": (*ON_POLICY, "data=mixed", "data.own_share_end=0.2", "callbacks=ema"),
    "reused": (*ON_POLICY, "traces.reuse=2"),
    "flops": (*ON_POLICY, "budget.epochs=null", "budget.flops=1.1e9"),
    "target tokens": (*ON_POLICY, "budget.epochs=null", "budget.target_tokens=6600"),
    "steps": (*ON_POLICY, "budget.epochs=null", "budget.steps=3"),
}
PLACES: dict[str, tuple[Any, str]] = {
    "step": (DraftModule, "_sides"),
    "after a step": (DraftModule, "_log_step"),
    "rollout": (trace_sources, "_timed"),
    "validation": (AcceptanceLength, "on_validation_epoch_end"),
    "save": (storage, "_sync"),
    "test": (AcceptanceLength, "on_test_epoch_end"),
}


@dataclass(frozen=True)
class Kill:
    """The signal arrives at the so many-th call of a place."""

    place: str
    call: int
    signal: signal.Signals

    def arm(self, patch: Callable[[Any, str, Any], None]) -> None:
        owner, name = PLACES[self.place]
        original: Callable[..., Any] = getattr(owner, name)
        calls = [0]

        def meet(*args: Any, **options: Any) -> Any:
            planning = self.place == "step" and args[0]._trainer is None  # the plan times a step before the run
            calls[0] += not planning
            if calls[0] == self.call and not planning:
                signal.raise_signal(self.signal)
            return original(*args, **options)

        patch(owner, name, meet)


def ending(folder: Path) -> dict[str, Any]:
    """What a run has come to, without what its clock says."""
    saved = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    best = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)
    (result,) = json.loads((folder / "results.json").read_text())["results"]
    curve = [{k: v for k, v in point.items() if k != "minutes"} for point in result["training"]["curve"]]
    return {
        "weights": {name: value.tolist() for name, value in saved["state_dict"].items()},
        "optimizer": [[v.tolist() for v in s.values()] for s in saved["optimizer_states"][0]["state"].values()],
        "step": (saved["global_step"], best["global_step"]),
        "ledger": {kind: saved["ledger"][kind] for kind in ("flops", "tokens")},
        "curve": curve,
        "answers": result["answers"],
    }


def process(words: tuple[str, ...], folder: Path, kill: Kill | None = None) -> int:
    """Runs the command in a process of its own; its exit code, or the signal that ended it as a negative number."""
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 70
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs start deaf to it
        log = os.open(f"{folder}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.argv = ["fit", f"hydra.run.dir={folder}", f"cache_dir={folder.parent}/cache", *words, *UNTIMED]
        if kill is not None:
            kill.arm(setattr)
        try:
            fit.main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        except BaseException:
            traceback.print_exc()
    finally:
        os._exit(code)


def all_kills() -> list[tuple[str, Kill]]:
    """Every run with every place and, in turns, signal; calls vary so that epochs and steps do."""
    numbers = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
    latest = {"step": 5, "after a step": 4, "rollout": 2, "validation": 2, "save": 6, "test": 1}
    pairs = [(run, place) for run, place in product(RUNS, PLACES) if (run, place) != ("sft", "rollout")]
    return [
        (run, Kill(place, 1 + at % latest[place] if run != "sft" else 1, numbers[(at + at // 3) % 3]))
        for at, (run, place) in enumerate(pairs)
    ]


def main() -> None:
    folder, whole = Path(mkdtemp(prefix="kills-", dir=".")).resolve(), dict[str, dict[str, Any]]()
    chosen = all_kills()[: int(sys.argv[1]) if len(sys.argv) > 1 else None]
    print(f"{'run':14}{'place':14}{'call':>4}  {'signal':9}{'ended':>6}  resumed")
    wrong = 0
    for number, (run, kill) in enumerate(chosen):
        if run not in whole:
            if process(RUNS[run], folder / run.replace(" ", "_")):
                raise SystemExit(f"{run} fails without any signal: {folder}")
            whole[run] = ending(folder / run.replace(" ", "_"))
        place = folder / f"{number:02d}"
        ended = process(RUNS[run], place, kill)
        code = process((*RUNS[run], "resume=auto"), place)
        found = ending(place) if code == 0 else {}
        parts = [part for part, value in whole[run].items() if found.get(part) != value]
        verdict = f"exit code {code}" if code else f"differs: {', '.join(parts)}" if parts else "equal"
        wrong += verdict != "equal"
        print(f"{run:14}{kill.place:14}{kill.call:4}  {kill.signal.name:9}{ended:6}  {verdict}", flush=True)
    print(f"{len(chosen) - wrong} of {len(chosen)} equal")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
