"""Traces of existing texts, drafted again by other weights.

What the target writes does not depend on the drafter: at temperature 0 it is the target's greedy text, and with token
matching above 0 the random numbers belong to (seed, response, position). So the blocks that a rollout would draft along
a committed text follow from the text and the drafter. A block is drafted after every position of the response at once
and compared with the text, and the chain anchor -> anchor + accepted + 1 is followed as in a rollout.
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

ROWS = 512  # a forward may have that many, however short the text is


def require_greedy_drafts(decoding: Decoding) -> None:
    """Raises DraftError if drafts are sampled: the text then does not tell whether a draft is accepted."""
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

    The target runs only for texts without features. It runs without gradients and with the drafter in eval mode, and
    restores its mode. Raises DraftError where drafts would be sampled.

    Args:
        texts: complete responses that the target has written under `decoding`, with any drafter or none, and their
            features [T, F]; their blocks are not read.
        decoding: its `memory_gib` bounds the memory of one forward.
        drafter_step: recorded in the traces.
        ledger: counts tokens and FLOPs of `draft`, and of `replay` for texts without features.
        on_done: called with the number of responses just finished.
        store: moves features of texts that came without to the CPU (`data.storage.SpillStore`).

    Returns:
        new traces with the texts' features; the target's hidden states are left to `Target.replay`.
    """
    require_greedy_drafts(decoding)
    ledger = ledger or Ledger()
    head = drafter.head(target.head)
    results = []
    with drafter.evaluating():
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
    return results


def walk(text: Trace, drafts: Tensor, drafter_step: int) -> Trace:
    """A rollout's blocks, chosen from drafts [N, K] after every response position but the last."""
    anchors = torch.arange(len(drafts)) + text.prompt_length
    after = anchors[:, None] + torch.arange(1, drafts.shape[1] + 1)
    last = len(text.tokens) - 1
    # a text ends with a stop token or at the length limit, where `cut_at_stop` ends its last block too
    held = (drafts == text.tokens[after.clamp(max=last)]) & (after <= last)
    accepted = held.long().cumprod(1).sum(1)
    chosen, place = [], 0
    while place < len(drafts):
        chosen.append(place)
        place += int(accepted[place]) + 1
    return replace(
        text, anchors=anchors[chosen], drafts=drafts[chosen], accepted=accepted[chosen], drafter_step=drafter_step
    )


def _drafts(target: Target, drafter: Drafter, text: Rollout, head: Head, decoding: Decoding) -> Tensor:
    """[N, K] after every response position but the last."""
    trace = text.trace
    anchors = torch.arange(trace.prompt_length, len(trace.tokens) - 1)
    if not len(anchors):  # the first token, which is the target's own, was the last
        return torch.zeros(0, drafter.num_draft_tokens, dtype=torch.long)
    assert text.features is not None
    tokens, features, at = (t[None].to(target.device) for t in (trace.tokens, text.features, anchors))
    blocks = affordable_blocks(target, drafter, len(trace.tokens), len(head.weight), decoding)
    return drafter.redraft(tokens, features, at, target.embed, head, blocks)[0].cpu()


def affordable_blocks(target: Target, drafter: Drafter, length: int, vocab_size: int, decoding: Decoding) -> int:
    """Blocks of one forward along a text of `length` tokens: as many as fit into `decoding.memory_gib`, at least one.

    Blocks do not see each other. A forward has no more rows than the text has tokens (or ROWS), so that fewer pairs are
    computed and hidden than are seen.
    """
    rows = max(ROWS, length)
    scores = 4 * target.shape.num_attention_heads * drafter.block_size * (length + rows)
    logits = 8 * drafter.num_draft_tokens * vocab_size  # and a copy in float32
    afford = int(decoding.memory_gib * 2**30 / (scores + logits))
    return max(1, min(afford, rows // drafter.block_size))
