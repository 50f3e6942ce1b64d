"""Is it the target that wrote? The first texts of every source are held against the target here."""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from draftopd.data.writers import TextSet
from draftopd.errors import DraftError

log = logging.getLogger(__name__)
TIES = {torch.float64: 1e-4, torch.float32: 1e-3}
HALF = 0.25
"""by the target's precision: differences of log-probabilities that another order of additions can make"""
SURPRISE = 6.0  # standard deviations; a text of the target comes so far with a probability of about 1e-9
ROWS = 256  # whose logits exist at a time


@dataclass(frozen=True, eq=False)
class Source:
    """A server since its last start, or a file: what may be another model than the one before."""

    name: str


@dataclass(frozen=True)
class Deviation:
    """A place where greedy text is not the target's most probable token."""

    position: int
    """in the response"""
    token: int
    probability: float
    best: int
    best_probability: float
    gap: float
    """difference of the two log-probabilities"""


class FirstTexts:
    """Checks the first texts of every source.

    Args:
        count: texts of each source.
        tie: a difference of log-probabilities up to which two tokens count as equally good; None = by the precision of
            the target.
    """

    def __init__(self, texts: TextSet, count: int, tie: float | None) -> None:
        self.texts, self.count = texts, count
        self.tie = TIES.get(texts.target.model.dtype, HALF) if tie is None else tie
        self._seen: Counter[Source] = Counter()

    def check(self, index: int, ids: Sequence[int], source: Source) -> None:
        """Raises DraftError where another model wrote; names a tie in a warning."""
        self._seen[source] += 1
        if self._seen[source] > self.count:
            return
        if self.texts.decoding.greedy:
            self._check_greedy(index, ids, source)
        elif (far := surprise(self.texts, index, ids)) > SURPRISE:
            raise DraftError(
                f"{source.name} runs another model than the target here, or samples otherwise: its text {index} is "
                f"{far:.0f} standard deviations less probable than texts of the target are; serve the same weights"
            )

    def _check_greedy(self, index: int, ids: Sequence[int], source: Source) -> None:
        found = deviations(self.texts, index, ids)
        wrong = next((place for place in found if place.gap > self.tie), None)
        if wrong is not None:
            raise DraftError(
                f"{source.name} runs another model than the target here, or in another precision: text {index}, "
                f"{_said(self.texts, wrong)}, {wrong.gap:.2g} apart in log-probability; serve the same weights in the "
                f"same precision (--dtype), or raise texts.writer.tie={self.tie:g}"
            )
        if found:
            log.warning("%s, text %d: a tie, %s", source.name, index, _said(self.texts, found[0]))


def _said(texts: TextSet, place: Deviation) -> str:
    theirs, ours = (repr(texts.target.tokenizer.decode([i])) for i in (place.token, place.best))
    return (
        f"token {place.position}: {theirs} with probability {place.probability:.4f} where the target here has {ours} "
        f"with {place.best_probability:.4f}"
    )


def deviations(texts: TextSet, index: int, ids: Sequence[int]) -> list[Deviation]:
    """Where a greedy response is not what the target prefers after the very same tokens; exact ties too."""
    out = list[Deviation]()
    for first, given, log_p in _log_probabilities(texts, index, ids, 1.0):
        best = log_p.max(-1)
        own = log_p.gather(-1, given[:, None])[:, 0]
        for row in (best.indices != given).nonzero()[:, 0].tolist():
            a, b = float(own[row]), float(best.values[row])
            pair = (int(given[row]), float(own[row].exp()), int(best.indices[row]), float(best.values[row].exp()))
            out.append(Deviation(first + row, *pair, gap=b - a))
    return out


def surprise(texts: TextSet, index: int, ids: Sequence[int]) -> float:
    """By how many standard deviations a sampled response is less probable than the target's responses are on average.

    Negative where it is more probable; filters (top-k, top-p, min-p) make it so.
    """
    total = variance = 0.0
    for _, given, log_p in _log_probabilities(texts, index, ids, texts.decoding.temperature):
        p = log_p.exp()
        entropy = -(p * log_p).sum(-1)
        total += float((-log_p.gather(-1, given[:, None])[:, 0] - entropy).double().sum())
        variance += float(((p * log_p**2).sum(-1) - entropy**2).double().clamp(min=0).sum())
    return total / max(variance, 1e-6) ** 0.5


@torch.no_grad()
def _log_probabilities(
    texts: TextSet, index: int, ids: Sequence[int], temperature: float
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Place of the first row, tokens [R] and log-probabilities [R, V] before them, for pieces of a response."""
    target, prompt = texts.target, texts.prompts[index]
    tokens = torch.tensor([*prompt, *ids], device=target.device)
    hidden, _ = target.read(tokens[None])
    rows: Tensor = hidden[0, len(prompt) - 1 : -1]
    for first in range(0, len(rows), ROWS):
        part = rows[first : first + ROWS]
        given = tokens[len(prompt) + first :][: len(part)]
        yield first, given, (target.head()(part) / temperature).log_softmax(-1)
