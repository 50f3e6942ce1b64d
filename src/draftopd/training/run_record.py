"""What a run was, written into MLflow and into every checkpoint."""

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException
from mlflow.entities import Param, RunTag
from omegaconf import OmegaConf

from draftopd.tracking import command, git_commit, machine, versions
from draftopd.training.callbacks import mlflow_logger
from draftopd.training.datamodule import DraftDataModule
from draftopd.training.module import DraftModule


class RunRecord(L.Callback):
    """What a run was: resolved config, command, git commit, package versions, the target's fingerprint.

    The config goes into MLflow and into every checkpoint, so that a checkpoint can rebuild its drafter.

    Args:
        config: the resolved configuration.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.last = Path(config["output_dir"]) / "checkpoints" / "last.ckpt"

    @rank_zero_only
    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, DraftModule)
        logger = mlflow_logger(trainer)
        if logger is None:
            return
        client, run = logger.experiment, logger.run_id
        client.log_text(run, OmegaConf.to_yaml(OmegaConf.create(self.config)), "config.yaml")
        client.log_dict(run, versions(), "versions.json")
        tags = {
            "target_fingerprint": pl_module.target.fingerprint,
            "git_commit": git_commit(),
            "command": command(),
            "checkpoint": str(self.last.resolve()),
            "init_from": str(self.config["init_from"] or ""),
            "machine": machine(),
        }
        if isinstance(data := trainer.datamodule, DraftDataModule):  # type: ignore[attr-defined]
            tags["prompts_fingerprint"] = data.prompts.fingerprint
        groups = ("target", "drafter", "objective", "data", "prompts", "module", "budget", "seed")
        flat = [pair for name in groups for pair in _flat(name, self.config.get(name))]
        params = [Param(key, str(value)[:500]) for key, value in flat]
        client.log_batch(run, tags=[RunTag(name, value) for name, value in tags.items()])
        for start in range(0, len(params), 100):  # MLflow takes no more at once
            client.log_batch(run, params=params[start : start + 100])

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """What each phase has cost so far."""
        assert isinstance(pl_module, DraftModule)
        if trainer.sanity_checking:
            return
        for logger in trainer.loggers:
            logger.log_metrics(pl_module.ledger.metrics(), trainer.global_step)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The final weights, and what each phase has cost."""
        assert isinstance(pl_module, DraftModule)
        trainer.save_checkpoint(self.last)
        for logger in trainer.loggers:
            logger.log_metrics(pl_module.ledger.metrics(), trainer.global_step)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Ctrl-C or SIGTERM: the weights of this step are kept; an epoch that was cut short is drawn again by `resume`.

        Several processes may be stopped at different steps: they keep the last epoch's.
        """
        stopped = isinstance(exception, KeyboardInterrupt | SIGTERMException)
        if stopped and trainer.global_step and trainer.world_size == 1:
            _rewind(trainer)
            trainer.save_checkpoint(self.last)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["config"] = self.config


def _rewind(trainer: L.Trainer) -> None:
    """Sets the loops back to the start of the epoch.

    Lightning would go on behind the last step, but with a new loader, whose first items would then come twice and whose
    last ones never.
    """
    epochs, batches = trainer.fit_loop.epoch_progress, trainer.fit_loop.epoch_loop.batch_progress
    for progress in (epochs.total, epochs.current):
        progress.started = progress.processed  # type: ignore[attr-defined]
    batches.reset_on_run()
    total: Any = batches.total
    # a batch that was made ready and no more: Lightning sees neither the midst nor the end of an epoch
    total.ready, total.started, total.processed = total.completed + 1, total.completed, total.completed


def _flat(prefix: str, value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, dict):
        return [pair for key, inner in value.items() for pair in _flat(f"{prefix}.{key}", inner)]
    return [(prefix, value)]
