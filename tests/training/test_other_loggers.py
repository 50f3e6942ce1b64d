"""Lightning's loggers beside ours: what is logged comes to them too, and none of them can stop a run."""

from typing import Any

import pytest
from lightning.pytorch.loggers import Logger

from draftopd.errors import DraftError
from draftopd.training import other_loggers
from draftopd.training.other_loggers import OtherLogger, require_installed

FULL = 77  # the step at which a disk is full


class Kept(Logger):
    """Keeps what it is given, until a disk is full."""

    name = version = None

    def __init__(self, got: list[Any]) -> None:
        self.got = got

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        if step == FULL:
            raise OSError("disk full")
        self.got.append((metrics, step))

    def log_hyperparams(self, params: Any) -> None:
        self.got.append(params)

    def finalize(self, status: str) -> None:
        self.got.append(status)


def test_the_first_error_is_told_and_the_last(caplog):
    got: list[Any] = []
    logger = OtherLogger("tensorboard", lambda: Kept(got))
    logger.log_hyperparams({"seed": 0})
    for step in (0, 1, FULL, 3):
        logger.log_metrics({"loss": 1.0}, step)
    logger.close("success")
    assert got == [{"seed": 0}, ({"loss": 1.0}, 0), ({"loss": 1.0}, 1)]
    assert caplog.text.count("tensorboard fails (disk full): the run goes on without it") == 1


def test_one_that_cannot_be_made_stops_nothing(caplog):
    OtherLogger("wandb", lambda: 1 / 0).log_metrics({"loss": 1.0}, 0)  # type: ignore[arg-type, return-value]
    assert "wandb fails" in caplog.text


def test_a_package_that_is_missing_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr(other_loggers, "find_spec", lambda name: None)
    with pytest.raises(DraftError, match=r"logger=wandb needs the package wandb: pip install 'draftopd\[wandb\]'"):
        require_installed(["wandb"])


def test_a_run_logs_into_lightnings_loggers_without_mlflow(command, tmp_path, monkeypatch):
    monkeypatch.setattr(other_loggers, "find_spec", lambda name: True)
    got: list[Any] = []
    monkeypatch.setattr("lightning.pytorch.loggers.TensorBoardLogger.__new__", lambda *_, **__: Kept(got))
    words = ("experiment=smoke/sft", "budget.epochs=1", "test.prompts=0")
    assert command(*words, "logger=tensorboard") == 0
    names = {name for entry in got if isinstance(entry, tuple) for name in entry[0]}
    assert {"train/loss", "acceptance/tau_val", "cost/pflops"} <= names
    assert got[-1] == "success"
    assert not list(tmp_path.rglob("mlflow.db"))
