"""What rollouts did: where drafts were cut, and how far apart drafter and target are at those places."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from draftopd.decoding.memory import Attempts
from draftopd.drafters.base import Drafter
from draftopd.evaluation.metrics import Acceptance
from draftopd.objectives.divergences import forward_kl, reverse_kl
from draftopd.objectives.rows import Rows, flatten
from draftopd.target.head import Head
from draftopd.target.model import Target
from draftopd.trace import ReplayBatch, Rollout, Trace, collate


@dataclass(frozen=True)
class Diagnosis:
    """Groups of drafts: accepted, first rejected, and the suffix after that one; empty groups are left out."""

    step: int
    """optimizer step of the weights that drafted"""
    acceptance_length: float
    """tokens a verification, mean over responses"""
    share: dict[str, float]
    """of the verified drafts, by group"""
    forward_kl: dict[str, float]
    """mean KL(p‖q) by group, nats; both normalised over the draft vocabulary"""
    reverse_kl: dict[str, float]
    """mean KL(q‖p) by group"""
    anchor_offset: dict[str, float]
    """share of blocks by distance to the next anchor, "1" .. "K + 1": the slot of the first rejection, or K + 1"""

    def metrics(self) -> dict[str, float]:
        """Numbers by group and offset, without the acceptance length."""
        names = ("share", "forward_kl", "reverse_kl", "anchor_offset")
        return {f"{name}/{key}": value for name in names for key, value in getattr(self, name).items()}


def diagnose(
    target: Target, drafter: Drafter, results: Sequence[Rollout], *, texts: int, rows: int, step: int
) -> Diagnosis:
    """Counts in all results; divergences of the drafter as it is now, on a part of them.

    Args:
        results: rollouts with at least one block each; where they carry what their verifications computed, no target
            forward is run.
        texts, rows: the part: the first `texts` results, and about `rows` drafts in blocks that are spread evenly.
    """
    traces = [r.trace for r in results]
    width = traces[0].drafts.shape[1]
    metric = Acceptance(width)
    metric.update(traces)
    offsets = torch.cat([t.committed for t in traces]).bincount(minlength=width + 2)[1:].double()
    share = {name: float(mask.double().mean()) for name, mask in _groups(flatten(collate(traces), None)).items()}
    for attempt in Attempts(min(texts, len(results)), "diagnosed texts", "lower callbacks.diagnostics.texts"):
        with attempt as count:
            forward, reverse = _divergences(target, drafter, results[:count], rows)
    return Diagnosis(
        step=step,
        acceptance_length=float(metric.compute()["acceptance_length"]),
        share=share,
        forward_kl=forward,
        reverse_kl=reverse,
        anchor_offset={str(i): float(n / offsets.sum()) for i, n in enumerate(offsets, 1)},
    )


def _groups(rows: Rows) -> dict[str, Tensor]:
    suffix = rows.slot > rows.num_accepted + 1
    return {"accepted": rows.accepted, "first_rejected": rows.first_rejected, "suffix": suffix}


@torch.no_grad()
def _divergences(target: Target, drafter: Drafter, results: Sequence[Rollout], rows: int) -> list[dict[str, float]]:
    """Means of forward and of reverse KL by group."""
    batch = _part(target, drafter, results, max(1, rows // (len(results) * drafter.num_draft_tokens)))
    assert batch.target_hidden is not None
    with drafter.evaluating():
        drafted, verified = drafter(batch, target.embed)[batch.valid], batch.target_hidden[batch.valid]
    target_head, draft_head = target.head(drafter.vocabulary), drafter.head(target.head)
    values: list[Tensor] = []
    for p, q in zip(verified.split(256), drafted.split(256), strict=True):
        log_p, log_q = target_head(p).log_softmax(-1), draft_head(q).log_softmax(-1)
        values.append(torch.stack([forward_kl(log_p, log_q), reverse_kl(log_p, log_q)]))
    groups = {name: mask for name, mask in _groups(flatten(batch, None)).items() if mask.any()}
    return [{name: float(kl[mask].mean()) for name, mask in groups.items()} for kl in torch.cat(values, 1)]


def _part(target: Target, drafter: Drafter, results: Sequence[Rollout], blocks: int) -> ReplayBatch:
    """At most this many blocks of each result, spread evenly, with the target's opinion of them."""
    traces, hidden = [], []
    for result in results:
        trace = result.trace
        at = torch.linspace(0, len(trace.anchors) - 1, min(blocks, len(trace.anchors))).round().long()
        part = {name: getattr(trace, name)[at] for name in ("anchors", "drafts", "accepted")}
        traces.append(replace(trace, **part, verified=None if trace.verified is None else trace.verified[at]))
        if result.target_hidden is not None:
            hidden.append(result.target_hidden[at])
    features = [r.features for r in results if r.features is not None]
    if len(hidden) == len(features) == len(results):
        return collate(traces, features, hidden).to(target.device)
    return target.replay(collate(traces).to(target.device), drafter.layer_ids)


@dataclass(frozen=True)
class Sides:
    """Probabilities that target and drafter, in this order, gave to the tokens of one trace's blocks."""

    drafts: Tensor
    """[N, K, 2] of the drafts; NaN where none was verified"""
    own: Tensor
    """[N, 2] of the target's correction after the accepted drafts; NaN for bonus tokens, which were not drafted"""


@torch.no_grad()
def probabilities(target: Target, drafter: Drafter, trace: Trace) -> Sides:
    """What the target and the drafter as it is now give to the tokens of a trace with blocks, at temperature 1."""
    batch = target.replay(collate([trace]).to(target.device), drafter.layer_ids)
    assert batch.target_hidden is not None
    with drafter.evaluating():
        drafted = drafter(batch, target.embed)[batch.valid]
    rows = flatten(batch, None)
    ids = torch.stack([rows.draft, rows.text.clamp(min=0)], 1)
    sides = ((target.head(), batch.target_hidden[batch.valid]), (drafter.head(target.head), drafted))
    values = [torch.cat([_mass(head, *part) for part in _parts(hidden, ids)]) for head, hidden in sides]
    grid = torch.full((*batch.drafts.shape[1:], 2, 2), torch.nan)  # the last two: draft or text, side
    grid[batch.valid[0].cpu()] = torch.stack(values, 2).cpu().float()
    last = grid.shape[1] - 1
    own = grid[torch.arange(len(grid)), trace.accepted.clamp(max=last), 1]
    cut = (trace.accepted < trace.drafted)[:, None]
    return Sides(grid[:, :, 0], torch.where(cut, own, torch.nan))


def _parts(hidden: Tensor, ids: Tensor, rows: int = 256) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(hidden.split(rows), ids.split(rows), strict=True)


def _mass(head: Head, hidden: Tensor, ids: Tensor) -> Tensor:
    """[M, n] probability of each of ids [M, n] after hidden [M, D]; 0 outside the head's vocabulary."""
    mass = head(hidden).softmax(-1)
    if head.vocabulary is None:
        return mass.gather(1, ids)
    place = torch.searchsorted(head.vocabulary, ids).clamp(max=len(head.vocabulary) - 1)
    return mass.gather(1, place) * (head.vocabulary[place] == ids)
