"""One definition for each number, as torchmetrics that sum numerators and denominators over batches.

Several processes gather traces first (measure.roll), so each computes from all of them, alone if it must.
"""

from collections.abc import Iterable

import torch
from torch import Tensor
from torchmetrics import Metric

from draftopd.trace import Trace


class Acceptance(Metric):
    """What rollouts accepted.

    Computes:
        acceptance_length: tokens committed / verifications, bonus included; mean per response, then over responses.
        acceptance_length_pooled: the same ratio over all responses together.
        acceptance_rate: accepted / drafted tokens.
        accept_at/k: share of blocks whose first k drafts all held (marginal), among blocks that drafted so many.
        accept_at_given/k: share of drafts k that held among blocks whose first k - 1 held (conditional).
    """

    full_state_update = False
    ratio: Tensor
    responses: Tensor
    committed: Tensor
    blocks: Tensor
    held: Tensor
    reached: Tensor
    drafted: Tensor
    histogram: Tensor

    def __init__(self, num_draft_tokens: int) -> None:
        super().__init__(sync_on_compute=False)
        for name in ("ratio", "responses", "committed", "blocks"):
            self.add_state(name, torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        for name in ("held", "reached", "drafted", "histogram"):
            size = num_draft_tokens + (name == "histogram")
            self.add_state(name, torch.zeros(size, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, traces: Iterable[Trace]) -> None:
        """Traces without a block (the response was one token) have no acceptance length and are left out."""
        for trace in traces:
            if not len(trace.anchors):
                continue
            slots = torch.arange(1, trace.drafts.shape[1] + 1)
            accepted, drafted = trace.accepted[:, None], trace.drafted[:, None]
            self.ratio += trace.acceptance_length
            self.responses += 1
            self.committed += trace.committed.sum().to(self.committed)
            self.blocks += len(trace.anchors)
            self.held += (accepted >= slots).sum(0).to(self.held)
            self.reached += ((accepted >= slots - 1) & (drafted >= slots)).sum(0).to(self.held)
            self.drafted += (drafted >= slots).sum(0).to(self.held)
            judged = trace.accepted[trace.drafted == trace.drafts.shape[1]]
            self.histogram += torch.bincount(judged, minlength=len(slots) + 1).to(self.held)

    def compute(self) -> dict[str, Tensor]:
        out = {
            "acceptance_length": self.ratio / self.responses,
            "acceptance_length_pooled": self.committed / self.blocks,
            "acceptance_rate": self.held.sum() / self.drafted.sum(),
        }
        for k, (held, reached, drafted) in enumerate(zip(self.held, self.reached, self.drafted, strict=True), 1):
            out[f"accept_at/{k}"] = held / drafted
            out[f"accept_at_given/{k}"] = held / reached
        return {name: value.float() for name, value in out.items() if torch.isfinite(value)}


class Speedup(Metric):
    """Tokens per second of speculative over plain decoding: same target, prompts, lengths and batch size.

    Computes: speedup (ratio), tokens_per_second and tokens_per_second_plain.
    """

    full_state_update = False
    tokens: Tensor
    seconds: Tensor
    plain_tokens: Tensor
    plain_seconds: Tensor

    def __init__(self) -> None:
        super().__init__(sync_on_compute=False)
        for name in ("tokens", "seconds", "plain_tokens", "plain_seconds"):
            self.add_state(name, torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, tokens: int, seconds: float, plain_tokens: int, plain_seconds: float) -> None:
        self.tokens += tokens
        self.seconds += seconds
        self.plain_tokens += plain_tokens
        self.plain_seconds += plain_seconds

    def compute(self) -> dict[str, Tensor]:
        fast, plain = self.tokens / self.seconds, self.plain_tokens / self.plain_seconds
        values = {"speedup": fast / plain, "tokens_per_second": fast, "tokens_per_second_plain": plain}
        return {name: value.float() for name, value in values.items()}
