"""A run that was stopped, anywhere and by any signal, ends as the one that was not: bit for bit."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

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
    "flops": (*ON_POLICY, "budget.epochs=null", "budget.flops=1.2e8"),
    "steps": (*ON_POLICY, "budget.epochs=null", "budget.steps=3"),
}
PLACES: dict[str, tuple[Any, str]] = {
    "step": (DraftModule, "_sides"),
    "after a step": (DraftModule, "_log_step"),
    "rollout": (trace_sources, "_timed"),
    "validation": (AcceptanceLength, "on_validation_epoch_end"),
    "test": (AcceptanceLength, "on_test_epoch_end"),
}
CASES = [
    ("sft", "step", 3, signal.SIGINT),
    ("rollouts", "after a step", 3, signal.SIGTERM),
    pytest.param("sft", "validation", 1, signal.SIGTERM, marks=pytest.mark.slow),
    pytest.param("rollouts", "step", 6, signal.SIGINT, marks=pytest.mark.slow),
    pytest.param("rollouts", "rollout", 2, signal.SIGTERM, marks=pytest.mark.slow),
    pytest.param("rollouts", "validation", 2, signal.SIGINT, marks=pytest.mark.slow),
    pytest.param("rollouts", "test", 1, signal.SIGTERM, marks=pytest.mark.slow),
    pytest.param("redrafts", "after a step", 3, signal.SIGINT, marks=pytest.mark.slow),
    pytest.param("mixed", "after a step", 3, signal.SIGTERM, marks=pytest.mark.slow),
    pytest.param("mixed", "validation", 1, signal.SIGTERM, marks=pytest.mark.slow),
    pytest.param("reused", "after a step", 3, signal.SIGTERM, marks=pytest.mark.slow),
    pytest.param("reused", "validation", 1, signal.SIGINT, marks=pytest.mark.slow),
    pytest.param("flops", "after a step", 4, signal.SIGTERM, marks=pytest.mark.slow),
    pytest.param("flops", "validation", 2, signal.SIGINT, marks=pytest.mark.slow),
    pytest.param("steps", "validation", 2, signal.SIGTERM, marks=pytest.mark.slow),
    pytest.param("steps", "test", 1, signal.SIGINT, marks=pytest.mark.slow),
]


def ending(folder: Path) -> dict[str, Any]:
    """What a run has come to, without what its clock says."""
    saved = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    best = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)
    (result,) = json.loads((folder / "results.json").read_text())["results"]
    history = [{k: v for k, v in point.items() if k != "minutes"} for point in result["training"]["curve"]]
    return {
        "weights": {name: value.tolist() for name, value in saved["state_dict"].items()},
        "optimizer": [[v.tolist() for v in s.values()] for s in saved["optimizer_states"][0]["state"].values()],
        "step": (saved["global_step"], best["global_step"]),
        "ledger": {kind: saved["ledger"][kind] for kind in ("flops", "tokens")},
        "history": history,
        "answers": result["answers"],
    }


def stop(patch: pytest.MonkeyPatch, place: str, call: int, number: signal.Signals) -> None:
    """The signal arrives at so many calls of that place."""
    owner, name = PLACES[place]
    original: Callable[..., Any] = getattr(owner, name)
    calls = [0]

    def meet(*args: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] == call:
            signal.raise_signal(number)
        return original(*args, **options)

    patch.setattr(owner, name, meet)


@pytest.fixture(scope="module")
def whole() -> dict[str, dict[str, Any]]:
    """Endings of uninterrupted runs, made when first asked for."""
    return {}


@pytest.mark.parametrize(("run", "place", "call", "number"), CASES)
def test_a_stopped_run_ends_like_one_that_was_not(command, tmp_path, monkeypatch, whole, run, place, call, number):
    words = (*RUNS[run], *UNTIMED)
    if run not in whole:
        assert command(*words, "hydra.run.dir=whole") == 0
        whole[run] = ending(tmp_path / "whole")
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs start deaf to it
    try:
        with monkeypatch.context() as patch:
            stop(patch, place, call, number)
            assert command(*words, "hydra.run.dir=cut") == 128 + number
    finally:
        signal.signal(signal.SIGINT, handler)
    last = tmp_path / "cut" / "checkpoints" / "last.ckpt"
    assert command(*words, "hydra.run.dir=cut", f"resume={last}") == 0
    assert ending(tmp_path / "cut") == whole[run]
