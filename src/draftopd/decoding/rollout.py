"""Target-assisted rollouts: draft, verify, accept, repeat. With no drafter it is plain decoding."""

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from itertools import takewhile

import torch
from torch import Tensor

from draftopd.decoding.batch import DecodingBatch, Response, RolloutOptions
from draftopd.decoding.compiled import capacity_of
from draftopd.decoding.cuts import Cuts
from draftopd.decoding.ledger import Ledger
from draftopd.decoding.memory import FEWER, Attempts, row_bytes
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
    keep_states: bool = False,
    layer_ids: Sequence[int] = (),
    keys: Sequence[int] | None = None,
    drafter_step: int = 0,
    ledger: Ledger | None = None,
    on_done: Callable[[int], None] = lambda finished: None,
    store: Callable[[Tensor], Tensor] = Tensor.cpu,
    kind: type[DecodingBatch] = DecodingBatch,
    cuts: Cuts | None = None,
) -> list[Rollout]:
    """Writes one response per prompt, in batches; results are in the order of the prompts.

    The text follows the target whatever the drafter is: greedy text at temperature 0, a sample of its distribution
    above. It runs without gradients and with the drafter in eval mode, and restores both.

    Args:
        drafter: None = plain decoding (K = 0, traces without blocks).
        prompts: token ids, at least one each.
        keep_states: also return features and the target's hidden states of the verifications.
        layer_ids: which features to return if there is no drafter.
        keys: of each response's random numbers; default 0, 1, 2, ... The same key, seed and prompt give the same text.
        drafter_step: recorded in the traces.
        ledger: counts tokens and FLOPs of `prefill`, `verify` and `draft`, and seconds of `prefill` and `decode`.
        on_done: called with the number of responses just finished.
        store: moves returned states to the CPU (`data.storage.SpillStore`).
        kind: decides what is committed (`free_running.FreeRunningBatch`).
        cuts: ends blocks early where that pays; not with `keep_states`, whose blocks are whole. None = whole blocks.

    Raises:
        DraftError: `decoding.memory_gib` is too small for one response, the target cannot read or continue a prompt
            (`Target.check_prompts`), or blocks are cut in compiled steps.
    """
    assert cuts is None or not keep_states, "blocks whose states are kept are whole"
    if cuts is not None and decoding.compile:
        raise DraftError("blocks that are cut have no fixed shape: set decoding.compile=false, or speed.cut=false")
    features = tuple(layer_ids if drafter is None else drafter.layer_ids)
    options = RolloutOptions(keep_states, features, keys, drafter_step, ledger or Ledger(), on_done, store, cuts)
    return decode(kind, target, drafter, prompts, decoding, options)


@torch.no_grad()
def decode(
    kind: type[DecodingBatch],
    target: Target,
    drafter: Drafter | None,
    prompts: Sequence[Sequence[int]],
    decoding: Decoding,
    options: RolloutOptions,
) -> list[Rollout]:
    """`rollout` by batches of this kind, which decides what is committed."""
    if not prompts:
        return []
    # prompts of similar length are prefilled together: less padding
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    longest, capacity = len(prompts[order[-1]]), required_capacity(target, drafter, prompts, decoding)
    drafts = 0 if drafter is None else drafter.num_draft_tokens
    states = len(options.layer_ids) + drafts if options.keep_states else 0
    rows = affordable_rows(target, drafter, decoding, capacity=capacity, prompt=longest, states=states)
    prefix, results = common_prefix(prompts), dict[int, Rollout]()

    def go_on(rows: int) -> None:
        left = [i for i in order if i not in results]
        waiting = deque(Response(i, prompts[i], i if options.keys is None else options.keys[i]) for i in left)
        batch = kind(target, drafter, decoding, options, rows=min(rows, len(left)), capacity=capacity, prefix=prefix)
        _run(batch, waiting, results)

    with nullcontext() if drafter is None else drafter.evaluating():
        for attempt in Attempts(min(rows, len(prompts)), "prompts", FEWER):
            with attempt as rows:
                go_on(rows)
    return [results[i] for i in range(len(prompts))]


def _run(batch: DecodingBatch, waiting: deque[Response], results: dict[int, Rollout]) -> None:
    """Steps until no prompt waits and every row is free, and adds to the results; free rows are filled together."""
    width, wanted = len(batch.rows), len(results) + len(waiting)
    while len(results) < wanted:
        free = batch.free()
        if waiting and len(free) >= width / 8:
            with batch.ledger.timed("prefill"):
                batch.join([waiting.popleft() for _ in range(min(len(free), len(waiting)))])
        else:
            if not waiting and len(free) >= len(batch.rows) / 4 and not batch.cache.fixed:
                batch.compact()
            with batch.ledger.timed("decode"):
                batch.step()
        finished = batch.finished()
        results |= finished
        batch.options.on_done(len(finished))


def common_prefix(prompts: Sequence[Sequence[int]]) -> Sequence[int]:
    """Tokens with which all prompts begin, leaving at least one token of each; none for a single prompt."""
    if len(prompts) == 1:
        return []
    # all prompts share what the first and the last in lexicographic order share
    first, last = min(map(list, prompts)), max(map(list, prompts))
    same = takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
    return [token for token, _ in same][: min(map(len, prompts)) - 1]


def required_capacity(
    target: Target, drafter: Drafter | None, prompts: Sequence[Sequence[int]], decoding: Decoding
) -> int:
    """Positions that a row needs for the longest of these prompts, its response and a block beyond it.

    Raises:
        DraftError: the target cannot read or continue a prompt.
    """
    room = decoding.max_new_tokens + (0 if drafter is None else drafter.num_draft_tokens) + 1
    target.check_prompts(prompts, room)
    return capacity_of(max(map(len, prompts)) + room, decoding)


def affordable_rows(
    target: Target, drafter: Drafter | None, decoding: Decoding, *, capacity: int, prompt: int, states: int
) -> int:
    """Rows that fit into `decoding.memory_gib`; arguments as in `memory.row_bytes`.

    Raises:
        DraftError: not even one does.
    """
    row = row_bytes(target, drafter, capacity=capacity, prompt=prompt, states=states)
    rows = int(decoding.memory_gib * 2**30 / row)
    if not rows:
        raise DraftError(
            f"one response of up to {capacity} tokens needs {row / 2**30:.2g} GiB: raise "
            f"decoding.memory_gib={decoding.memory_gib} or lower decoding.max_new_tokens"
        )
    return min(rows, decoding.batch_size)
