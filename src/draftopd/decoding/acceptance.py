"""The two rules that keep speculative decoding lossless, and where a response ends."""

import torch
from torch import Tensor

from draftopd.decoding.sampling import ACCEPT, CHOICE, Places, Proposal, draw, probabilities


def accept(
    drafts: Tensor, logits: Tensor, places: Places, proposal: Proposal | None = None, vocabulary: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The lossless rule: which drafts are accepted, and the token that the target adds after them.

    Args:
        drafts: [B, K] the proposed tokens.
        logits: [B, K + 1, V] the target's rows of the anchor and of each draft.
        proposal: the distributions that drafts were sampled from, for rejection sampling.
        vocabulary: [V'] target ids of the proposal's rows; None = the same vocabulary.

    Returns:
        the number of accepted leading drafts [B], and the bonus token [B] that follows them.
    """
    if proposal is None or not proposal.index:
        return match(drafts, places.choose(logits))
    p = probabilities(logits, places.decoding)
    uniforms = (places.uniforms(1, drafts.shape[1], ACCEPT), places.uniforms(1, logits.shape[1], CHOICE))
    count = drafts.shape[1]  # a block that was cut has fewer than were proposed
    index, q = (torch.cat(of, 1)[:, :count] for of in (proposal.index, proposal.probabilities))
    return reject(drafts, p, index, q, uniforms=uniforms, vocabulary=vocabulary)


def match(drafts: Tensor, choices: Tensor) -> tuple[Tensor, Tensor]:
    """Token matching (arXiv 2605.29343): accept drafts [B, K] while they are the target's own choices [B, K + 1]."""
    accepted = (drafts == choices[:, :-1]).long().cumprod(1).sum(1)
    return accepted, choices.gather(1, accepted[:, None])[:, 0]


def reject(
    drafts: Tensor, p: Tensor, index: Tensor, q: Tensor, *, uniforms: tuple[Tensor, Tensor], vocabulary: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Rejection sampling (arXiv 2211.17192, theorem 1): accept a draft x ~ q with probability min(1, p(x) / q(x)).

    The bonus token comes from the residual distribution max(p - q, 0) at the first rejection, or from p after the last
    draft.

    Args:
        drafts [B, K], p [B, K + 1, V]. index [B, K] and q [B, K, V']: the drafts' rows in the draft vocabulary.
        uniforms: random numbers [B, K] that accept drafts, and [B, K + 1] that draw the bonus token.
    """
    accept_at, choose_at = uniforms
    of_draft = p[:, :-1].gather(2, drafts[..., None])[..., 0]
    held = accept_at * q.gather(2, index[..., None])[..., 0] < of_draft
    accepted = held.long().cumprod(1).sum(1)
    row = torch.arange(len(p), device=p.device)
    here = p[row, accepted]
    cut = accepted < drafts.shape[1]
    minus = q[row, accepted.clamp(max=q.shape[1] - 1)] * cut[:, None]
    residual = here.clone()
    residual[:, slice(None) if vocabulary is None else vocabulary] -= minus
    residual = residual.clamp(min=0)
    # p = q up to rounding leaves no residual: p itself is the limit
    residual = torch.where(residual.sum(1, keepdim=True) > 0, residual, here)
    return accepted, draw(residual, choose_at.gather(1, accepted[:, None])[:, 0])


def cut_at_stop(tokens: Tensor, counts: Tensor, stop: Tensor, room: Tensor) -> tuple[Tensor, Tensor]:
    """Cuts a block exactly where plain decoding would have ended.

    Args:
        tokens: [B, W]; the first `counts` [B] of them are committed.
        stop: [S] the stop tokens.
        room: [B] tokens still allowed by the length limit.

    Returns:
        counts [B] after the cut, and whether the response ends here [B].
    """
    limited = torch.minimum(counts, room)
    slots = torch.arange(tokens.shape[1], device=tokens.device)
    stops = torch.isin(tokens, stop) & (slots < limited[:, None])
    first = torch.where(stops, slots, tokens.shape[1]).amin(1)
    return torch.minimum(limited, first + 1), (first < limited) | (limited == room)
