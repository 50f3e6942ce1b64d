"""Moves supervised blocks away from where the rollout drafted them.

The rollout's verifications do not fit moved blocks, so the training step replays them.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from draftopd.trace import ReplayBatch, Trace, collate, text_blocks


def tiled(traces: Sequence[Trace], draw: torch.Generator) -> ReplayBatch:
    """Blocks laid end to end from the response's first token, every draft the text's own token and accepted.

    The trace of a perfect drafter: one block every K + 1 tokens, no rejected draft (arXiv 2605.29343, table 4:
    distillation on the plain target-assisted rollout).
    """
    width = traces[0].drafts.shape[1]
    anchors = [torch.arange(t.prompt_length, len(t.tokens) - 1, width + 1) for t in traces]
    return text_blocks(traces, anchors, width)


def scattered(traces: Sequence[Trace], draw: torch.Generator) -> ReplayBatch:
    """Accepted drafts at random anchors, rejected drafts at their own.

    As in the official code's random-anchor ablation (bingyang-lei/Draft-OPD at 69b03dab): each response keeps its
    number of blocks and their accepted lengths; the lengths are shuffled and laid at random places that do not overlap,
    where the text's own tokens are supervised. Rejected drafts make sense only where they were drafted: they stay
    there, in a second set of blocks whose accepted slots are not supervised.
    """
    width = traces[0].drafts.shape[1]
    lengths = [t.accepted[t.accepted > 0] for t in traces]
    lengths = [n[torch.randperm(len(n), generator=draw)] for n in lengths]
    anchors = [t.prompt_length + _places(n, t.response_length - 1, draw) for t, n in zip(traces, lengths, strict=True)]
    moved, rejected = text_blocks(traces, anchors, width), collate(traces)
    accepted = torch.nn.utils.rnn.pad_sequence(lengths, batch_first=True)

    def both(first: Tensor, second: Tensor) -> Tensor:
        return torch.cat([first, second], 1)

    return replace(
        rejected,
        anchors=both(moved.anchors, rejected.anchors),
        drafts=both(moved.drafts, rejected.drafts),
        accepted=both(accepted, rejected.accepted),
        drafted=both(accepted, rejected.drafted * (rejected.drafted > rejected.accepted)),
        skipped=both(torch.zeros_like(accepted), rejected.accepted),
    )


def _places(lengths: Tensor, room: int, draw: torch.Generator) -> Tensor:
    """[N] starts of segments of these lengths, at random, sorted and without overlap in `room` places."""
    gaps = torch.randint(0, room - int(lengths.sum()) + 1, lengths.shape, generator=draw).sort().values
    return gaps + lengths.cumsum(0) - lengths
