"""The commands against an MLflow server that fails: no work is lost, and every run gets the end that it had."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from draftopd import evaluate
from draftopd.checkpoints.native import find_checkpoint
from draftopd.errors import DraftError
from draftopd.tracking import run, sender
from draftopd.tracking.run import Run
from mlflow_server import running, wait_for
from runs import runs

WORDS = ("experiment=smoke/sft", "budget.epochs=2", "test.speedup_prompts=0")


@pytest.fixture
def server(tmp_path: Path, command, monkeypatch):
    monkeypatch.setattr(sender, "PAUSE", 0.01)
    for module in (sender, run):
        monkeypatch.setattr(module, "PATIENCE", 0.5)
    with running(tmp_path / "artifacts") as made:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", made.uri)
        yield made


def test_a_run_is_finished_when_its_test_is_through_and_not_before(command, server):
    ends: list[tuple[str, bool]] = []

    def meet(call: str, body: dict[str, Any]) -> int:
        if call == "runs/update":
            tested = [m for m in server.runs[body["run_id"]]["metrics"] if m["key"] == "test/acceptance_length"]
            ends.append((body["status"], bool(tested)))
        return 200

    server.meet = meet
    assert command(*WORDS) == 0
    assert ends == [("FINISHED", True)]


@pytest.mark.slow
def test_training_outlives_its_server(command, server, tmp_path, capsys):
    batches: list[str] = []

    def meet(call: str, body: dict[str, Any]) -> int:
        batches.extend([call] * (call == "runs/log-batch"))
        return 200 if len(batches) < 5 else 503

    server.meet = meet
    assert command(*WORDS) == 0
    (logged,) = server.runs
    (checkpoint,) = tmp_path.rglob("last.ckpt")
    said = capsys.readouterr().out
    assert "warning: MLflow" in said
    assert f"the next run on this machine sends them; last checkpoint: {checkpoint}" in " ".join(said.split())
    assert server.runs[logged]["status"] == "RUNNING"
    server.meet = lambda call, body: 200
    Run(server.uri, "draftopd", "next", str(tmp_path / "next")).start().end("FINISHED")
    assert {r["status"] for r in server.runs.values()} == {"FINISHED"}
    assert len(server.values(logged, "train/loss")) > 2
    assert server.values(logged, "test/acceptance_length")
    assert {"config.yaml", "versions.json", "traces/examples.html", "results.json"} <= server.files(logged)


COMMANDS = {
    "one stage": (None, WORDS),
    "stages": (None, ("experiment=smoke",)),
    "evaluate": (evaluate.main, ("checkpoint=some.file",)),
}


@pytest.mark.parametrize("case", COMMANDS)
def test_a_server_that_is_down_is_told_before_any_work(command, server, tmp_path, capsys, case):
    (tmp_path / "some.file").touch()
    server.down()
    main, words = COMMANDS[case]
    assert command(*words, main=main) == 2
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert error.startswith(f"error: MLflow at {server.uri} cannot be used (Connection refused)")
    assert error.endswith("logger=none")
    assert not list(tmp_path.rglob("*.ckpt"))
    server.up()


def test_a_checkpoint_that_was_moved_is_named(server, tmp_path):
    tracked = Run(server.uri, "draftopd", "moved", str(tmp_path / "out")).start()
    tracked.log_tags({"checkpoint": f"{tmp_path}/out/last.ckpt"})
    tracked.end("FINISHED")
    with pytest.raises(DraftError, match=f"{tracked.id} is not at {tmp_path}/out/last.ckpt any more"):
        find_checkpoint(tracked.id, OmegaConf.create({"tracking_uri": server.uri}))


@pytest.mark.slow
def test_a_training_that_is_killed_ends_as_killed_at_the_next_start(command, server):
    words = ("experiment=smoke/sft", "budget.epochs=1000", "hydra.run.dir=killed")
    with subprocess.Popen([sys.executable, "-m", "draftopd.fit", *words], env=dict(os.environ)) as training:
        try:
            wait_for(lambda: any(logged["metrics"] for logged in list(server.runs.values())), 600)
        finally:
            training.kill()
    assert command(*WORDS) == 0
    assert [logged["status"] for logged in server.runs.values()] == ["KILLED", "FINISHED"]


@pytest.mark.slow
def test_jobs_of_a_sweep_make_a_new_store_together(command, tmp_path):
    """As docs/scale.md has it."""
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    sweep = ("-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "seed=0,1")
    words = [sys.executable, "-m", "draftopd.fit", *sweep, *WORDS, f"cache_dir={tmp_path}/cache"]
    swept = subprocess.run(words, env=dict(os.environ), capture_output=True, text=True, timeout=600)
    assert swept.returncode == 0, swept.stderr
    assert [logged.info.status for logged in runs(tmp_path)] == ["FINISHED", "FINISHED"]
