"""Objectives that couple the slots of a block.

Where the sources divide by a sum that depends on the drafter, or by the number of texts, these divide by the number of
blocks or rows, which is known beforehand; the two differ by one positive factor per optimizer step.
"""

import torch
from torch import Tensor

from draftopd.objectives.base import HardLabels, Objective, text_loss
from draftopd.objectives.divergences import acceptance
from draftopd.objectives.rows import Rows
from draftopd.values.checked import checked
from draftopd.values.types import Share


@checked
class DPace(HardLabels):
    """D-PACE (arXiv 2605.18810, eqs. 7 and 8): cross-entropy weighted by what a slot adds to the accepted length.

        L = mean over blocks of sum_k w_k (-log q_k),  w_k = sum_{m >= k} prod_{i <= m} ((1 - s) q_i + s)

    q_k is the probability of the text's token, the weights are detached. With s = 0 its gradient is minus that of the
    accepted length 1 + sum_m prod_{i <= m} q_i. A token that the drafter's head lacks has q = 0 and is not supervised.
    SpecForge divides by the number of texts, speculators by that of rows.

    Args:
        smoothing: s, the paper's alpha; sources take 0.5.
        reached_only: see HardLabels.
    """

    def __init__(self, smoothing: Share = 0.5, reached_only: bool = False) -> None:
        super().__init__(reached_only)
        self.smoothing = smoothing
        self.coefficients = {"d_pace": 1.0}

    def denominators(self, rows: Rows) -> dict[str, Tensor]:
        return {"d_pace": rows.opens.float()}

    def numerators(self, draft_logits: Tensor, target_log_probs: Tensor | None, rows: Rows) -> dict[str, Tensor]:
        loss, known = text_loss(draft_logits, rows), self.labelled(rows)
        with torch.no_grad():
            confidence = (1 - self.smoothing) * torch.exp(-loss) * known + self.smoothing
            weight = rows.suffix_sum(rows.prefix_product(confidence) * known)
        return {"d_pace": weight * loss}


class AcceptUntilFail(HardLabels):
    """Spec-AUF (arXiv 2607.01893): cross-entropy through the first slot whose argmax is not the text's token.

    A mean over blocks of sums over that support; a public re-implementation divides by the size of the support. No
    position weights: with the cut the paper finds them without effect. On fresh traces of a greedy target the support
    is slots 1..r + 1, the accepted drafts and the correction.

    Args:
        reached_only: see HardLabels.
    """

    def __init__(self, reached_only: bool = False) -> None:
        super().__init__(reached_only)
        self.coefficients = {"accept_until_fail": 1.0}

    def denominators(self, rows: Rows) -> dict[str, Tensor]:
        return {"accept_until_fail": rows.opens.float()}

    def numerators(self, draft_logits: Tensor, target_log_probs: Tensor | None, rows: Rows) -> dict[str, Tensor]:
        failed = (draft_logits.argmax(-1) != rows.text).long()
        supported = (rows.prefix_sum(failed) - failed == 0) & self.labelled(rows)
        return {"accept_until_fail": supported * text_loss(draft_logits, rows)}


class ExpectedLength(Objective):
    """How much the expected acceptance length lacks, as a differentiable surrogate.

        L = mean over rows of 1 - prod_{j <= k} alpha_j,  alpha_j = sum_v min(p_j, q_j)

    so that 1 + (1 - L) K is the expected acceptance length of full blocks, bonus included, when every draft is sampled
    from q, accepted by rejection sampling (arXiv 2211.17192), and p after a draft does not depend on that draft. Else
    it is a surrogate along one path: the text's, or on rollouts the drafts'. The official Draft-OPD code has the same
    loss for rollouts (`use_tv_loss`, added after the paper), as a mean over blocks of each block's mean.
    """

    needs_target = whole_vocabulary = True

    def __init__(self) -> None:
        self.coefficients = {"expected_length": 1.0}

    def denominators(self, rows: Rows) -> dict[str, Tensor]:
        return {"expected_length": torch.ones_like(rows.slot, dtype=torch.float32)}

    def numerators(self, draft_logits: Tensor, target_log_probs: Tensor | None, rows: Rows) -> dict[str, Tensor]:
        assert target_log_probs is not None
        alpha = acceptance(target_log_probs, draft_logits.log_softmax(-1))
        return {"expected_length": 1 - rows.prefix_product(alpha)}
