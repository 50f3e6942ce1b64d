"""Text that the drafter writes by itself: every draft is committed and nothing is ever corrected.

This is not speculative decoding: the text is the drafter's, not the target's. It is for training and for looking at;
nothing that decodes for a user, validates or evaluates uses it.
"""

from functools import partial

import torch
from torch import Tensor

from draftopd.decoding.batch import DecodingBatch
from draftopd.decoding.rollout import rollout
from draftopd.decoding.sampling import Places, Proposal


class FreeRunningBatch(DecodingBatch):
    """Commits whole blocks: the last draft is the next anchor, in the place of the bonus token.

    The first token is the target's, since a block needs an anchor whose features it does not read. The target still
    reads every block, because the drafter needs the features of the committed tokens, and its hidden state for each
    draft is recorded; its head does not run. All drafts of the traces count as accepted, and anchors are K apart.
    """

    def verified(self, hidden: Tensor) -> int:
        return 0

    def _accept(self, drafts: Tensor, hidden: Tensor, places: Places, proposal: Proposal) -> tuple[Tensor, Tensor]:
        return torch.full_like(self.tokens, drafts.shape[1] - 1), drafts[:, -1]

    def _record(self, drafts: Tensor, accepted: Tensor, committed: Tensor, counts: Tensor, hidden: Tensor) -> None:
        super()._record(drafts, counts, committed, counts, hidden)


free_running = partial(rollout, kind=FreeRunningBatch)
"""`rollout.rollout` of the drafter's own text, one response per prompt"""
