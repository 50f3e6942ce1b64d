"""What a run was and how far it is, written into MLflow and into every checkpoint."""

import time
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_only

from draftopd.console import signals, status
from draftopd.data.prompts import fingerprint
from draftopd.tracking.header import KINDS, in_short, write_header
from draftopd.training.budget import Budget
from draftopd.training.callbacks import data_of, log, run_of
from draftopd.training.module import DraftModule

USES = {"training": "train", "validation": "val", "test": "test"}
"""what MLflow calls them -> split"""


class RunRecord(L.Callback):
    """The run's header, its final weights, and what each phase has cost.

    The config goes into MLflow and into every checkpoint, so that a checkpoint can rebuild its drafter.

    Args:
        config: the resolved configuration.
        before: training FLOPs of what the run starts from; None = not known.
    """

    def __init__(self, config: dict[str, Any], before: float | None = 0.0) -> None:
        self.config, self.before = config, before
        self.last = Path(config["output_dir"]) / "checkpoints" / "last.ckpt"
        self.position: dict[str, Any] = {}
        """of the last whole step"""
        self.training = False
        self._resumed: dict[str, Any] = {}

    @rank_zero_only
    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        status.place = partial(_place, trainer, pl_module.budget)  # type: ignore[arg-type]
        for logger in trainer.loggers:
            logger.log_hyperparams(self.config)
        run = run_of(trainer)
        if run is not None:
            extra = {"checkpoint": str(self.last.resolve()), "init_from": _resolved(self.config["init_from"])}
            write_header(run, self.config, fingerprints(trainer) | extra)
            for context, split in USES.items():
                if prompts := data_of(trainer).prompts.split(split):
                    name = f"{in_short(self.config['prompts'])} {split}"
                    run.log_dataset(context, name, fingerprint(prompts), self.config["prompts"], len(prompts))

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """What each phase has cost so far."""
        assert isinstance(pl_module, DraftModule)
        if trainer.sanity_checking:
            return
        log(trainer, pl_module.ledger.metrics())

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The final weights, and what each phase has cost."""
        assert isinstance(pl_module, DraftModule)
        trainer.save_checkpoint(self.last)
        log(trainer, pl_module.ledger.metrics())
        run = run_of(trainer)
        if run is not None:
            kinds = {name: in_short(self.config[name]) for name in ("target", *KINDS)}
            run.log_model(self.config["name"], {"checkpoint": str(self.last.resolve())} | kinds, trainer.global_step)
        self.training = False  # a test that is stopped has nothing to save

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.position, self.training = self._resumed, True
        signals.watch()
        budget = pl_module.budget
        assert isinstance(budget, Budget)
        first, status.began = budget.share, time.monotonic()
        status.share = lambda: (budget.share - first) / (1 - first) if first < 1 else 1.0

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        signals.hold()  # until weights and position agree again, and the step's values are logged

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.position = _position(trainer)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        signals.release()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        signals.release()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Ctrl-C or SIGTERM: nothing that the last whole step has reached is lost.

        Several processes may be stopped at different steps: they keep the last epoch's checkpoint.
        """
        signals.drop()
        stopped = isinstance(exception, KeyboardInterrupt | SystemExit)
        if stopped and self.training and self.position and trainer.world_size == 1:
            trainer.save_checkpoint(self.last)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["config"], checkpoint["flops_before"] = self.config, self.before
        checkpoint.update(self.position or _costs(pl_module))

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        names = ("loops", "callbacks", "lr_schedulers", type(data_of(trainer)).__qualname__, "ledger", "budget")
        self._resumed = {name: checkpoint[name] for name in names if name in checkpoint}


def _place(trainer: L.Trainer, budget: Budget) -> str:
    """The epoch of how many, and the step; nothing in the test."""
    if trainer.testing:
        return ""
    epochs = budget.epochs_in_all
    total = "" if epochs is None else f" of {'' if set(budget.limits) == {'epochs'} else 'about '}{epochs}"
    return f"epoch {trainer.current_epoch + 1}{total}, step {trainer.global_step}"


def _position(trainer: L.Trainer) -> dict[str, Any]:
    """What a checkpoint holds beside weights and optimizer, just after a step: parts of Lightning's checkpoint by key.

    Whatever comes after the step and before the next, a validation or a rollout, changes neither weights nor
    optimizer. So a checkpoint that is written meanwhile, wherever that is cut short, takes all else from here: a
    resumed run does the same again.
    """
    data = data_of(trainer)
    # copied as deep as callbacks change what they have handed out: this happens every step
    states = {callback.state_key: _copied(callback.state_dict()) for callback in trainer.callbacks}  # type: ignore[attr-defined]
    return {
        "loops": {"fit_loop": _loops(trainer)},
        "callbacks": {key: state for key, state in states.items() if state},
        "lr_schedulers": [config.scheduler.state_dict() for config in trainer.lr_scheduler_configs],
        type(data).__qualname__: data.state_dict(),
        **_costs(trainer.lightning_module),
    }


def _copied(state: dict[str, Any]) -> dict[str, Any]:
    return {key: dict(value) if isinstance(value, dict) else value for key, value in state.items()}


def _costs(module: L.LightningModule) -> dict[str, Any]:
    assert isinstance(module, DraftModule)
    return {"ledger": module.ledger.state_dict(), "budget": module.budget.state_dict()}


def _loops(trainer: L.Trainer) -> dict[str, Any]:
    """The state of Lightning's loops as it takes a step for done: validation, if due, comes next."""
    fit, epoch = trainer.fit_loop, trainer.fit_loop.epoch_loop
    state = deepcopy(fit.state_dict())
    for steps in (state["epoch_loop.batch_progress"][kind] for kind in ("total", "current")):
        steps["completed"] = steps["ready"]
    due = epoch._should_check_val_fx(fit._data_fetcher)  # type: ignore[arg-type]
    state["epoch_loop.state_dict"]["_batches_that_stepped"] += not due
    # Lightning returns to a validation only if it takes it for begun
    none = {"ready": 0, "started": 0, "processed": 0, "completed": 0}
    begun = none | {"ready": 1, "started": 1}
    state["epoch_loop.val_loop.batch_progress"] |= {"total": begun, "current": none, "is_last_batch": False}
    return state


def fingerprints(trainer: L.Trainer) -> dict[str, str]:
    """Of the target and the prompts."""
    module = trainer.lightning_module
    assert isinstance(module, DraftModule)
    return {
        "target_fingerprint": module.target.fingerprint,
        "prompts_fingerprint": data_of(trainer).prompts.fingerprint,
    }


def _resolved(start: str | None) -> str:
    """As the tag `checkpoint` of the run that it names would have it."""
    path = Path(start or "").expanduser()
    return str(path.resolve()) if start and path.exists() else start or ""
