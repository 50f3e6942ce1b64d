"""A run that was stopped, anywhere and by any signal, ends as the one that was not: bit for bit."""

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import kills
from kills import Kill, ending
from mlflow_server import wait_for
from runs import UNTIMED

CASES = [("sft", Kill("step", 3, signal.SIGINT))]
SLOW = [  # of each run one; all of them: python tests/kills.py
    ("rollouts", Kill("rollout", 2, signal.SIGTERM)),
    ("redrafts", Kill("after a step", 3, signal.SIGINT)),
    ("mixed", Kill("after a step", 3, signal.SIGTERM)),
    ("reused", Kill("validation", 1, signal.SIGINT)),
    ("flops", Kill("after a step", 4, signal.SIGTERM)),
    ("steps", Kill("test", 1, signal.SIGINT)),
]
KILLED = [
    ("rollouts", Kill("after a step", 4, signal.SIGKILL)),
    ("sft", Kill("save", 1, signal.SIGKILL)),
]


@pytest.fixture(scope="module")
def whole() -> dict[str, dict[str, Any]]:
    """Endings of uninterrupted runs, made when first asked for."""
    return {}


@pytest.mark.parametrize(("run", "kill"), [*CASES, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)])
def test_a_stopped_run_ends_like_one_that_was_not(command, tmp_path, monkeypatch, whole, capsys, run: str, kill: Kill):
    words = (*kills.RUNS[run], *UNTIMED)
    if run not in whole:
        assert command(*words, "hydra.run.dir=whole") == 0
        whole[run] = ending(tmp_path / "whole")
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs start deaf to it
    try:
        with monkeypatch.context() as patch:
            kill.arm(patch.setattr)
            assert command(*words, "hydra.run.dir=cut") == 128 + kill.signal
    finally:
        signal.signal(signal.SIGINT, handler)
    assert (tmp_path / "cut" / "checkpoints" / "last.ckpt").exists()
    (on,) = re.findall("^to go on: (.*)$", capsys.readouterr().out, re.MULTILINE)
    assert shlex.split(on)[3:] == ["cache_dir=cache", *words, "hydra.run.dir=cut", "resume=auto"]
    assert command(*words, "hydra.run.dir=cut", "resume=auto") == 0
    assert ending(tmp_path / "cut") == whole[run]


@pytest.mark.slow
@pytest.mark.parametrize(("run", "kill"), KILLED)
def test_so_does_one_whose_process_was_killed(tmp_path: Path, whole, run: str, kill: Kill):
    if run not in whole:
        assert kills.process(kills.RUNS[run], tmp_path / "whole") == 0
        whole[run] = ending(tmp_path / "whole")
    assert kills.process(kills.RUNS[run], tmp_path / "cut", kill) == -signal.SIGKILL
    assert kills.process((*kills.RUNS[run], "resume=auto"), tmp_path / "cut") == 0
    assert ending(tmp_path / "cut") == whole[run]


TWO = ("trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu")


@pytest.mark.slow
def test_so_do_two_processes_that_were_killed(tmp_path: Path):
    """They go on from the checkpoint of an epoch, wherever they were."""
    command = [sys.executable, "-m", "draftopd.fit", *kills.RUNS["rollouts"], *UNTIMED, *TWO, f"cache_dir={tmp_path}"]
    alone = {"cwd": tmp_path, "env": {**os.environ, "OMP_NUM_THREADS": "1"}, "start_new_session": True}
    subprocess.run([*command, "hydra.run.dir=whole"], check=True, capture_output=True, timeout=900, **alone)
    last = tmp_path / "cut" / "checkpoints" / "last.ckpt"
    with subprocess.Popen([*command, "hydra.run.dir=cut"], stdout=subprocess.DEVNULL, **alone) as cut:
        try:
            wait_for(last.exists, 900)
        finally:
            os.killpg(cut.pid, signal.SIGKILL)
    assert cut.returncode == -signal.SIGKILL
    subprocess.run(
        [*command, "hydra.run.dir=cut", "resume=auto"], check=True, capture_output=True, timeout=900, **alone
    )
    assert ending(tmp_path / "cut") == ending(tmp_path / "whole")
