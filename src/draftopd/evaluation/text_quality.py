"""How far a text has drifted from what the target would write, token by token along the response."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from draftopd.target.model import Target
from draftopd.trace import Trace


@dataclass(frozen=True)
class Quality:
    """Means by position in the response, in `bins` of `width` tokens; NaN where no response is so long."""

    width: int
    """tokens of a bin"""
    nll: list[float]
    """-log p of the token under the target, nats"""
    repeated: list[float]
    """share of tokens that end a 4-gram which the response had before"""
    tokens: list[int]
    """tokens in each bin"""

    def mean(self, name: str) -> float:
        """Of all tokens."""
        pairs = zip(getattr(self, name), self.tokens, strict=True)
        return sum(value * count for value, count in pairs if count) / max(1, sum(self.tokens))


def quality(target: Target, texts: Sequence[Trace], longest: int, bins: int = 8) -> Quality:
    """Reads texts with the target, eight at a time.

    Args:
        longest: tokens of the longest possible response, which the bins divide.
    """
    width = -(-longest // bins)
    sums = torch.zeros(3, bins, dtype=torch.float64)  # nll, repeated, tokens
    for start in range(0, len(texts), 8):
        part = texts[start : start + 8]
        for text, nll in zip(part, _nll(target, part), strict=True):
            response = text.tokens[text.prompt_length :]
            values = torch.stack([nll.double(), repeated_ngrams(response).double(), torch.ones(len(response)).double()])
            sums.index_add_(1, torch.arange(len(response)) // width, values)
    nll, repeated = (sums[:2] / sums[2]).tolist()
    return Quality(width, nll, repeated, sums[2].long().tolist())


def repeated_ngrams(tokens: Tensor, n: int = 4) -> Tensor:
    """[T] bool: the n tokens that end here stood in `tokens` [T] before; overlap counts."""
    seen: set[tuple[int, ...]] = set()
    out = torch.zeros(len(tokens), dtype=torch.bool)
    ids = tokens.tolist()
    for end in range(n, len(ids) + 1):
        gram = tuple(ids[end - n : end])
        out[end - 1] = gram in seen
        seen.add(gram)
    return out


@torch.no_grad()
def _nll(target: Target, texts: Sequence[Trace]) -> list[Tensor]:
    """[R] of each response's tokens."""
    padded = torch.nn.utils.rnn.pad_sequence([t.tokens for t in texts], batch_first=True).to(target.device)
    hidden, _ = target.read(padded)
    head, out = target.head(), []
    for text, rows in zip(texts, hidden, strict=True):
        logits = head(rows[text.prompt_length - 1 : len(text.tokens) - 1])
        labels = text.tokens[text.prompt_length :].to(target.device)
        out.append(torch.nn.functional.cross_entropy(logits, labels, reduction="none").cpu())
    return out
