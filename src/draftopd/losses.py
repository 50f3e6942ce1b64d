"""Divergences and objectives as functions of rows: one row = one supervised draft position.

An objective is a weighted mean per term and a convex mix of the terms:

    L = sum_i lambda_i * (sum_rows w_i * loss_i) / (sum_rows w_i) / sum_i lambda_i

The weights w_i depend on where a row stands and not on what the drafter says, so that the denominators of a whole
optimizer step are known before its first backward pass.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """Where M rows stand in their blocks."""

    labels: Tensor
    """[M] the head's row of the draft token; -1 where it is outside the draft vocabulary"""
    slot: Tensor
    """[M] in-block position k of the draft, 1..K"""
    accepted: Tensor
    """[M] bool: the target kept it"""

    def __getitem__(self, index: slice) -> "Rows":
        return Rows(self.labels[index], self.slot[index], self.accepted[index])

    def __len__(self) -> int:
        return len(self.slot)


class Objective(Protocol):
    """Reads rows; knows nothing of models."""

    needs_target: bool
    coefficients: dict[str, float]
    """lambda of each term"""

    def weights(self, rows: Rows) -> dict[str, Tensor]:
        """w [M] of each term."""

    def losses(self, draft_logits: Tensor, target_logits: Tensor | None, rows: Rows) -> dict[str, Tensor]:
        """loss [M] of each term; logits [M, V]. Rows whose weight is 0 may hold anything finite."""


def kl(log_a: Tensor, log_b: Tensor) -> Tensor:
    """KL(a‖b) = sum_v a(v) (log a(v) - log b(v)) of each row, [M], from log-probabilities [M, V]."""
    return (log_a.exp() * (log_a - log_b)).sum(-1)


class CrossEntropy:
    """DFlash's SFT objective (arXiv 2602.06036): cross-entropy with weight exp(-(k - 1) / decay) at slot k.

    Args:
        decay: in slots; the paper takes 7 for block size 16, 5 for 10, 4 for 8.
    """

    needs_target = False

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.coefficients = {"cross_entropy": 1.0}

    def weights(self, rows: Rows) -> dict[str, Tensor]:
        weight = torch.exp(-(rows.slot - 1) / self.decay)
        return {"cross_entropy": weight * (rows.labels >= 0)}

    def losses(self, draft_logits: Tensor, target_logits: Tensor | None, rows: Rows) -> dict[str, Tensor]:
        return {"cross_entropy": F.cross_entropy(draft_logits, rows.labels.clamp(min=0), reduction="none")}


class DraftOPD:
    """Draft-OPD's objective in its full-vocabulary form (arXiv 2605.29343).

    Forward KL(p‖q) averaged over accepted drafts, and reverse KL(q‖p) averaged over rejected drafts with weight
    position_decay^(k - 1), k counted from the anchor.

    Args:
        position_decay: weight of later positions among the rejected drafts; 1 = no decay.
        accepted, rejected: coefficients of the two terms; only their ratio matters.
    """

    needs_target = True

    def __init__(self, position_decay: float = 0.8, accepted: float = 1.0, rejected: float = 1.0) -> None:
        self.position_decay = position_decay
        self.coefficients = {"accepted": accepted, "rejected": rejected}

    def weights(self, rows: Rows) -> dict[str, Tensor]:
        decayed = self.position_decay ** (rows.slot - 1).float()
        return {"accepted": rows.accepted.float(), "rejected": decayed * ~rows.accepted}

    def losses(self, draft_logits: Tensor, target_logits: Tensor | None, rows: Rows) -> dict[str, Tensor]:
        assert target_logits is not None
        log_p, log_q = target_logits.log_softmax(-1), draft_logits.log_softmax(-1)
        # a row needs one divergence: KL(p‖q) where accepted, KL(q‖p) where rejected
        accepted = rows.accepted[:, None]
        loss = kl(torch.where(accepted, log_p, log_q), torch.where(accepted, log_q, log_p))
        return {"accepted": loss, "rejected": loss}
