"""Target-assisted rollouts: draft, verify, accept, repeat. With no drafter it is plain decoding."""

from collections import deque
from collections.abc import Callable, Sequence
from itertools import takewhile

import torch
from torch import Tensor

from draftopd.decoding.batch import DecodingBatch, Waiting
from draftopd.decoding.ledger import Ledger
from draftopd.decoding.settings import Decoding
from draftopd.drafters.base import Drafter
from draftopd.errors import DraftError
from draftopd.target.model import Target
from draftopd.trace import Rollout


def rollout(
    target: Target,
    drafter: Drafter | None,
    prompts: Sequence[Sequence[int]],
    decoding: Decoding,
    *,
    keep: bool = False,
    layer_ids: Sequence[int] = (),
    keys: Sequence[int] | None = None,
    drafter_step: int = 0,
    ledger: Ledger | None = None,
    on_done: Callable[[int], None] = lambda finished: None,
    store: Callable[[Tensor], Tensor] = Tensor.cpu,
) -> list[Rollout]:
    """Writes one response per prompt, in batches; results stand in the order of the prompts.

    The text follows the target whatever the drafter is: greedy text at temperature 0, a sample of its distribution
    above. Gradients are off and the drafter is in eval mode while it runs, and both are restored.

    Args:
        drafter: None decodes plainly (K = 0, traces without blocks).
        prompts: token ids, at least one each.
        keep: also return features and target hidden states of the verifications.
        layer_ids: features to keep where there is no drafter.
        keys: of each response's random numbers; default 0, 1, 2, ... The same key, seed and prompt draw the same text.
        drafter_step: recorded in the traces.
        ledger: counts tokens and FLOPs of `prefill`, `verify` and `draft`, and seconds of `prefill` and `decode`.
        on_done: called with the number of responses just finished.
        store: gives what is kept its place on the CPU (`storage.SpillStore`).

    Raises:
        DraftError: `decoding.memory_gib` does not hold one response.
    """
    extras = (keep, layer_ids, keys, drafter_step, ledger, on_done, store)
    return decode(DecodingBatch, target, drafter, prompts, decoding, *extras)


@torch.no_grad()
def decode(
    kind: type[DecodingBatch],
    target: Target,
    drafter: Drafter | None,
    prompts: Sequence[Sequence[int]],
    decoding: Decoding,
    keep: bool,
    layer_ids: Sequence[int],
    keys: Sequence[int] | None,
    drafter_step: int,
    ledger: Ledger | None,
    on_done: Callable[[int], None],
    store: Callable[[Tensor], Tensor],
) -> list[Rollout]:
    """`rollout` by batches of this kind, which says what is committed."""
    if not prompts:
        return []
    was_training = drafter is not None and drafter.training
    if drafter is not None:
        drafter.eval()
        layer_ids = drafter.layer_ids
    # prompts of like length are prefilled together: less padding
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    waiting = deque(Waiting(i, prompts[i], i if keys is None else keys[i]) for i in order)
    num_draft_tokens = 0 if drafter is None else drafter.num_draft_tokens
    capacity = len(prompts[order[-1]]) + decoding.max_new_tokens + num_draft_tokens + 1
    width = min(affordable_rows(target, drafter, capacity, decoding, layer_ids, keep), len(prompts))
    options = (tuple(layer_ids), keep, drafter_step, ledger or Ledger(), store)
    batch = kind(target, drafter, width, capacity, common_prefix(prompts), decoding, *options)
    try:
        results = _run(batch, waiting, on_done)
    finally:
        if drafter is not None:
            drafter.train(was_training)
    return [results[i] for i in range(len(prompts))]


def _run(batch: DecodingBatch, waiting: deque[Waiting], on_done: Callable[[int], None]) -> dict[int, Rollout]:
    """Steps until nobody waits and every row is free; finished rows are taken over a few at a time."""
    results: dict[int, Rollout] = {}
    width, wanted = len(batch.rows), len(waiting)
    while len(results) < wanted:
        free = batch.free()
        if waiting and len(free) >= width / 8:
            batch.join([waiting.popleft() for _ in range(min(len(free), len(waiting)))])
        else:
            if not waiting and len(free) >= len(batch.rows) / 4:
                batch.compact()
            batch.step()
        finished = batch.finished()
        results |= finished
        on_done(len(finished))
    return results


def common_prefix(prompts: Sequence[Sequence[int]]) -> Sequence[int]:
    """Tokens with which all prompts begin, each with at least one more behind them; none where there is one prompt."""
    if len(prompts) == 1:
        return []
    # whatever the first and the last in lexicographic order share, all share
    first, last = min(map(list, prompts)), max(map(list, prompts))
    same = takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
    return [token for token, _ in same][: min(map(len, prompts)) - 1]


def affordable_rows(
    target: Target,
    drafter: Drafter | None,
    capacity: int,
    decoding: Decoding,
    layer_ids: Sequence[int],
    keep: bool,
) -> int:
    """Rows of `capacity` positions whose caches and kept states fit into `decoding.memory_gib`.

    Raises:
        DraftError: not one does.
    """
    shape, size = target.shape, target.model.dtype.itemsize
    position = 2 * shape.num_layers * shape.num_key_value_heads * shape.head_dim * size
    if drafter is not None:
        position += drafter.state_width * drafter.fc.weight.dtype.itemsize
    if keep:  # features by position, and the hidden state of every draft
        position += (len(layer_ids) + (drafter.num_draft_tokens if drafter else 0)) * shape.hidden_size * size
    rows = int(decoding.memory_gib * 2**30 / (position * capacity))
    if not rows:
        raise DraftError(
            f"one response of up to {capacity} tokens needs {position * capacity / 2**30:.2f} GiB: raise "
            f"decoding.memory_gib={decoding.memory_gib} or lower decoding.max_new_tokens"
        )
    return min(rows, decoding.batch_size)
