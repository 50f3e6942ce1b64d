"""Text that the drafter writes by itself: every draft is committed and nothing is ever corrected.

This is not speculative decoding: the text is the drafter's, not the target's. It is for training and for looking at;
nothing that decodes for a user, validates or evaluates uses it.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from draftopd.decoding.batch import DecodingBatch, RolloutOptions
from draftopd.decoding.ledger import Ledger
from draftopd.decoding.rollout import decode
from draftopd.decoding.sampling import Places, Proposal
from draftopd.decoding.settings import Decoding
from draftopd.drafters.base import Drafter
from draftopd.target.model import Target
from draftopd.trace import Rollout


class FreeRunningBatch(DecodingBatch):
    """Commits whole blocks: the last draft is the next anchor, in the place of the bonus token.

    The target still reads every block, because the drafter needs the features of the committed tokens, and its hidden
    state for each draft is recorded; its head does not run.
    """

    def _accept(self, drafts: Tensor, hidden: Tensor, places: Places, proposal: Proposal) -> tuple[Tensor, Tensor]:
        return torch.full_like(self.tokens, drafts.shape[1] - 1), drafts[:, -1]


def free_running(
    target: Target,
    drafter: Drafter,
    prompts: Sequence[Sequence[int]],
    decoding: Decoding,
    *,
    keep_states: bool = False,
    keys: Sequence[int] | None = None,
    drafter_step: int = 0,
    ledger: Ledger | None = None,
    on_done: Callable[[int], None] = lambda finished: None,
    store: Callable[[Tensor], Tensor] = Tensor.cpu,
) -> list[Rollout]:
    """One response of the drafter's own per prompt; arguments as of `rollout.rollout`.

    The first token is the target's, since a block needs an anchor whose features it does not read. All drafts of the
    traces count as accepted; a block's last draft is the next anchor, so anchors are K apart.
    """
    options = RolloutOptions(keep_states, drafter.layer_ids, keys, drafter_step, ledger or Ledger(), on_done, store)
    results = decode(FreeRunningBatch, target, drafter, prompts, decoding, options)
    return [replace(r, trace=replace(r.trace, accepted=r.trace.committed)) for r in results]
