"""The loss of a drafter's confidence head, beside any objective."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from draftopd.objectives.base import Objective, position_weight
from draftopd.objectives.divergences import acceptance
from draftopd.objectives.rows import Rows

DECAY = 4.0  # of the authors' configs, for blocks of 7 drafts


def complete(objective: Objective, confidence: nn.Module | None) -> Objective:
    """With the loss of the confidence head, where the drafter has one."""
    return objective if confidence is None else WithConfidence(objective)


class WithConfidence(Objective):
    """An objective of the drafts, and DSpark's loss of the confidence head (arXiv 2607.05147, eqs. 8 and 11).

        L = L_objective + sum_k w_k BCE(c_k, alpha_k) / sum_k w_k
        alpha_k = sum_v min(p_k, q_k),  w_k = exp(-(k - 1) / 4)

    c_k is the head's prediction, alpha_k the chance that rejection sampling accepts a draft, detached: exact where the
    objective has p of the whole vocabulary, else within the draft vocabulary. The paper's weight of this loss is 1. Its
    gradient stays in the confidence head, so that the drafts are those of the objective alone; in the authors' code it
    reaches the other weights too.
    """

    needs_target = True

    def __init__(self, objective: Objective) -> None:
        self.objective = objective
        self.needs_tails, self.needs_argmax = objective.needs_tails, objective.needs_argmax
        self.whole_vocabulary, self.whole_texts = objective.whole_vocabulary, objective.whole_texts
        self.coefficients = {**objective.coefficients, "confidence": 1.0}

    @property
    def factors(self) -> dict[str, float]:
        return {**self.objective.factors, "confidence": 1.0}

    def denominators(self, rows: Rows) -> dict[str, Tensor]:
        return {**self.objective.denominators(rows), "confidence": position_weight(rows.slot, DECAY)}

    def numerators(self, draft_logits: Tensor, target_log_probs: Tensor | None, rows: Rows) -> dict[str, Tensor]:
        assert target_log_probs is not None
        assert rows.confidence is not None
        with torch.no_grad():
            alpha = acceptance(target_log_probs, draft_logits.log_softmax(-1)).clamp(0, 1)
        predicted = rows.confidence.to(alpha.dtype)
        loss = F.binary_cross_entropy_with_logits(predicted, alpha, reduction="none")
        terms = self.objective.numerators(draft_logits, target_log_probs, rows)
        return {**terms, "confidence": position_weight(rows.slot, DECAY) * loss}
