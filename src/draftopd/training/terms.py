"""Which objective reads a batch, how the terms of a step add up to one loss, and the end where it is not finite."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from draftopd.decoding import distributed
from draftopd.errors import DraftError
from draftopd.objectives.base import Mix, Objective
from draftopd.trace import ReplayBatch


class Terms:
    """The terms of one objective; or of two, where data mix drafted blocks and blocks at random anchors.

    With two, terms are named own/... and random/..., and L = s L_own + (1 - s) L_random: s is the share of the step's
    texts that have drafted blocks. Every term has one denominator for the whole step.

    Args:
        random: the objective of blocks at random anchors; None = all blocks have the same.
    """

    def __init__(self, objective: Objective, random: Objective | None = None) -> None:
        both = {} if random is None else {"own": objective, "random": random}
        named: dict[str, Objective] = {kind: Mix({kind: o}, {kind: 1.0}) for kind, o in both.items()}
        self.objectives = named or {"all": objective}

    def kind(self, batch: ReplayBatch) -> str:
        """The name of the objective that reads a batch, all of whose blocks are of one kind."""
        if "all" in self.objectives:
            return "all"
        return "own" if bool((batch.drafter_step >= 0).any()) else "random"

    def sum(self, parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Sums over micro-batches, by the names of all terms and of all kinds, the same in all processes."""
        zero = next(iter(parts[0].values())).new_zeros(())
        names = [name for kind, objective in self.objectives.items() for name in (kind, *objective.coefficients)]
        return {name: torch.stack([part.get(name, zero) for part in parts]).sum() for name in names}

    def coefficients(self, totals: dict[str, Tensor]) -> dict[str, Tensor]:
        """The factor of each term's numerator in the loss: 0 where the term has no rows.

        Args:
            totals: denominators by term, and numbers of texts by kind.
        """
        texts = torch.stack([totals[kind] for kind in self.objectives]).sum().clamp(min=1)
        out = {}
        for kind, objective in self.objectives.items():
            for name, factor in objective.factors.items():
                out[name] = factor / totals[name].clamp(min=1e-8) * (totals[name] > 0) * (totals[kind] / texts)
        return out

    def loss(self, numerators: dict[str, Tensor], totals: dict[str, Tensor]) -> Tensor:
        return torch.stack([factor * numerators[name] for name, factor in self.coefficients(totals).items()]).sum()

    def log(self, numerators: dict[str, Tensor], totals: dict[str, Tensor]) -> dict[str, Tensor]:
        """Means by term, and the share of texts with drafted blocks."""
        means = {name: numerators[name] / totals[name].clamp(min=1e-8) for name in self.coefficients(totals)}
        if "all" in self.objectives:
            return means
        return means | {"own_share": totals["own"] / (totals["own"] + totals["random"]).clamp(min=1)}


def clip(weights: Iterable[Tensor], largest: float, confidence: nn.Module | None) -> Tensor:
    """Scales gradients down to this norm; returns the norm before.

    Args:
        confidence: its gradients are scaled and counted apart, so that they do not shorten those of the drafts.
    """
    apart = {id(weight) for weight in ([] if confidence is None else confidence.parameters())}
    parts: tuple[list[Tensor], list[Tensor]] = ([], [])
    for weight in weights:
        parts[id(weight) in apart].append(weight)
    nn.utils.clip_grad_norm_(parts[1], largest)
    norm = nn.utils.clip_grad_norm_(parts[0], largest)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def save_and_stop(why: str, batch: Sequence[ReplayBatch], folder: str) -> NoReturn:
    """Saves this process's micro-batches of a step as dictionaries of tensors, then raises DraftError."""
    path = Path(folder) / f"not_finite{distributed.rank() or ''}.pt"
    saved = [{name: value for name, value in vars(micro.to("cpu")).items() if value is not None} for micro in batch]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(saved, path)
        kept = f"its batch is in {path}"
    except (OSError, RuntimeError) as error:  # torch reports a full disk by the second
        kept = f"its batch could not be saved: {error}"
    raise DraftError(f"{why}: lower module.optimizer.lr, or look at what it was trained on; {kept}")


@torch.no_grad()
def require_finite_weights(drafter: nn.Module) -> None:
    """Raises DraftError where a weight of this process is not a finite number."""
    weights = dict(drafter.named_parameters())
    here = [weight.to_local() if isinstance(weight, DTensor) else weight for weight in weights.values()]
    finite = torch.stack([weight.isfinite().all() for weight in here]).tolist()
    broken = [name for name, good in zip(weights, finite, strict=True) if not good]
    if broken:
        raise DraftError(
            f"{len(broken)} of {len(weights)} weights of the drafter are not finite, {broken[0]} among them: lower "
            "module.optimizer.lr, or start from an earlier checkpoint"
        )
