"""What a run was, written into MLflow and into every checkpoint."""

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException

from draftopd.tracking.header import write_header
from draftopd.training.callbacks import data_of, log, run_of
from draftopd.training.module import DraftModule


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
        run = run_of(trainer)
        if run is not None:
            extra = {"checkpoint": str(self.last.resolve()), "init_from": _resolved(self.config["init_from"])}
            write_header(run, self.config, fingerprints(trainer) | extra)

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


def _resolved(start: str | None) -> str:
    """As the tag `checkpoint` of the run that it names would have it."""
    path = Path(start or "").expanduser()
    return str(path.resolve()) if start and path.exists() else start or ""
