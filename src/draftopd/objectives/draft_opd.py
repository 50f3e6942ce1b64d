"""Draft-OPD (arXiv 2605.29343): as in the paper, and as in its official code, with one token per stream."""

from typing import Literal

import torch
from torch import Tensor

from draftopd.objectives.base import Divergence, Objective
from draftopd.objectives.divergences import forward_kl, reverse_kl
from draftopd.objectives.rows import Rows
from draftopd.values.checked import checked
from draftopd.values.types import NonNegative, Share

LOG_PROB_RANGE = (-10.0, -1e-6)
LARGEST_LOSS = 10.0
LARGEST_DELTA = 20.0


@checked
class DraftOPD(Objective):
    """Draft-OPD's objective in its full-vocabulary form (arXiv 2605.29343).

    KL(p‖q) averaged over accepted drafts, and KL(q‖p) averaged over rejected drafts with weight
    position_decay^(k - 1), k counted from the anchor. On texts, where every draft is accepted, it is the first term.

    Args:
        position_decay: weight of later positions among the rejected drafts; 1 = no decay.
        accepted, rejected: coefficients of the two terms; only their ratio matters.
        accepted_divergence, rejected_divergence: the paper's are forward and reverse KL.
        rejected_slots: "all", or "first": only the slot of the first rejection.
        correction: the slot of the first rejection also counts among the accepted ones, as in the official code,
            whose label there is the target's correction. The paper's definition leaves it out.
    """

    needs_target = True

    def __init__(
        self,
        position_decay: Share = 0.8,
        accepted: NonNegative = 1.0,
        rejected: NonNegative = 1.0,
        accepted_divergence: Divergence = forward_kl,
        rejected_divergence: Divergence = reverse_kl,
        rejected_slots: Literal["all", "first"] = "all",
        correction: bool = False,
    ) -> None:
        self.position_decay = position_decay
        self.divergences = {"accepted": accepted_divergence, "rejected": rejected_divergence}
        self.first_only, self.correction = rejected_slots == "first", correction
        self.needs_tails = not self.first_only
        self.coefficients = {"accepted": accepted, "rejected": rejected}

    def denominators(self, rows: Rows) -> dict[str, Tensor]:
        rejected = rows.first_rejected if self.first_only else ~rows.accepted
        accepted = rows.accepted | rows.first_rejected if self.correction else rows.accepted
        return {"accepted": accepted.float(), "rejected": self.position_decay ** (rows.slot - 1).float() * rejected}

    def numerators(self, draft_logits: Tensor, target_log_probs: Tensor | None, rows: Rows) -> dict[str, Tensor]:
        assert target_log_probs is not None
        weights = self.denominators(rows)
        places = {name: weight.nonzero()[:, 0] for name, weight in weights.items()}
        # each divergence is computed only for its own rows; they are sorted by term once, in one copy
        ordered = draft_logits.index_select(0, torch.cat(list(places.values()))).log_softmax(-1)
        terms = {}
        for (name, at), log_q in zip(places.items(), ordered.split([len(i) for i in places.values()]), strict=True):
            loss = self.divergences[name](target_log_probs[at], log_q)
            terms[name] = loss.new_zeros(len(rows)).index_put((at,), weights[name][at] * loss)
        return terms


def bernoulli_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p‖q) of the variable "this token or another", from log-probabilities of the token; clamped.

    The clamp stops the gradient of tokens with log q < -10, as in the official code.
    """
    log_p, log_q = log_p.clamp(*LOG_PROB_RANGE), log_q.clamp(*LOG_PROB_RANGE)
    p, q = log_p.exp(), log_q.exp()
    return p * (log_p - log_q) + (1 - p) * (torch.log1p(-p) - torch.log1p(-q))


def k3(log_p: Tensor, log_q: Tensor) -> Tensor:
    """e^d - d - 1 with d = log p - log q of one token: an estimate of KL(q‖p), unbiased for tokens ~ q; clamped.

    Where the clamp binds (d > 2.6) there is no gradient. Greedy drafts are not ~ q, which makes it a biased surrogate.
    """
    delta = (log_p - log_q).clamp(-LARGEST_DELTA, LARGEST_DELTA)
    return (delta.exp() - delta - 1).clamp(max=LARGEST_LOSS)


@checked
class OneTokenOPD(Objective):
    """The official code's default objective (github.com/bingyang-lei/Draft-OPD at 69b03dab, `losses.py`).

        L = (response * sum ell(y_k) + rejected * sum g^(k-1) k3(d_k)) / (response * N + rejected * sum g^(k-1))

    Response stream: slots 1..r + 1 with the committed token y_k, the target's correction at slot r + 1 included, by
    `bernoulli_kl`. Rejected stream: the drafts d_k of slots k > r by `k3`. Slot r + 1 is in both, with a token for each
    and the same row of the target for both. One pooled mean: at an acceptance length of 6 the rejected stream
    weighs about a fifth.

    N counts the rows of the response stream; in the official code all response tokens, also those that no slot drafts
    (the first one, and the one after a fully accepted block). That scales L by one factor. There the first block is
    replayed from the prompt's last token, here from its own anchor. Tokens outside the draft vocabulary are
    left out. On texts there is only the response stream.

    Args:
        position_decay: g.
        response, rejected: weights of the streams.
    """

    needs_target = whole_vocabulary = True

    def __init__(self, position_decay: Share = 0.8, response: NonNegative = 1.0, rejected: NonNegative = 1.0) -> None:
        self.position_decay, self.response, self.rejected = position_decay, response, rejected
        self.coefficients = {"one_token": 1.0}

    def _weights(self, rows: Rows) -> tuple[Tensor, Tensor]:
        response = (rows.accepted | rows.first_rejected) & (rows.text >= 0)
        rejected = ~rows.accepted & (rows.draft >= 0)
        decayed = self.position_decay ** (rows.slot - 1).float()
        return self.response * response, self.rejected * decayed * rejected

    def denominators(self, rows: Rows) -> dict[str, Tensor]:
        response, rejected = self._weights(rows)
        return {"one_token": response + rejected}

    def numerators(self, draft_logits: Tensor, target_log_probs: Tensor | None, rows: Rows) -> dict[str, Tensor]:
        assert target_log_probs is not None
        log_q = draft_logits.log_softmax(-1)

        def pick(tokens: Tensor) -> tuple[Tensor, Tensor]:
            index = tokens.clamp(min=0)[:, None]
            return target_log_probs.gather(1, index)[:, 0], log_q.gather(1, index)[:, 0]

        response, rejected = self._weights(rows)
        return {"one_token": response * bernoulli_kl(*pick(rows.text)) + rejected * k3(*pick(rows.draft))}
