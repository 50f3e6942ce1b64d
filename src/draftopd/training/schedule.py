"""The learning rate over a run's budget, and the optimizer that a run starts with."""

import math
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from draftopd.errors import DraftError
from draftopd.training.budget import Budget


def start_from(optimizer: Optimizer, saved: dict[str, Any]) -> None:
    """Gives a new optimizer another one's state, Adam's moments and step counts, and none of its settings.

    Args:
        saved: state dict of an optimizer of the same weights.

    Raises:
        DraftError: of another kind, or of weights of other shapes.
    """
    groups = optimizer.state_dict()["param_groups"]
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    kinds = [[sorted(group.keys() - {"initial_lr"}) for group in found] for found in (groups, saved["param_groups"])]
    shapes = {i: [x.shape for x in state.values() if x.ndim] for i, state in saved["state"].items()}
    same = shapes.keys() <= set(range(len(weights))) and all(
        shape == weights[i].shape for i, found in shapes.items() for shape in found
    )
    if kinds[0] != kinds[1] or not same:
        raise DraftError(
            "the optimizer of init_from is of another kind, or of a drafter of other shapes: set init_optimizer=false"
        )
    optimizer.load_state_dict({"state": saved["state"], "param_groups": groups})


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
