"""When a run ends, and the learning rate on the way."""

import math
import time
from typing import Any

import lightning as L

from draftopd.decoding import distributed
from draftopd.errors import DraftError
from draftopd.training.module import DraftModule


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
        minutes = distributed.first(self._minutes) if "minutes" in self.limits else self._minutes
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
