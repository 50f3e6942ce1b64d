"""Which objective reads a batch, and how the terms of one optimizer step add up to one loss."""

from collections.abc import Sequence

import torch
from torch import Tensor

from draftopd.objectives.base import Objective, shares
from draftopd.trace import ReplayBatch


class Terms:
    """The terms of one objective; or of two, where data mix drafted blocks and blocks at random anchors.

    With two, terms are named own/... and random/..., and L = s L_own + (1 - s) L_random: s is the share of the step's
    texts that have drafted blocks. Every term has one denominator for the whole step.

    Args:
        random: the objective of blocks at random anchors; None = all blocks have the same.

    Attributes:
        objectives: by the prefix of their terms' names.
    """

    def __init__(self, objective: Objective, random: Objective | None = None) -> None:
        self.objectives = {"": objective} if random is None else {"own/": objective, "random/": random}

    def kind(self, batch: ReplayBatch) -> str:
        """The prefix of a batch, all of whose blocks are of one kind."""
        if len(self.objectives) == 1:
            return ""
        return "own/" if bool((batch.drafter_step >= 0).any()) else "random/"

    def sum(self, parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Sums over micro-batches, by all names, which are the same in all processes; a prefix is one of them too."""
        zero = next(iter(parts[0].values())).new_zeros(())
        names = [kind + name for kind, objective in self.objectives.items() for name in ("", *objective.coefficients)]
        return {name: torch.stack([part.get(name, zero) for part in parts]).sum() for name in names}

    def coefficients(self, totals: dict[str, Tensor]) -> dict[str, Tensor]:
        """The factor of each term's numerator in the loss: 0 where the term has no rows.

        Args:
            totals: denominators by the terms' names, and numbers of texts by prefix.
        """
        texts = torch.stack([totals[kind] for kind in self.objectives]).sum().clamp(min=1)
        out = {}
        for kind, objective in self.objectives.items():
            for name, factor in shares(objective.coefficients).items():
                total = totals[kind + name]
                out[kind + name] = factor / total.clamp(min=1e-8) * (total > 0) * (totals[kind] / texts)
        return out

    def loss(self, numerators: dict[str, Tensor], totals: dict[str, Tensor]) -> Tensor:
        return torch.stack([factor * numerators[name] for name, factor in self.coefficients(totals).items()]).sum()

    def log(self, numerators: dict[str, Tensor], totals: dict[str, Tensor]) -> dict[str, Tensor]:
        """Means by name, and the share of texts with drafted blocks."""
        means = {name: numerators[name] / totals[name].clamp(min=1e-8) for name in self.coefficients(totals)}
        if len(self.objectives) == 1:
            return means
        return means | {"own_share": totals["own/"] / (totals["own/"] + totals["random/"]).clamp(min=1)}
