"""Target-assisted rollouts: draft, verify, accept, repeat. With no drafter it is plain decoding."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from draftopd.batch import DecodingBatch
from draftopd.drafters.base import Drafter
from draftopd.ledger import Ledger
from draftopd.target import Target
from draftopd.trace import Rollout

__all__ = ["Decoding", "Rollout", "rollout"]


@dataclass(frozen=True)
class Decoding:
    """How text is made: greedily. `batch_size` changes speed and memory, not texts."""

    max_new_tokens: int = 128
    batch_size: int = 16


@torch.no_grad()
def rollout(
    target: Target,
    drafter: Drafter | None,
    prompts: Sequence[Sequence[int]],
    decoding: Decoding,
    *,
    keep: bool = False,
    layer_ids: Sequence[int] = (),
    drafter_step: int = 0,
    ledger: Ledger | None = None,
    on_done: Callable[[int], None] = lambda finished: None,
) -> list[Rollout]:
    """Writes one response per prompt, in batches; results stand in the order of the prompts.

    The text is the target's greedy text whatever the drafter is. Gradients are off and the drafter is in eval mode
    while it runs, and both are restored.

    Args:
        drafter: None decodes plainly (K = 0, traces without blocks).
        prompts: token ids, at least one each.
        keep: also return features and target hidden states of the verifications.
        layer_ids: features to keep where there is no drafter.
        drafter_step: recorded in the traces.
        ledger: counts tokens and FLOPs of `prefill`, `verify` and `draft`.
        on_done: called with the number of responses just finished.
    """
    was_training = drafter is not None and drafter.training
    if drafter is not None:
        drafter.eval()
        layer_ids = drafter.layer_ids
    # prompts of like length are prefilled together: less padding
    waiting = deque(sorted(range(len(prompts)), key=lambda i: len(prompts[i])))
    longest = max((len(p) for p in prompts), default=0)
    width = min(decoding.batch_size, len(prompts))
    options = (tuple(layer_ids), decoding.max_new_tokens, longest, keep, drafter_step, ledger)
    batch = DecodingBatch(target, drafter, width, *options)
    results: dict[int, Rollout] = {}
    try:
        while len(results) < len(prompts):
            free = batch.free()
            if waiting and len(free) >= width / 8:
                batch.join({i: prompts[i] for i in (waiting.popleft() for _ in range(min(len(free), len(waiting))))})
            else:
                if not waiting and len(free) >= len(batch.rows) / 4:
                    batch.compact()
                batch.step()
            finished = batch.finished()
            results |= finished
            on_done(len(finished))
    finally:
        if drafter is not None:
            drafter.train(was_training)
    return [results[i] for i in range(len(prompts))]
