"""Traces of existing texts, drafted again by other weights.

What the target writes does not depend on the drafter: at temperature 0 it is the target's greedy text, and with token
matching above 0 the random numbers belong to (seed, response, position). So the blocks that a rollout would draft along
a committed text follow from the text and the drafter. This is the drafter's part of a rollout, with the text in the
place of the verification: the chain anchor -> anchor + accepted + 1 is followed along many texts together, one block of
each in a forward.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from draftopd.decoding.ledger import Ledger
from draftopd.decoding.memory import FEWER, Attempts
from draftopd.decoding.reading import read_features
from draftopd.decoding.settings import Decoding
from draftopd.drafters.base import Drafter, Propose
from draftopd.errors import DraftError
from draftopd.target.cache import RaggedCache
from draftopd.target.head import Head
from draftopd.target.model import Target
from draftopd.trace import Rollout, Trace


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
        decoding: its `batch_size` and `memory_gib` bound the texts that are drafted along together.
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
    waiting = sorted(range(len(texts)), key=lambda i: len(texts[i].trace.tokens))
    results: dict[int, Rollout] = {}

    def go_on(most: int) -> None:
        while len(results) < len(texts):  # texts of similar length together, the longest first
            left = waiting[: len(texts) - len(results)]
            longest = len(texts[left[-1]].trace.tokens)
            chosen = left[-min(most, affordable_rows(target, drafter, longest, len(head.weight), decoding)) :]
            part = _with_features(target, drafter, [texts[i] for i in chosen], decoding, ledger, store)
            with ledger.timed("draft"):
                traces = _follow(target, drafter, part, head, on_done)
            for i, text, trace in zip(chosen, part, traces, strict=True):
                ledger.redraft(target, drafter, trace)
                results[i] = Rollout(replace(trace, drafter_step=drafter_step), text.features)

    with drafter.evaluating():
        for attempt in Attempts(min(decoding.batch_size, len(texts)), "texts", FEWER):
            with attempt as most:
                go_on(most)
    return [results[i] for i in range(len(texts))]


def _follow(
    target: Target, drafter: Drafter, texts: Sequence[Rollout], head: Head, on_done: Callable[[int], None]
) -> list[Trace]:
    """Texts with a rollout's blocks: every forward drafts the next block of each text that has not ended."""
    traces, device = [text.trace for text in texts], target.device
    tokens = pad_sequence([trace.tokens for trace in traces], batch_first=True).to(device)
    anchors = torch.tensor([trace.prompt_length for trace in traces], device=device)
    last = torch.tensor([len(trace.tokens) - 1 for trace in traces], device=device)
    row, slots = torch.arange(len(texts), device=device), torch.arange(1, drafter.num_draft_tokens + 1, device=device)
    state = _read(target, drafter, texts, tokens.shape[1])
    blocks = [(row[:0].cpu(), row[:0].cpu(), row[:0, None].expand(-1, len(slots)).cpu(), row[:0].cpu())]
    while len(row):
        live = (anchors < last).nonzero()[:, 0]
        if len(live) < len(row):
            on_done(len(row) - len(live))
            state.select(live)
            row, tokens, anchors, last = (values[live] for values in (row, tokens, anchors, last))
            continue
        state.lengths = anchors
        drafts = drafter.draft(state, tokens.gather(1, anchors[:, None])[:, 0], target.embed, head, Propose())
        after = anchors[:, None] + slots
        # a text ends with a stop token or at the length limit, where `cut_at_stop` ends its last block too
        held = (drafts == tokens.gather(1, after.clamp(max=tokens.shape[1] - 1))) & (after <= last[:, None])
        accepted = held.long().cumprod(1).sum(1)
        blocks.append((row.cpu(), anchors.cpu(), drafts.cpu(), accepted.cpu()))
        anchors = anchors + accepted + 1
    of, *parts = (torch.cat(values) for values in zip(*blocks, strict=True))
    chosen = [[values[of == i] for values in parts] for i in range(len(texts))]
    return [
        replace(t, anchors=a, drafts=d, accepted=r, verified=None) for t, (a, d, r) in zip(traces, chosen, strict=True)
    ]


def _with_features(
    target: Target,
    drafter: Drafter,
    texts: Sequence[Rollout],
    decoding: Decoding,
    ledger: Ledger,
    store: Callable[[Tensor], Tensor],
) -> list[Rollout]:
    bare = [text.trace.tokens for text in texts if text.features is None]
    read = iter(read_features(target, bare, drafter.layer_ids, decoding, ledger, store=store))
    return [replace(text, features=next(read)) if text.features is None else text for text in texts]


def _read(target: Target, drafter: Drafter, texts: Sequence[Rollout], capacity: int) -> RaggedCache:
    """A decoding state that holds whole texts; `Drafter.draft` sees of them what lies before the anchors."""
    state = drafter.start(len(texts), capacity, target.device)
    for row, text in enumerate(texts):
        assert text.features is not None
        tokens, features = (values[None].to(target.device) for values in (text.trace.tokens, text.features))
        own = drafter.start(1, tokens.shape[1], target.device)
        # no token follows the last one, but no block sees its features
        drafter.extend(own, features, tokens.roll(-1, 1), target.embed)
        state.put(torch.tensor([row], device=target.device), own)
    return state


def affordable_rows(target: Target, drafter: Drafter, length: int, vocab_size: int, decoding: Decoding) -> int:
    """Texts of up to `length` tokens that are drafted along together: at least one.

    `decoding.memory_gib` holds the state twice, because forwards and `RaggedCache.select` copy it, the scores of one
    attention, and logits with a copy in float32.
    """
    state = 2 * drafter.state_width * drafter.fc.weight.dtype.itemsize * length
    scores = 4 * target.shape.num_attention_heads * drafter.block_size * (length + drafter.block_size)
    logits = 8 * drafter.num_draft_tokens * vocab_size
    return max(1, min(decoding.batch_size, int(decoding.memory_gib * 2**30 / (state + scores + logits))))
