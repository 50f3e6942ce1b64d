"""EAGLE-3's SFT objective as a function of rows."""

import torch.nn.functional as F
from torch import Tensor

from draftopd.losses import Rows


class SoftCrossEntropy:
    """-sum_v p(v) log q(v) over the draft vocabulary, weighted by position_decay^(k - 1) at slot k (arXiv 2503.01840).

    The authors leave out rows whose most probable target token lies outside the draft vocabulary. In the target's
    greedy text that is the text's own token, and the one looked at here; in sampled text the sampled token stands for
    it.

    Args:
        position_decay: weight of later slots; 0.8 in the authors' code.
    """

    needs_target = True

    def __init__(self, position_decay: float = 0.8) -> None:
        self.position_decay = position_decay
        self.coefficients = {"soft_cross_entropy": 1.0}

    def weights(self, rows: Rows) -> dict[str, Tensor]:
        return {"soft_cross_entropy": self.position_decay ** (rows.slot - 1).float() * (rows.labels >= 0)}

    def losses(self, draft_logits: Tensor, target_logits: Tensor | None, rows: Rows) -> dict[str, Tensor]:
        assert target_logits is not None
        return {"soft_cross_entropy": F.cross_entropy(draft_logits, target_logits.softmax(-1), reduction="none")}
