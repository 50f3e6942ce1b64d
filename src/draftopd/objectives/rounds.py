"""Expected decoding rounds: how often the target would have to verify on the way through a text."""

import torch
import torch.nn.functional as F
from torch import Tensor

from draftopd.errors import DraftError
from draftopd.objectives.base import HardLabels, text_loss
from draftopd.objectives.rows import Rows


class DecodingRounds(HardLabels):
    """The expected number of verifications R of a text, exact where it has a block at every position.

        L = mean over texts of R / (tokens after the first anchor), an expected 1 / acceptance length

    after y-x-zhao/AngelSpec-EDR at 0a31a877 ("expected decoding rounds"). Drafts are sampled from q and accepted while
    they are the text's tokens; q = 0 for a token that the head lacks. For a greedy target that is what the source
    computes; above temperature 0 its rejection sampling accepts with min(1, q / p) instead, and this sharpens q.

    A mean over texts, as the acceptance length is one over responses; the number of texts is known before the backward
    pass. The gradient at a slot is proportional to its q: it is for trained drafters (the source has no training from
    scratch). All logits of a text exist at a time, and a square matrix of its length.

    Where anchors are sampled, a position without a block takes the probabilities of the last block before it. So R
    estimates that of the whole text, every block counts for the positions it stands for, and with a block at every
    position nothing is estimated. Tokens up to the first anchor are not counted.

    Args:
        reached_only: see HardLabels; later slots then count as never accepted.
    """

    whole_texts = True

    def __init__(self, reached_only: bool = False) -> None:
        super().__init__(reached_only)
        self.coefficients = {"decoding_rounds": 1.0}

    def denominators(self, rows: Rows) -> dict[str, Tensor]:
        return {"decoding_rounds": rows.opens_text.float()}

    def numerators(self, draft_logits: Tensor, target_log_probs: Tensor | None, rows: Rows) -> dict[str, Tensor]:
        """A text's value stands in its first row.

        Raises:
            DraftError: blocks of a text are not in its order, or do not begin at slot 1.
        """
        loss = text_loss(draft_logits, rows)
        q = torch.exp(-loss.to(torch.promote_types(loss.dtype, torch.float32))) * self.labelled(rows)
        values = [q[:0]]
        for part in rows.chunks(1, self.whole_texts):
            text, opens = rows[part], rows.opens[part]
            offsets = text.remaining[:1] - text.remaining[opens]
            if (offsets.diff() <= 0).any() or (text.slot[opens] != 1).any():
                raise DraftError(
                    "objective=decoding_rounds needs whole blocks in the order of the text: data.place=null"
                )
            if len(text):
                length = int(text.remaining[0])
                rounds = expected_rounds(text.grid(q[part], 0), offsets, length) / length
                values.append(F.pad(rounds[None], (0, len(text) - 1)))
        return {"decoding_rounds": torch.cat(values)}


def expected_rounds(q: Tensor, offsets: Tensor, length: int) -> Tensor:
    """R = sum_a o(a), o the chance that a is an anchor: o(0) = 1, o(a') = sum_a o(a) P(a -> a').

    A block of which exactly k drafts are accepted, with P = prod_{i <= k} q_i (1 - q_{k+1}), moves on by k + 1 tokens.

    Args:
        q: [N, K] the probability of the text's token at each slot of each block; 0 from a block's end on.
        offsets: [N] the anchors of the blocks, counted from the first one, ascending.
        length: tokens after the first anchor.
    """
    accepted = torch.cat([torch.ones_like(q[:, :1]), q.cumprod(1), torch.zeros_like(q[:, :1])], 1)
    exactly = accepted[:, :-1] - accepted[:, 1:]
    anchor = torch.arange(length, device=q.device)
    block = torch.searchsorted(offsets, anchor, right=True) - 1
    following = anchor[:, None] + torch.arange(1, q.shape[1] + 2, device=q.device)
    inside = following < length
    places = (following[inside], anchor[:, None].expand_as(following)[inside])
    # o = first + moves o, in one solution of a triangular system
    system = q.new_zeros(length, length).index_put(places, -exactly[block][inside])
    first = torch.zeros_like(system[:, :1])
    first[0] = 1
    return torch.linalg.solve_triangular(system, first, upper=False, unitriangular=True).sum()
