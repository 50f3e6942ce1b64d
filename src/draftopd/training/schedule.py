"""The learning rate over a run's budget."""

import math
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from draftopd.training.budget import Budget


class BudgetCosine(LRScheduler):
    """Linear warm-up, times a cosine from 1 to 0 over the share of the budget that is spent.

    `step` is called before the optimizer's step, unlike torch's schedulers: the share spent is known only then. The
    peak is the rate that the optimizer was made with, so a resumed run takes the config's and not the checkpoint's.

    Args:
        warmup_steps: optimizer steps of the warm-up.
    """

    def __init__(self, optimizer: Optimizer, budget: Budget, warmup_steps: int = 0) -> None:
        self.budget, self.warmup_steps = budget, warmup_steps
        super().__init__(optimizer)

    def get_lr(self) -> list[Any]:
        warmup = min(1.0, (self.budget.steps_done + 1) / max(1, self.warmup_steps))
        factor = warmup * 0.5 * (1 + math.cos(math.pi * self.budget.share))
        return [self.optimizer.defaults["lr"] * factor] * len(self.optimizer.param_groups)

    def step(self, epoch: int | None = None) -> None:
        self.last_epoch += 1
        self._last_lr = self.get_lr()
        for group, rate in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = rate

    def state_dict(self) -> dict[str, Any]:
        return {"last_epoch": self.last_epoch}
