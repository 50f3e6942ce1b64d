"""How tokens are chosen, and the rule that keeps speculative decoding lossless."""

import torch
from torch import Tensor


def choose(logits: Tensor) -> Tensor:
    """The target's own token of every row: [..., V] -> [...]. Greedy: the most probable one."""
    return logits.argmax(-1)


def accept(drafts: Tensor, choices: Tensor) -> tuple[Tensor, Tensor]:
    """Token matching (arXiv 2605.29343): keep drafts while they are what the target chose, then add its own token.

    Args:
        drafts: [B, K] the proposed tokens.
        choices: [B, K + 1] the target's token after the anchor and after each draft.

    Returns:
        accepted [B], the number of leading drafts kept, and the bonus token [B] that follows them.
    """
    matches = (drafts == choices[:, :-1]).long()
    accepted = matches.cumprod(1).sum(1)
    bonus = choices.gather(1, accepted[:, None])[:, 0]
    return accepted, bonus


def cut_at_stop(tokens: Tensor, counts: Tensor, stop: Tensor, room: Tensor) -> tuple[Tensor, Tensor]:
    """Cuts a block exactly where plain decoding would have ended.

    Args:
        tokens: [B, W] the block's committed tokens, of which the first `counts` [B] count.
        stop: [S] the stop tokens.
        room: [B] tokens still allowed by the length limit.

    Returns:
        counts [B] after the cut and done [B], whether the response ends here.
    """
    limited = torch.minimum(counts, room)
    slots = torch.arange(tokens.shape[1], device=tokens.device)
    stops = torch.isin(tokens, stop) & (slots < limited[:, None])
    first = torch.where(stops, slots, tokens.shape[1]).amin(1)
    return torch.minimum(limited, first + 1), (first < limited) | (limited == room)
