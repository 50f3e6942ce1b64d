"""Blocks that end where the next draft is expected to cost more than it brings.

A step that verifies m drafts commits 1 + sum_{k <= m} R_k tokens on average, R_k the chance that the first k drafts all
hold. It takes V(m) seconds to verify and D(n) to draft n >= m. Decoding that commits lambda tokens a second gains by m
drafts where they bring more than their time would elsewhere, so a block takes the m with the largest

    sum_{k <= m} R_k - lambda (V(m) + D(max(m, n)))

The text does not change. With greedy drafts nothing that is dropped was looked at by the target. With sampled ones the
choice must not depend on a draft that it keeps or drops: R_k reads the distribution that draft k is drawn from and the
drafts before it, and the choice on k is made before any later distribution is known that draft k has an influence on.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from draftopd.drafters.base import Drafter
from draftopd.target.model import Target
from draftopd.trace import Trace, collate

LARGEST = 1 - 1e-6  # of probabilities, whose log-odds are taken


def log_odds(logits: Tensor) -> Tensor:
    """Of the most likely token: draft logits [..., V'] -> [...]."""
    top = (logits.amax(-1) - logits.logsumexp(-1)).double().clamp(max=LARGEST - 1)
    return top - torch.log(-torch.expm1(top))


@dataclass(frozen=True)
class Chance:
    """Of a draft to hold if those before it did: sigmoid(slope * evidence + offset of its slot) (Platt scaling).

    The evidence is the log-odds of the drafter's most likely token, or what its confidence head says.
    """

    slope: float
    offsets: tuple[float, ...]
    """K"""
    mean: tuple[float, ...]
    """K chances of slots whose evidence is not known yet"""

    def __call__(self, evidence: Tensor, first: int) -> Tensor:
        """Evidence [B, n] of the slots from `first`, counted from 0 -> chances [B, n]."""
        offsets = evidence.new_tensor(self.offsets[first : first + evidence.shape[1]])
        return torch.sigmoid(self.slope * evidence + offsets)

    @classmethod
    def fit(cls, evidence: Tensor, held: Tensor, reached: Tensor, steps: int = 12) -> "Chance":
        """The most likely one, by Newton's method.

        Args:
            evidence, held, reached: [M, K] of blocks; only drafts that were reached count.
        """
        slots = evidence.shape[1]
        slot = torch.arange(slots).expand_as(evidence)[reached]
        x = torch.cat([evidence[reached][:, None].double(), F.one_hot(slot, slots).double()], 1)
        y, weak = held[reached].double(), torch.full((slots + 1,), 1e-2, dtype=torch.double)  # keeps weights finite
        weights, start = torch.zeros_like(weak), torch.zeros_like(weak)
        weights[0] = start[0] = 1.0
        for _ in range(steps):
            p = torch.sigmoid(x @ weights)
            gradient = x.T @ (p - y) + weak * (weights - start)
            weights = weights - torch.linalg.solve(x.T * (p * (1 - p)) @ x + torch.diag(weak), gradient)
        counts, ups = (torch.bincount(slot, of, slots) for of in (torch.ones_like(y), y))
        mean = (ups + 0.5) / (counts + 1)
        return cls(float(weights[0]), tuple(weights[1:].tolist()), tuple(mean.tolist()))


@dataclass(frozen=True)
class Cuts:
    """What the choice rests on, measured for one drafter on one machine (`evaluation/speed.py`)."""

    chance: Chance
    verify: tuple[float, ...]
    """V: seconds of a step's verification with 0..K drafts"""
    draft: tuple[float, ...]
    """D: seconds of drafting 0..K"""
    rate: float
    """lambda: tokens a second that a row of the batch commits"""

    @classmethod
    def of(cls, chance: Chance, verify: Sequence[float], draft: Sequence[float], accept_at: Sequence[float]) -> "Cuts":
        """At the pace of the fastest fixed block size: a cut changes it by a few per cent, and the choice by less.

        Args:
            verify, draft: seconds with 0..K and with 1..K drafts.
            accept_at: [K] share of blocks whose first k drafts held.
        """
        steps = enumerate(zip(verify[1:], draft, strict=True), 1)
        rate = max((1 + sum(accept_at[:drafts])) / sum(step) for drafts, step in steps)
        return cls(chance, tuple(verify), (draft[0], *draft), rate)

    def choose(self, reach: Sequence[float], least: int) -> int:
        """The number of drafts to verify, at least `least`; more than are known = draft on.

        Args:
            reach: R_k of the slots that are drafted, mean over the rows of the batch.
        """
        known, expected = len(reach), list(reach)
        for mean in self.chance.mean[known:]:
            expected.append(expected[-1] * mean)
        value, best, chosen = 0.0, -float("inf"), least
        for drafts in range(len(expected) + 1):
            value += expected[drafts - 1] if drafts else 0.0
            net = value - self.rate * (self.verify[drafts] + self.draft[max(drafts, known)])
            if drafts >= least and net > best:
                best, chosen = net, drafts
        return chosen


class Cutter:
    """The cut of one step's blocks, all of the same length, slot after slot.

    Args:
        live: [B] rows whose response is not complete; the others do not count.
    """

    def __init__(self, cuts: Cuts, live: Tensor) -> None:
        self.cuts, self.live = cuts, live
        self.length = 1
        """drafts to verify"""
        self.ended = False
        self._reach: list[float] = []
        self._last: Tensor | None = None

    def __call__(self, evidence: Tensor) -> None:
        """Takes in the next n slots' evidence [B, n], before their drafts are drawn."""
        known = len(self._reach)
        reach = self.cuts.chance(evidence, known).cumprod(1)
        if self._last is not None:
            reach = reach * self._last[:, None]
        self._last = reach[:, -1]
        self._reach += reach[self.live].mean(0).tolist()
        chosen = self.cuts.choose(self._reach, self.length)
        self.ended = chosen <= len(self._reach)
        self.length = min(chosen, len(self._reach))


@torch.no_grad()
def chance(target: Target, drafter: Drafter, traces: Sequence[Trace]) -> Chance:
    """What the drafter's confidence in its drafts was worth, in whole blocks that it has drafted."""
    head, parts = drafter.head(target.head), list[Tensor]()
    traces = [trace for trace in traces if len(trace.anchors)]
    with drafter.evaluating():
        for trace in traces:
            rows = drafter(target.replay(collate([trace]).to(target.device), drafter.layer_ids), target.embed)[0]
            confidence = drafter.confidence_head
            parts.append((log_odds(head(rows)) if confidence is None else confidence(rows)).cpu())
    accepted, drafted = (torch.cat(of)[:, None] for of in zip(*((t.accepted, t.drafted) for t in traces), strict=True))
    slots = torch.arange(1, drafter.num_draft_tokens + 1)
    return Chance.fit(torch.cat(parts), accepted >= slots, (accepted >= slots - 1) & (drafted >= slots))
