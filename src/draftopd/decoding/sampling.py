"""How tokens are chosen: distributions, drafts and the target's own tokens.

Random numbers belong to places, not to calls: a uniform number is a function of (seed, response, position, use). So a
response does not depend on its batch, and token matching commits, token for token, the text of plain sampling.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from draftopd.decoding.cuts import Cutter, log_odds
from draftopd.decoding.settings import Decoding
from draftopd.drafters.base import Propose

CHOICE, DRAFT, ACCEPT = range(3)  # uses of random numbers: target's token, drafter's token, accepting a draft
SHORT = 256  # that many most probable tokens usually contain the nucleus


def probabilities(logits: Tensor, decoding: Decoding) -> Tensor:
    """The distribution that tokens are drawn from: logits [..., V] -> [..., V]; greedy is one-hot."""
    if decoding.greedy:
        return torch.zeros_like(logits).scatter(-1, logits.argmax(-1, keepdim=True), 1.0)
    logits = logits / decoding.temperature
    if decoding.top_k is not None and decoding.top_k < logits.shape[-1]:
        logits = _at_least(logits, logits.topk(decoding.top_k).values[..., -1:])
    if decoding.top_p is not None and decoding.top_p < 1:
        logits = _at_least(logits, _nucleus_end(logits, decoding.top_p))
    if decoding.min_p is not None:
        logits = _at_least(logits, logits.amax(-1, keepdim=True) + torch.log(logits.new_tensor(decoding.min_p)))
    return logits.softmax(-1)


def _at_least(logits: Tensor, least: Tensor) -> Tensor:
    return logits.masked_fill(logits < least, -torch.inf)


def _nucleus_end(logits: Tensor, top_p: float) -> Tensor:
    """[..., 1] the least logit of the smallest set of tokens whose mass reaches top_p (arXiv 1904.09751)."""
    total = logits.logsumexp(-1, keepdim=True)
    size = min(SHORT, logits.shape[-1])
    while True:
        values = logits.topk(size).values
        mass = (values - total).exp().cumsum(-1)
        if size == logits.shape[-1] or bool((mass[..., -1] >= top_p).all()):
            break
        size = logits.shape[-1]
    return values.gather(-1, (mass < top_p).sum(-1, keepdim=True).clamp(max=size - 1))


def uniforms(seed: int, keys: Tensor, positions: Tensor, use: int) -> Tensor:
    """Uniform numbers in (0, 1) by place: keys [B] of responses, positions [B, n] -> float64 [B, n].

    A counter-based generator (the mixing steps of SplitMix64): the same place gives the same number on any device.
    """
    state = _mix(torch.full_like(keys, seed))
    state = _mix(state + keys)[:, None]
    state = _mix(state + positions * 4 + use)
    return (_shift(state, 12).double() + 0.5) * 2.0**-52


def _mix(x: Tensor) -> Tensor:
    x = x + -0x61C8864680B583EB  # 0x9E3779B97F4A7C15 as a signed number
    x = (x ^ _shift(x, 30)) * -0x40A7B892E31B1A47
    x = (x ^ _shift(x, 27)) * -0x6B2FB644ECCEEE15
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of signed 64-bit numbers."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def draw(weights: Tensor, uniform: Tensor) -> Tensor:
    """Samples by inverting the cumulative distribution: weights [..., V] >= 0 of any sum, uniform [...] -> [...]."""
    cumulative = weights.double().cumsum(-1)
    mark = uniform[..., None] * cumulative[..., -1:]
    return torch.searchsorted(cumulative, mark, right=True)[..., 0].clamp(max=weights.shape[-1] - 1)


class Places:
    """The places of one step's tokens: keys [B] of the responses and positions [B] of their anchors."""

    def __init__(self, decoding: Decoding, keys: Tensor, positions: Tensor) -> None:
        self.decoding, self.keys, self.positions = decoding, keys, positions

    def uniforms(self, first: int, count: int, use: int) -> Tensor:
        """[B, count] for the tokens that are `first`, `first` + 1, ... places after the anchor."""
        slots = torch.arange(first, first + count, device=self.positions.device)
        return uniforms(self.decoding.seed, self.keys, self.positions[:, None] + slots, use)

    def choose(self, logits: Tensor) -> Tensor:
        """The target's own tokens: logits [B, W, V] of the anchor's row and the rows after it -> [B, W]."""
        if self.decoding.greedy:
            return logits.argmax(-1)
        return draw(probabilities(logits, self.decoding), self.uniforms(1, logits.shape[1], CHOICE))


class Proposal(Propose):
    """Turns draft logits into drafts, slot after slot; remembers the distributions that drafts are sampled from.

    Args:
        cutter: says where the blocks end; None = they are whole.
    """

    def __init__(self, places: Places, cutter: Cutter | None = None) -> None:
        self.places, self.cutter = places, cutter
        self.index: list[Tensor] = []
        self.probabilities: list[Tensor] = []

    @property
    def ended(self) -> bool:
        return self.cutter is not None and self.cutter.ended

    def __call__(self, logits: Tensor, confidence: Callable[[], Tensor] | None = None) -> Tensor:
        if self.cutter is not None:
            self.cutter(log_odds(logits) if confidence is None else confidence())
        decoding = self.places.decoding
        if not decoding.samples_drafts:
            return logits.argmax(-1)
        first = 1 + sum(index.shape[1] for index in self.index)
        q = probabilities(logits, decoding)
        self.index.append(draw(q, self.places.uniforms(first, logits.shape[1], DRAFT)))
        self.probabilities.append(q)
        return self.index[-1]
