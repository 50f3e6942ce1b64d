"""A job of SLURM: what Lightning's plugin for it does with a run, with a stand-in for the cluster's own commands."""

import signal
from pathlib import Path

import pytest
import torch

import kills
from kills import Kill, ending
from runs import UNTESTED, UNTIMED

SCONTROL = """#!/bin/sh
echo "$@" >> {asked}
kill -TERM $PPID
"""
"""SLURM ends a job that it queues again"""


@pytest.fixture
def asked(tmp_path: Path, monkeypatch) -> Path:
    """Makes this process the only task of job 17; the file gets what `scontrol` is asked for."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "scontrol").write_text(SCONTROL.format(asked=tmp_path / "asked"))
    (tmp_path / "bin" / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    job = {"JOB_ID": "17", "JOB_NAME": "fit", "NTASKS": "1", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}
    for name, value in job.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    return tmp_path / "asked"


def test_a_signal_queues_the_job_again_and_the_same_command_goes_on(command, tmp_path, monkeypatch, asked):
    words = ("experiment=smoke/sft", "budget.epochs=null", "budget.steps=2", *UNTESTED, "hydra.run.dir=cut")
    with monkeypatch.context() as patch:
        Kill("after a step", 1, signal.SIGUSR1).arm(patch.setattr)
        assert command(*words) == 128 + signal.SIGTERM
    assert asked.read_text() == "requeue 17\n"
    saved = torch.load(tmp_path / "cut" / "hpc_ckpt_1.ckpt", weights_only=True)
    assert saved["global_step"] == 1
    assert command(*words) == 0
    assert torch.load(tmp_path / "cut" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 2
    assert not list((tmp_path / "cut").glob("hpc_ckpt_*"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("run", "kill"),
    [("sft", Kill("after a step", 2, signal.SIGUSR1)), ("rollouts", Kill("rollout", 2, signal.SIGUSR1))],
)
def test_a_job_that_is_queued_again_ends_like_one_that_was_not(command, tmp_path, monkeypatch, asked, run, kill):
    """By the same command, with nothing said about how it goes on; its test is of the final weights."""
    words = (*kills.RUNS[run], *UNTIMED)
    assert command(*words, "hydra.run.dir=whole") == 0
    assert not asked.exists()
    with monkeypatch.context() as patch:
        kill.arm(patch.setattr)
        assert command(*words, "hydra.run.dir=cut") == 128 + signal.SIGTERM
    assert asked.read_text() == "requeue 17\n"
    assert (tmp_path / "cut" / "hpc_ckpt_1.ckpt").exists()
    assert command(*words, "hydra.run.dir=cut") == 0
    assert ending(tmp_path / "cut") == ending(tmp_path / "whole")
    assert not list((tmp_path / "cut").glob("hpc_ckpt_*"))


@pytest.mark.slow
def test_sigterm_of_a_cluster_saves_the_last_whole_step(command, tmp_path, monkeypatch, asked):
    """As a job that is cancelled or out of time gets it, without the signal that asks for the queue."""
    words = (*kills.RUNS["sft"], *UNTIMED)
    assert command(*words, "hydra.run.dir=whole") == 0
    with monkeypatch.context() as patch:
        Kill("after a step", 3, signal.SIGTERM).arm(patch.setattr)
        assert command(*words, "hydra.run.dir=cut") == 128 + signal.SIGTERM
    assert not asked.exists()
    assert command(*words, "hydra.run.dir=cut", "resume=auto") == 0
    assert ending(tmp_path / "cut") == ending(tmp_path / "whole")
