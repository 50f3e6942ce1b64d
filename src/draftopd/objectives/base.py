"""Objectives as functions of rows (see rows.py): weighted means, and a convex mix of several.

    L = sum_i lambda_i * (sum of numerators_i) / (sum of denominators_i) / sum_i lambda_i

Denominators depend on the places of rows and not on the drafter's output, so that those of a whole optimizer step are
known before its first backward pass. Objectives whose weights do depend on the drafter are means over blocks or rows
(block.py).
"""

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from draftopd.errors import DraftError
from draftopd.objectives.rows import Rows

Divergence = Callable[[Tensor, Tensor], Tensor]
"""(log p [M, V], log q [M, V]) -> [M]"""


class Objective(Protocol):
    """Reads rows; knows nothing of models."""

    needs_target: bool
    """it reads log p"""
    needs_tails: bool
    """it reads slots after a first rejection, which cost a forward of the target over rejected drafts"""
    whole_vocabulary: bool
    """log p is that of all tokens, cut to the draft vocabulary; else it is normalised over the draft vocabulary"""
    coefficients: dict[str, float]
    """lambda of each term"""

    def denominators(self, rows: Rows) -> dict[str, Tensor]:
        """[M] what each row adds to the denominator of each term."""

    def numerators(self, draft_logits: Tensor, target_log_probs: Tensor | None, rows: Rows) -> dict[str, Tensor]:
        """[M] what each row adds to the numerator of each term; logits and log p are [M, V]."""


def shares(coefficients: Mapping[str, float]) -> dict[str, float]:
    """lambda_i / sum_j lambda_j.

    Raises:
        DraftError: they do not add up to more than 0.
    """
    total = sum(coefficients.values())
    if total <= 0:
        raise DraftError(f"the objective's weights {dict(coefficients)} must add up to more than 0")
    return {name: value / total for name, value in coefficients.items()}


def text_loss(draft_logits: Tensor, rows: Rows) -> Tensor:
    """[M] -log q of the text's token; 0 where the head has no such token."""
    return F.cross_entropy(draft_logits, rows.text.clamp(min=0), reduction="none") * (rows.text >= 0)


def position_weight(slot: Tensor, decay: float | None) -> Tensor:
    """exp(-(k - 1) / decay) at slot k (arXiv 2602.06036); None: 1."""
    return torch.ones_like(slot, dtype=torch.float32) if decay is None else torch.exp((1 - slot).float() / decay)


class CrossEntropy:
    """DFlash's SFT objective (arXiv 2602.06036): cross-entropy with weight exp(-(k - 1) / decay) at slot k.

    The label is the committed token, so on rollouts it is SFT at the rollout's anchors.

    Args:
        decay: in slots; the paper takes 7 for block size 16, 5 for 10, 4 for 8; None = no decay.
    """

    needs_target = whole_vocabulary = False
    needs_tails = True

    def __init__(self, decay: float | None) -> None:
        self.decay = decay
        self.coefficients = {"cross_entropy": 1.0}

    def denominators(self, rows: Rows) -> dict[str, Tensor]:
        return {"cross_entropy": position_weight(rows.slot, self.decay) * (rows.text >= 0)}

    def numerators(self, draft_logits: Tensor, target_log_probs: Tensor | None, rows: Rows) -> dict[str, Tensor]:
        return {"cross_entropy": position_weight(rows.slot, self.decay) * text_loss(draft_logits, rows)}


class Distillation:
    """A divergence of target and drafter at every slot, with cross-entropy's position weights.

    On texts p follows the text; on rollouts it follows the drafts, also after a first rejection.

    Args:
        divergence: of draftopd.objectives.divergences.
        decay: in slots, as in CrossEntropy; None = no decay.
        whole_vocabulary: p of all tokens, not normalised over a reduced draft vocabulary: what acceptance rates need.
            Costs the target's whole head on every row.
        skip_unknown: leave out rows whose text's token the drafter's head lacks. In greedy text that is the target's
            most probable token (EAGLE-3, arXiv 2503.01840).
    """

    needs_target = needs_tails = True

    def __init__(
        self, divergence: Divergence, decay: float | None, whole_vocabulary: bool = False, skip_unknown: bool = False
    ) -> None:
        self.divergence, self.decay, self.whole_vocabulary = divergence, decay, whole_vocabulary
        self.skip_unknown = skip_unknown
        self.coefficients = {"divergence": 1.0}

    def _weights(self, rows: Rows) -> Tensor:
        weights = position_weight(rows.slot, self.decay)
        return weights * (rows.text >= 0) if self.skip_unknown else weights

    def denominators(self, rows: Rows) -> dict[str, Tensor]:
        return {"divergence": self._weights(rows)}

    def numerators(self, draft_logits: Tensor, target_log_probs: Tensor | None, rows: Rows) -> dict[str, Tensor]:
        assert target_log_probs is not None
        loss = self.divergence(target_log_probs, draft_logits.log_softmax(-1))
        return {"divergence": self._weights(rows) * loss}


class Mix:
    """Objectives side by side: sum_i weight_i L_i / sum_i weight_i.

    Args:
        objectives: each by a name, under which its terms are logged.
        weights: of each name.

    Raises:
        DraftError: a name lacks its objective or its weight.
    """

    def __init__(self, objectives: Mapping[str, Objective], weights: Mapping[str, float]) -> None:
        if objectives.keys() != weights.keys():
            raise DraftError(f"objective.weights {sorted(weights)} must name the objectives {sorted(objectives)}")
        self.objectives = dict(objectives)
        self.needs_target = any(o.needs_target for o in self.objectives.values())
        self.needs_tails = any(o.needs_tails for o in self.objectives.values())
        self.whole_vocabulary = any(o.whole_vocabulary for o in self.objectives.values())
        self.coefficients = {
            f"{name}/{term}": weights[name] * share
            for name, objective in self.objectives.items()
            for term, share in shares(objective.coefficients).items()
        }

    def denominators(self, rows: Rows) -> dict[str, Tensor]:
        parts = {name: o.denominators(rows) for name, o in self.objectives.items()}
        return {f"{name}/{term}": value for name, terms in parts.items() for term, value in terms.items()}

    def numerators(self, draft_logits: Tensor, target_log_probs: Tensor | None, rows: Rows) -> dict[str, Tensor]:
        parts = {name: o.numerators(draft_logits, target_log_probs, rows) for name, o in self.objectives.items()}
        return {f"{name}/{term}": value for name, terms in parts.items() for term, value in terms.items()}
