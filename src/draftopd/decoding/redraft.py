"""Traces of texts that are there already, drafted along again by other weights.

What the target writes does not depend on the drafter: at temperature 0 it is the target's greedy text, and with token
matching above 0 the random numbers belong to (seed, response, position). So the blocks that a rollout would draft along
a committed text follow from the text and the drafter alone. A block is drafted behind every position of the response at
once, compared with the text, and the chain anchor -> anchor + accepted + 1 walked as the rollout would walk it.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from draftopd.decoding.ledger import Ledger
from draftopd.decoding.settings import Decoding
from draftopd.drafters.base import Drafter
from draftopd.errors import DraftError
from draftopd.target.head import Head
from draftopd.target.model import Target
from draftopd.trace import Rollout, Trace

ROWS = 512  # a forward may have as many, however short the text is


def require_greedy_drafts(decoding: Decoding) -> None:
    """Raises DraftError where drafts are sampled: whether one is kept is then not a matter of the text alone."""
    if decoding.samples_drafts:
        raise DraftError(
            "decoding.rule=rejection samples drafts, whose text cannot be drafted again: roll out "
            "(traces=rollouts), or set decoding.rule=token_matching"
        )


@torch.no_grad()
def redraft(
    target: Target,
    drafter: Drafter,
    texts: Sequence[Rollout],
    decoding: Decoding,
    *,
    drafter_step: int = 0,
    ledger: Ledger | None = None,
    on_done: Callable[[int], None] = lambda finished: None,
    store: Callable[[Tensor], Tensor] = Tensor.cpu,
) -> list[Rollout]:
    """The traces that `rollout` of the same prompts would give with this drafter, float ties aside.

    The target runs only where a text brings no features. Gradients are off and the drafter is in eval mode while it
    runs, and its mode is restored.

    Args:
        texts: complete responses that the target has written under `decoding`, by whatever drafter or none, and their
            features [T, F]; earlier blocks do not count.
        decoding: its `memory_gib` bounds the memory of one forward.
        drafter_step: recorded in the traces.
        ledger: counts tokens and FLOPs of `draft`, and of `replay` where features are missing.
        on_done: called with the number of responses just finished.
        store: gives features that a text did not bring their place on the CPU (`storage.SpillStore`).

    Returns:
        new traces with the texts' features; what judges the drafts is left to `Target.replay`.

    Raises:
        DraftError: drafts would be sampled.
    """
    require_greedy_drafts(decoding)
    ledger = ledger or Ledger()
    was_training = drafter.training
    drafter.eval()
    head = drafter.head(target.head)
    results = []
    try:
        for text in texts:
            if text.features is None:
                ledger.read(target, len(text.trace.tokens))
                tokens = text.trace.tokens[None].to(target.device)
                text = replace(text, features=store(target.read(tokens, drafter.layer_ids)[1][0]))
            with ledger.timed("draft"):
                drafts = _drafts(target, drafter, text, head, decoding)
            ledger.redraft(target, drafter, len(text.trace.tokens), len(drafts))
            results.append(Rollout(walk(text.trace, drafts, drafter_step), text.features))
            on_done(1)
    finally:
        drafter.train(was_training)
    return results


def walk(text: Trace, drafts: Tensor, drafter_step: int) -> Trace:
    """The blocks of a rollout, out of drafts [N, K] behind each response position with a token behind it."""
    anchors = torch.arange(len(drafts)) + text.prompt_length
    behind = anchors[:, None] + torch.arange(1, drafts.shape[1] + 1)
    last = len(text.tokens) - 1
    # a text ends with a stop token or at the length limit, where `cut_at_stop` ends its last block too
    held = (drafts == text.tokens[behind.clamp(max=last)]) & (behind <= last)
    accepted = held.long().cumprod(1).sum(1)
    chosen, place = [], 0
    while place < len(drafts):
        chosen.append(place)
        place += int(accepted[place]) + 1
    return replace(
        text, anchors=anchors[chosen], drafts=drafts[chosen], accepted=accepted[chosen], drafter_step=drafter_step
    )


def _drafts(target: Target, drafter: Drafter, text: Rollout, head: Head, decoding: Decoding) -> Tensor:
    """[N, K] behind each response position with a token behind it."""
    trace = text.trace
    anchors = torch.arange(trace.prompt_length, len(trace.tokens) - 1)
    if not len(anchors):  # the first token, which the target writes alone, was the last
        return torch.zeros(0, drafter.num_draft_tokens, dtype=torch.long)
    assert text.features is not None
    tokens, features, at = (t[None].to(target.device) for t in (trace.tokens, text.features, anchors))
    blocks = affordable_blocks(target, drafter, len(trace.tokens), len(head.weight), decoding)
    return drafter.redraft(tokens, features, at, target.embed, head, blocks)[0].cpu()


def affordable_blocks(target: Target, drafter: Drafter, length: int, vocab_size: int, decoding: Decoding) -> int:
    """Blocks of one forward along a text of `length` tokens: what fits into `decoding.memory_gib`, at least one.

    Rows of a forward hide from each other's blocks; there are no more of them than tokens, so that what is computed and
    hidden stays below what is seen.
    """
    rows = max(ROWS, length)
    scores = 4 * target.shape.num_attention_heads * drafter.block_size * (length + rows)
    logits = 8 * drafter.num_draft_tokens * vocab_size  # and a copy in float32
    afford = int(decoding.memory_gib * 2**30 / (scores + logits))
    return max(1, min(afford, rows // drafter.block_size))
