"""What a run may spend and has spent, and the callback that ends it."""

import math
import time
from dataclasses import asdict, dataclass
from typing import Any

import lightning as L

from draftopd.decoding import distributed
from draftopd.decoding.ledger import Ledger
from draftopd.errors import DraftError
from draftopd.values.checked import checked
from draftopd.values.types import Count, Positive

STATE = ("at_epoch_end", "share", "paid", "phase_costs", "once", "reached")
"""attributes of a budget that checkpoints have, beside its minutes"""


@checked
@dataclass(kw_only=True)
class Budget:
    """A run's limits, its clock, and the share that is spent.

    Args:
        epochs, steps, flops, target_tokens, minutes: whichever is spent first ends the run. FLOPs are the ledger's
            training FLOPs: rollouts, replay, drafter forward and backward. Target tokens are those that the target
            reads in rollouts and replay. The target's own texts count in neither, unless `texts.charged`. Minutes
            are wall clock from the start of the fit, texts and validation included; a resumed run continues the count.

    Raises:
        DraftError: there is no limit.
    """

    epochs: Positive | None = None
    steps: Count | None = None
    flops: Positive | None = None
    target_tokens: Positive | None = None
    minutes: Positive | None = None

    def __post_init__(self) -> None:
        limits = asdict(self)
        self.limits = {name: limit for name, limit in limits.items() if limit is not None}
        if not self.limits:
            raise DraftError(f"no budget: give one of {', '.join(f'budget.{n}' for n in limits)} a number")
        self.began, self.minutes_before = time.perf_counter(), 0.0
        self.at_epoch_end = self.phase_costs = self.paid = self.once = dict.fromkeys(
            ("flops", "target_tokens", "minutes"), 0.0
        )
        self.steps_done, self.share, self.epochs_done = 0, 0.0, 0.0
        self.reached: dict[str, float] = {}
        self.epochs_per_phase = 1

    def state_dict(self) -> dict[str, Any]:
        return {"minutes": self._minutes} | {name: getattr(self, name) for name in STATE}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.minutes_before = state["minutes"]
        for name in STATE:
            setattr(self, name, state.get(name, getattr(self, name)))  # older checkpoints lack some

    def start(self, epochs_per_phase: int = 1) -> None:
        """Starts the clock.

        Args:
            epochs_per_phase: epochs that train on one rollout phase, and share its cost.
        """
        self.began, self.epochs_per_phase = time.perf_counter(), epochs_per_phase

    @property
    def epochs_in_all(self) -> int | None:
        """By the share that is spent, where no number is set; None = not known yet."""
        if set(self.limits) == {"epochs"}:
            return math.ceil(self.limits["epochs"])
        return math.ceil(self.epochs_done / self.share) if self.share > 0.02 else None

    @property
    def _minutes(self) -> float:
        return self.minutes_before + (time.perf_counter() - self.began) / 60

    def costs(self, ledger: Ledger) -> dict[str, float]:
        """FLOPs, target tokens and minutes so far."""
        # where time ends a run, all processes use one clock
        minutes = distributed.first(self._minutes) if "minutes" in self.limits else self._minutes
        return {"flops": ledger.training_flops, "target_tokens": ledger.target_tokens, "minutes": minutes}

    def start_step(self, epoch: int, done: float, steps: int, ledger: Ledger) -> dict[str, float]:
        """Updates `steps_done` (by the optimizer) and `share` (of the budget spent, 0..1); returns the costs so far.

        The cost of a rollout phase is spread over the steps of all its epochs: charged all at once, it would lower the
        learning rate of the very steps that it paid for.

        Args:
            done: share of the epoch's steps that are done.
        """
        costs = self.costs(ledger)
        trained = (epoch % self.epochs_per_phase + done) / self.epochs_per_phase  # of the phase
        if trained == 0:
            self.phase_costs = {name: cost - self.at_epoch_end[name] for name, cost in costs.items()}
            self.once = {name: cost - self.paid[name] for name, cost in _paid(ledger).items()}
        spread = {name: cost - (1 - trained) * self.phase_costs[name] for name, cost in costs.items()}
        self.epochs_done = epoch + done
        self.steps_done, self.share = steps, min(1.0, self._spent({"epochs": epoch + done, "steps": steps} | spread))
        return costs

    def spent_after(self, epoch: int, done: float, steps: int, ledger: Ledger) -> bool:
        """After a step: the budget is spent, or another rollout phase would leave nothing to train on it."""
        costs = self.costs(ledger)
        if done == 1:
            self.at_epoch_end, self.paid = costs, _paid(ledger)
        if done == 1 and (epoch + 1) % self.epochs_per_phase == 0:
            costs = {name: cost + self.phase_costs[name] - self.once[name] for name, cost in costs.items()}
        self.reached = {"epochs": epoch + done, "steps": steps} | costs
        return self.over

    @property
    def over(self) -> bool:
        """It is spent; a resumed run may have a larger one."""
        return bool(self.reached) and self._spent(self.reached) >= 1 - 1e-6  # a sum of fractions may end just below 1

    def _spent(self, amounts: dict[str, float]) -> float:
        return max(0.0, *(amounts[name] / limit for name, limit in self.limits.items()))


def _paid(ledger: Ledger) -> dict[str, float]:
    """Of the costs those of texts that are paid for once: no phase after this one has them."""
    return {"flops": ledger.flops.get("paid", 0.0), "target_tokens": ledger.tokens.get("paid", 0.0), "minutes": 0.0}


class EndAtBudget(L.Callback):
    """Ends a run when its module's budget is spent; the end is always validated."""

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        budget, ledger = pl_module.budget, pl_module.ledger
        assert isinstance(budget, Budget)
        assert isinstance(ledger, Ledger)
        done = (batch_idx + 1) / trainer.num_training_batches
        if budget.spent_after(trainer.current_epoch, done, trainer.global_step, ledger):
            trainer.should_stop = True
            trainer.check_val_every_n_epoch = 1

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """A run that is resumed after its last step: what is left is its validation."""
        if _over(pl_module):
            trainer.check_val_every_n_epoch = 1

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        trainer.should_stop |= _over(pl_module)  # not before: Lightning would leave the validation out

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        trainer.should_stop |= _over(pl_module)


def _over(module: L.LightningModule) -> bool:
    assert isinstance(module.budget, Budget)
    return module.budget.over
