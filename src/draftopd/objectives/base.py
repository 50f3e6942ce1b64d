"""Objectives as functions of rows (see rows.py): weighted means, and a convex mix of several.

    L = sum_i lambda_i * (sum of numerators_i) / (sum of denominators_i) / sum_i lambda_i

Denominators depend on the places of rows and not on the drafter's output, so that those of a whole optimizer step are
known before its first backward pass. Objectives whose weights do depend on the drafter are means over blocks or rows
(block.py).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from draftopd.errors import DraftError
from draftopd.objectives.divergences import at_temperature
from draftopd.objectives.rows import Rows
from draftopd.values.checked import checked
from draftopd.values.types import NonNegative, Positive

Divergence = Callable[[Tensor, Tensor], Tensor]
"""(log p [M, V], log q [M, V]) -> [M]"""


class Objective(ABC):
    """Reads rows; knows nothing of models."""

    needs_target = False
    """it reads log p"""
    needs_tails = True
    """it reads slots after a first rejection, which cost a forward of the target over rejected drafts"""
    needs_argmax = False
    """it reads `Rows.argmax` at slots after a first rejection"""
    whole_vocabulary = False
    """log p is that of all tokens, cut to the draft vocabulary; else it is normalised over the draft vocabulary"""
    whole_texts = False
    """it couples the blocks of a text, so all logits of a text exist at a time"""
    coefficients: dict[str, float]
    """lambda of each term"""

    @property
    def factors(self) -> dict[str, float]:
        """Each term's factor in the loss; DraftError where none is above 0."""
        return shares(self.coefficients)

    @abstractmethod
    def denominators(self, rows: Rows) -> dict[str, Tensor]:
        """[M] what each row adds to the denominator of each term."""

    @abstractmethod
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


class HardLabels(Objective):
    """The label of slot k is the committed token at its position, on rollouts the target's correction at slot r + 1.

    Args:
        reached_only: only slots 1..r + 1, which decide acceptance; on texts these are all. A drafter that reads its own
            drafts (EAGLE-3) needs it on rollouts: the text does not follow a rejected draft.
    """

    def __init__(self, reached_only: bool) -> None:
        self.reached_only, self.needs_tails = reached_only, not reached_only

    def labelled(self, rows: Rows) -> Tensor:
        """[M] bool: the row has a label, which the head knows."""
        return (rows.text >= 0) & rows.reached if self.reached_only else rows.text >= 0


@checked
class CrossEntropy(HardLabels):
    """DFlash's SFT objective (arXiv 2602.06036): cross-entropy with weight exp(-(k - 1) / decay) at slot k.

    Args:
        decay: in slots; the paper takes 7 for block size 16, 5 for 10, 4 for 8; None = no decay.
        reached_only: see HardLabels.
    """

    def __init__(self, decay: Positive | None, reached_only: bool = False) -> None:
        super().__init__(reached_only)
        self.decay = decay
        self.coefficients = {"cross_entropy": 1.0}

    def denominators(self, rows: Rows) -> dict[str, Tensor]:
        return {"cross_entropy": position_weight(rows.slot, self.decay) * self.labelled(rows)}

    def numerators(self, draft_logits: Tensor, target_log_probs: Tensor | None, rows: Rows) -> dict[str, Tensor]:
        return {"cross_entropy": self.denominators(rows)["cross_entropy"] * text_loss(draft_logits, rows)}


@checked
class Distillation(Objective):
    """A divergence of target and drafter at every slot, with cross-entropy's position weights.

    On texts p follows the text; on rollouts it follows the drafts, also after a first rejection.

    Args:
        divergence: of draftopd.objectives.divergences.
        decay: in slots, as in CrossEntropy; None = no decay.
        whole_vocabulary: p of all tokens, not normalised over a reduced draft vocabulary: what acceptance rates need.
            Costs the target's whole head on every row.
        skip_unknown: leave out rows where the drafter's head lacks the most probable token under p (EAGLE-3, arXiv
            2503.01840). Up to slot r + 1 that is taken to be the text's, as in greedy text. Later slots need the
            target's whole head, and still count in the denominator, which is known before p is.
        reached_only: only slots 1..r + 1, which decide acceptance.
        target_temperature: T of the target's distribution, p^(1/T) normalised: 1 = p, 0 = its most probable token,
            which is not for reverse KL, infinite there.
        clamp: largest divergence of a row, in nats, for unbounded ones; rows above it have no gradient. None = none.

    Raises:
        DraftError: target_temperature is set with whole_vocabulary.
    """

    needs_target = True

    def __init__(
        self,
        divergence: Divergence,
        decay: Positive | None,
        whole_vocabulary: bool = False,
        skip_unknown: bool = False,
        reached_only: bool = False,
        target_temperature: NonNegative = 1.0,
        clamp: Positive | None = None,
    ) -> None:
        if whole_vocabulary and target_temperature != 1:
            raise DraftError(
                f"objective.target_temperature={target_temperature} needs objective.whole_vocabulary=false: what a "
                "reduced draft vocabulary lacks is known at temperature 1 only"
            )
        self.divergence, self.decay, self.whole_vocabulary = divergence, decay, whole_vocabulary
        self.skip_unknown, self.reached_only, self.clamp = skip_unknown, reached_only, clamp
        self.target_temperature = target_temperature
        self.needs_tails, self.needs_argmax = not reached_only, skip_unknown and not reached_only
        self.coefficients = {"divergence": 1.0}

    def denominators(self, rows: Rows) -> dict[str, Tensor]:
        weights = position_weight(rows.slot, self.decay)
        if self.skip_unknown:
            weights = weights * ((rows.text >= 0) | ~rows.reached)
        return {"divergence": weights * rows.reached if self.reached_only else weights}

    def numerators(self, draft_logits: Tensor, target_log_probs: Tensor | None, rows: Rows) -> dict[str, Tensor]:
        assert target_log_probs is not None
        log_p = at_temperature(target_log_probs, self.target_temperature)
        loss = self.divergence(log_p, draft_logits.log_softmax(-1))
        loss = loss if self.clamp is None else loss.clamp(max=self.clamp)
        weights = self.denominators(rows)["divergence"]
        if self.needs_argmax and rows.argmax is not None:
            weights = weights * (rows.reached | (rows.argmax >= 0))
        return {"divergence": weights * loss}


@checked
class Mix(Objective):
    """Objectives side by side: sum_i weight_i L_i / sum_i weight_i.

    Args:
        objectives: each by a name, under which its terms are logged.
        weights: of each name.

    Raises:
        DraftError: a name lacks its objective or its weight.
    """

    def __init__(self, objectives: Mapping[str, Objective], weights: Mapping[str, NonNegative]) -> None:
        if objectives.keys() != weights.keys():
            raise DraftError(f"objective.weights {sorted(weights)} must name the objectives {sorted(objectives)}")
        self.objectives, self.weights = dict(objectives), dict(weights)
        self.needs_target = any(o.needs_target for o in self.objectives.values())
        self.needs_tails = any(o.needs_tails for o in self.objectives.values())
        self.needs_argmax = any(o.needs_argmax for o in self.objectives.values())
        self.whole_vocabulary = any(o.whole_vocabulary for o in self.objectives.values())
        self.whole_texts = any(o.whole_texts for o in self.objectives.values())
        self.coefficients = {
            f"{name}/{term}": weights[name] * share
            for name, objective in self.objectives.items()
            for term, share in objective.factors.items()
        }

    @property
    def factors(self) -> dict[str, float]:
        parts = shares(self.weights)
        return {
            f"{name}/{term}": parts[name] * factor
            for name, objective in self.objectives.items()
            for term, factor in objective.factors.items()
        }

    def denominators(self, rows: Rows) -> dict[str, Tensor]:
        parts = {name: o.denominators(rows) for name, o in self.objectives.items()}
        return {f"{name}/{term}": value for name, terms in parts.items() for term, value in terms.items()}

    def numerators(self, draft_logits: Tensor, target_log_probs: Tensor | None, rows: Rows) -> dict[str, Tensor]:
        parts = {name: o.numerators(draft_logits, target_log_probs, rows) for name, o in self.objectives.items()}
        return {f"{name}/{term}": value for name, terms in parts.items() for term, value in terms.items()}
