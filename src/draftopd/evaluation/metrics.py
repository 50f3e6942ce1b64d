"""The one definition of every number of acceptance: ratios of counts, summed over responses.

`Counts` counts one response, `Acceptance` adds responses up as a torchmetrics metric, `scores` puts intervals around
the same ratios, and results files hold the counts themselves (docs/results-json.md).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from draftopd.trace import Trace

Ratios = dict[str, tuple[float, float]]
"""name -> numerator and denominator, each to be summed over responses before the division"""


@dataclass(frozen=True)
class Counts:
    """What the blocks of one response came to; lists run over positions k = 1..K of a block."""

    committed: int
    """tokens that verifications added, bonus tokens included"""
    blocks: int
    held: list[int]
    """blocks whose first k drafts were accepted"""
    drafted: list[int]
    """blocks with at least k drafts before the response's end"""
    reached: list[int]
    """of those, the blocks whose first k - 1 drafts were accepted"""
    accepted: list[int]
    """[K + 1] blocks that accepted exactly 0..K drafts; a last block that the response's end cut is left out"""

    @classmethod
    def of(cls, trace: Trace) -> "Counts":
        width = trace.drafts.shape[1]
        slots = torch.arange(1, width + 1)
        accepted, drafted = trace.accepted[:, None], trace.drafted[:, None]
        whole = trace.accepted[trace.drafted == width]
        return cls(
            committed=int(trace.committed.sum()),
            blocks=len(trace.anchors),
            held=(accepted >= slots).sum(0).tolist(),
            drafted=(drafted >= slots).sum(0).tolist(),
            reached=((accepted >= slots - 1) & (drafted >= slots)).sum(0).tolist(),
            accepted=torch.bincount(whole, minlength=width + 1).tolist(),
        )

    @property
    def acceptance_length(self) -> float:
        """Tokens per verification, bonus included; NaN where a response of one token left nothing to draft."""
        return self.committed / self.blocks if self.blocks else float("nan")

    @property
    def ratios(self) -> Ratios:
        """
        acceptance_length: mean over responses of tokens per verification, bonus included (τ).
        acceptance_length_pooled: tokens / verifications of all responses together.
        acceptance_rate: accepted / drafted tokens.
        accept_at/k: share of blocks whose first k drafts held (marginal), among blocks that drafted so many.
        accept_at_given/k: share of drafts k that held, among blocks whose first k - 1 held (conditional).
        accepted/k: share of whole blocks that accepted exactly k drafts.
        """
        blocks = float(self.blocks)
        out: Ratios = {
            "acceptance_length": (self.acceptance_length, 1.0) if blocks else (0.0, 0.0),
            "acceptance_length_pooled": (float(self.committed), blocks),
            "acceptance_rate": (float(sum(self.held)), float(sum(self.drafted))),
        }
        for k, (held, drafted, reached) in enumerate(zip(self.held, self.drafted, self.reached, strict=True), 1):
            out[f"accept_at/{k}"] = (held, drafted)
            out[f"accept_at_given/{k}"] = (held, reached)
        whole = float(sum(self.accepted))
        return out | {f"accepted/{k}": (count, whole) for k, count in enumerate(self.accepted)}

    @classmethod
    def read(cls, saved: Mapping[str, Any]) -> "Counts":
        """From a results file."""
        return cls(**saved)


def add(responses: Iterable[Counts]) -> Ratios:
    """Sums of the numerators and denominators of several responses."""
    out: Ratios = {}
    for counts in responses:
        for name, (top, bottom) in counts.ratios.items():
            before = out.get(name, (0.0, 0.0))
            out[name] = (before[0] + top, before[1] + bottom)
    return out


class Acceptance(Metric):
    """`Counts.ratios` over all responses of so many rollouts. Processes gather traces first (measure.roll)."""

    full_state_update = False
    numerators: Tensor
    denominators: Tensor

    def __init__(self, num_draft_tokens: int) -> None:
        super().__init__(sync_on_compute=False)
        zeros = [0] * num_draft_tokens
        self.names = list(Counts(0, 0, zeros, zeros, zeros, [0, *zeros]).ratios)
        for name in ("numerators", "denominators"):
            self.add_state(name, torch.zeros(len(self.names), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, traces: Iterable[Trace]) -> None:
        """Traces without a block (the response was one token) add nothing."""
        for trace in traces:
            if not len(trace.anchors):
                continue
            tops, bottoms = zip(*Counts.of(trace).ratios.values(), strict=True)
            self.numerators += torch.tensor(tops).to(self.numerators)
            self.denominators += torch.tensor(bottoms).to(self.denominators)

    def compute(self) -> dict[str, Tensor]:
        """Without the ratios that nothing was counted for."""
        pairs = zip(self.names, self.numerators / self.denominators, self.denominators, strict=True)
        return {name: value.float() for name, value, bottom in pairs if bottom > 0}
