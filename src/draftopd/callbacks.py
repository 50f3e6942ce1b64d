"""What watches a run: they read traces and modules, and log."""

import math
import time
from dataclasses import asdict
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.loggers import MLFlowLogger
from lightning.pytorch.utilities import rank_zero_only

from draftopd import measure, pictures, processes
from draftopd.curves import Point
from draftopd.datamodule import DraftDataModule, progress
from draftopd.errors import DraftError
from draftopd.module import DraftModule
from draftopd.trace import Trace


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


class Budget(L.Callback):
    """Ends a run when its budget is spent, and lays the learning rate over it: linear warm-up, then a cosine to 0.

    Args:
        epochs, steps, flops, target_tokens, minutes: whichever is spent first ends the run. FLOPs are the ledger's
            training FLOPs: rollouts, replay, drafter forward and backward. Target tokens are those that the target
            reads in rollouts and replay. The target's own texts, made once for all runs, are in neither. Minutes are
            all that pass from the beginning of the fit, texts and validation included; a resumed run goes on counting.
        warmup_steps: optimizer steps of the rise.
    """

    def __init__(
        self,
        epochs: float | None = None,
        steps: int | None = None,
        flops: float | None = None,
        warmup_steps: int = 0,
        target_tokens: float | None = None,
        minutes: float | None = None,
    ) -> None:
        if not any(limit and limit > 0 for limit in (epochs, steps, flops, target_tokens, minutes)):
            raise DraftError(
                "no budget: give budget.epochs, budget.steps, budget.flops, budget.target_tokens or budget.minutes a "
                "number above 0"
            )
        self.epochs, self.steps, self.warmup_steps = epochs, steps, warmup_steps
        limits = {"flops": flops, "target_tokens": target_tokens, "minutes": minutes}
        self.limits = {name: limit for name, limit in limits.items() if limit}
        self.began, self.minutes_before = time.perf_counter(), 0.0
        self.at_epoch_end = self.rollout_costs = dict.fromkeys(limits, 0.0)

    def state_dict(self) -> dict[str, Any]:
        return {"minutes": self._minutes, "at_epoch_end": self.at_epoch_end}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.minutes_before, self.at_epoch_end = state_dict["minutes"], state_dict["at_epoch_end"]

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.began = time.perf_counter()

    @property
    def _minutes(self) -> float:
        return self.minutes_before + (time.perf_counter() - self.began) / 60

    def costs(self, module: DraftModule) -> dict[str, float]:
        """What has been spent so far."""
        ledger = module.ledger
        # where time ends a run, all processes go by one clock
        minutes = processes.first(self._minutes) if "minutes" in self.limits else self._minutes
        return {"flops": ledger.training_flops, "target_tokens": ledger.target_tokens, "minutes": minutes}

    def spent(self, trainer: L.Trainer, module: DraftModule, batch_idx: int, *, spread: bool = False) -> float:
        """Share of the budget that is gone, 0..1 and above.

        Args:
            spread: what a rollout phase has cost is laid over the steps that it was made for. Charged all at once, it
                would take the learning rate from the very steps that were paid for.
        """
        done = batch_idx / float(trainer.num_training_batches)
        shares = [0.0]
        if self.epochs:
            shares.append((trainer.current_epoch + done) / self.epochs)
        if self.steps:
            shares.append(trainer.global_step / self.steps)
        ahead = 1 - done if spread else 0.0
        costs = self.costs(module)
        return max(shares + [(costs[n] - ahead * self.rollout_costs[n]) / limit for n, limit in self.limits.items()])

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, DraftModule)
        self.rollout_costs = {n: cost - self.at_epoch_end[n] for n, cost in self.costs(pl_module).items()}

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, DraftModule)
        share = min(1.0, self.spent(trainer, pl_module, batch_idx, spread=True))
        rise = (trainer.global_step + 1) / max(1, self.warmup_steps)
        factor = min(1.0, rise) * 0.5 * (1 + math.cos(math.pi * share))
        optimizer = trainer.optimizers[0]
        rate = optimizer.defaults["lr"] * factor  # the config's: a resumed run may have been given another
        for group in optimizer.param_groups:
            group["lr"] = rate
        pl_module.log("train/lr", rate, batch_size=1)
        pl_module.log("train/budget_spent", share, batch_size=1)
        costs = self.costs(pl_module)
        for name in ("target_tokens", "minutes"):
            pl_module.log(f"ledger/{name}", costs[name], batch_size=1)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, DraftModule)
        share = self.spent(trainer, pl_module, batch_idx + 1)
        if batch_idx + 1 == trainer.num_training_batches:
            # a rollout phase that would spend the rest leaves nothing to train on it
            self.at_epoch_end = self.costs(pl_module)
            next_phase = {n: cost + self.rollout_costs[n] for n, cost in self.at_epoch_end.items()}
            share = max([share, *(next_phase[name] / limit for name, limit in self.limits.items())])
        if share >= 1 - 1e-6:  # a sum of fractions may end just below 1
            trainer.should_stop = True
            trainer.check_val_every_n_epoch = 1  # what a run ends with is always validated


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
        budget = next(c for c in trainer.callbacks if isinstance(c, Budget))  # type: ignore[attr-defined]
        self.history.append(Point(**budget.costs(pl_module), acceptance_length=values["acceptance_length"]))


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
        page = pictures.trace_page(source.traces[: self.examples], pl_module.target.tokenizer)
        logger.experiment.log_text(logger.run_id, page, "traces/examples.html")
        figure = pictures.rejections(source.traces)
        logger.experiment.log_figure(logger.run_id, figure, "traces/rejections.png")
        pictures.close(figure)
