"""What watches a run: they read traces and modules, and log."""

from dataclasses import asdict
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.loggers import MLFlowLogger
from lightning.pytorch.utilities import rank_zero_only

from draftopd.console import progress
from draftopd.evaluation import measure, plots
from draftopd.evaluation.curves import Point
from draftopd.trace import Trace
from draftopd.training.datamodule import DraftDataModule
from draftopd.training.module import DraftModule


def mlflow_logger(trainer: L.Trainer) -> MLFlowLogger | None:
    return next((logger for logger in trainer.loggers if isinstance(logger, MLFlowLogger)), None)


def data_of(trainer: L.Trainer) -> DraftDataModule:
    assert isinstance(trainer.datamodule, DraftDataModule)  # type: ignore[attr-defined]
    return trainer.datamodule  # type: ignore[attr-defined]


class ProgressBar(RichProgressBar):
    """Lightning's bar without the version number and without a last epoch, which a budget does not know."""

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        return {k.removeprefix("train/"): v for k, v in super().get_metrics(trainer, pl_module).items() if k != "v_num"}

    def _get_train_description(self, current_epoch: int) -> str:
        return f"epoch {current_epoch}"


class AcceptanceLength(L.Callback):
    """Real rollouts on held-out prompts at every validation; keeps their traces for other callbacks.

    Args:
        limit: prompts of the validation split.
    """

    def __init__(self, limit: int | None = None) -> None:
        self.limit = limit
        self.traces: list[Trace] = []
        self.history: list[Point] = []

    def state_dict(self) -> dict[str, Any]:
        return {"history": [asdict(point) for point in self.history]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history = [Point.of(saved) for saved in state_dict["history"]]

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, DraftModule)
        if trainer.sanity_checking:
            return
        data = data_of(trainer)
        prompts = data.encoded("val", self.limit)
        with progress("validating", len(prompts)) as on_done, pl_module.ledger.timed("validate"):
            self.traces = measure.roll(
                pl_module.target, pl_module.drafter, [ids for _, ids in prompts], data.decoding, on_done
            )
        for name, values in measure.by_set(self.traces, [p.set for p, _ in prompts]).items():
            prefix = f"val/{name}/" if name else "val/"
            # every process has all traces, so there is nothing to reduce
            pl_module.log_dict({prefix + key: value for key, value in values.items()}, batch_size=1)
        pl_module.log("val/training_flops", pl_module.ledger.training_flops, batch_size=1)
        pl_module.log("tau", values["acceptance_length"], prog_bar=True, logger=False, batch_size=1)
        costs = pl_module.budget.costs(pl_module.ledger)
        self.history.append(Point(**costs, acceptance_length=values["acceptance_length"]))


class Speedup(L.Callback):
    """Tokens per second against plain decoding of the same target in the same process, when training ends.

    Args:
        prompts: validation prompts that are timed, one at a time; 0 = do not measure.
    """

    def __init__(self, prompts: int = 8) -> None:
        self.prompts = prompts

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, DraftModule)
        if not self.prompts:
            return
        data = data_of(trainer)
        prompts = [ids for _, ids in data.encoded("val", self.prompts)]
        with progress("timing", len(prompts)) as on_done:
            values = measure.speedup(pl_module.target, pl_module.drafter, prompts, data.decoding, on_done)
        for logger in trainer.loggers:
            logger.log_metrics({f"val/{name}": value for name, value in values.items()}, trainer.global_step)


class TraceLog(L.Callback):
    """Examples of traces in colour, and where drafts are rejected, as artifacts.

    Args:
        examples: traces of the last validation that are shown.
    """

    def __init__(self, examples: int = 8) -> None:
        self.examples = examples

    @rank_zero_only
    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, DraftModule)
        logger = mlflow_logger(trainer)
        source = next((c for c in trainer.callbacks if isinstance(c, AcceptanceLength)), None)  # type: ignore[attr-defined]
        if logger is None or source is None or not source.traces:
            return
        page = plots.trace_page(source.traces[: self.examples], pl_module.target.tokenizer)
        logger.experiment.log_text(logger.run_id, page, "traces/examples.html")
        figure = plots.rejections(source.traces)
        logger.experiment.log_figure(logger.run_id, figure, "traces/rejections.png")
        plots.close(figure)
