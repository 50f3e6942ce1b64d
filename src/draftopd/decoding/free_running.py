"""Text that the drafter writes alone: every draft is committed and nothing is ever corrected.

This is not speculative decoding: the text is the drafter's, not the target's. It exists to train on and to look at;
nothing that decodes for a user, validates or evaluates comes here.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from draftopd.decoding.batch import DecodingBatch
from draftopd.decoding.ledger import Ledger
from draftopd.decoding.rollout import decode
from draftopd.decoding.sampling import Places, Proposal
from draftopd.decoding.settings import Decoding
from draftopd.drafters.base import Drafter
from draftopd.target.model import Target
from draftopd.trace import Rollout


class FreeRunningBatch(DecodingBatch):
    """Commits whole blocks: the last draft is the next anchor, where a verification would have put the bonus token.

    The target still reads every block, because the drafter needs the features of what is committed, and what it says of
    each draft is kept; its head is not run.
    """

    def _judge(self, drafts: Tensor, hidden: Tensor, places: Places, proposal: Proposal) -> tuple[Tensor, Tensor]:
        return torch.full_like(self.tokens, drafts.shape[1] - 1), drafts[:, -1]


def free_running(
    target: Target,
    drafter: Drafter,
    prompts: Sequence[Sequence[int]],
    decoding: Decoding,
    *,
    keep: bool = False,
    keys: Sequence[int] | None = None,
    drafter_step: int = 0,
    ledger: Ledger | None = None,
    on_done: Callable[[int], None] = lambda finished: None,
    store: Callable[[Tensor], Tensor] = Tensor.cpu,
) -> list[Rollout]:
    """One response of the drafter's own per prompt; arguments as `rollout.rollout`.

    The first token is the target's, since a block needs an anchor whose features it does not read. All drafts of the
    traces count as accepted; a block's last draft is the next one's anchor, so their anchors are K apart.
    """
    extras = (keep, drafter.layer_ids, keys, drafter_step, ledger, on_done, store)
    results = decode(FreeRunningBatch, target, drafter, prompts, decoding, *extras)
    return [replace(r, trace=replace(r.trace, accepted=r.trace.committed)) for r in results]
