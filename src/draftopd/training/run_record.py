"""What a run was, written into MLflow and into every checkpoint."""

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException
from mlflow import MlflowClient
from omegaconf import DictConfig, OmegaConf

from draftopd.tracking import write_header
from draftopd.training.callbacks import data_of, log, mlflow_logger
from draftopd.training.module import DraftModule


class ParentRun:
    """The MLflow run above the stages' runs; does nothing without an MLflow logger or in any process but the first.

    Args:
        config: of the command, not of a stage.
    """

    def __init__(self, config: DictConfig) -> None:
        self.run_id: str | None = None
        if not config.logger or rank_zero_only.rank:  # type: ignore[attr-defined]
            return
        self.client = MlflowClient(config.logger.tracking_uri)
        name, location = config.logger.experiment_name, config.logger.artifact_location
        experiment = self.client.get_experiment_by_name(name)
        experiment_id = experiment.experiment_id if experiment else self.client.create_experiment(name, location)
        self.run_id = self.client.create_run(experiment_id, run_name=config.name).info.run_id
        write_header(self.client, self.run_id, OmegaConf.to_container(config, resolve=True), {})  # type: ignore[arg-type]

    def add_tags(self, tags: dict[str, str]) -> None:
        """What is first known when a stage has loaded the target."""
        if self.run_id is None:
            return
        for name, value in tags.items():
            self.client.set_tag(self.run_id, name, value)

    def add(self, files: list[Path]) -> None:
        for path in files if self.run_id else ():
            self.client.log_artifact(self.run_id, str(path))

    def close(self, status: str) -> None:
        if self.run_id:
            self.client.set_terminated(self.run_id, status)


class RunRecord(L.Callback):
    """The run's header, its final weights, and what each phase has cost.

    The config goes into MLflow and into every checkpoint, so that a checkpoint can rebuild its drafter.

    Args:
        config: the resolved configuration.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.last = Path(config["output_dir"]) / "checkpoints" / "last.ckpt"

    @rank_zero_only
    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        logger = mlflow_logger(trainer)
        if logger is not None and logger.run_id is not None:
            extra = {"checkpoint": str(self.last.resolve()), "init_from": str(self.config["init_from"] or "")}
            write_header(logger.experiment, logger.run_id, self.config, fingerprints(trainer) | extra)

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

    Lightning would go on after the last step, but with a new loader, whose first items would then come twice and whose
    last ones never.
    """
    epochs, batches = trainer.fit_loop.epoch_progress, trainer.fit_loop.epoch_loop.batch_progress
    for progress in (epochs.total, epochs.current):
        progress.started = progress.processed  # type: ignore[attr-defined]
    batches.reset_on_run()
    total: Any = batches.total
    # a batch that was made ready and no more: Lightning sees neither the midst nor the end of an epoch
    total.ready, total.started, total.processed = total.completed + 1, total.completed, total.completed


def fingerprints(trainer: L.Trainer) -> dict[str, str]:
    """Of the target and the prompts."""
    module = trainer.lightning_module
    assert isinstance(module, DraftModule)
    return {
        "target_fingerprint": module.target.fingerprint,
        "prompts_fingerprint": data_of(trainer).prompts.fingerprint,
    }
