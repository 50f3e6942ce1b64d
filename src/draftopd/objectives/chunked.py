"""An objective over many rows, and its gradient, without ever holding the logits of all rows at once."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from draftopd.objectives.base import Objective
from draftopd.objectives.rows import Rows

Logits = Callable[[Tensor], Tensor]
"""hidden states [m, D] -> logits [m, V]"""


@dataclass(frozen=True)
class DraftSide:
    head: Logits
    hidden: Tensor
    """[M, D]"""
    trained: Sequence[Tensor] = ()
    """weights of `head` that are trained; a head lent by the target has none"""
    confidence: nn.Module | None = None
    """hidden states [m, D] -> [m], for `Rows.confidence`; its gradient ends at its weights"""

    @property
    def weights(self) -> tuple[Tensor, ...]:
        """All that are trained."""
        return (*self.trained, *(() if self.confidence is None else self.confidence.parameters()))


@dataclass(frozen=True)
class TargetSide:
    head: Logits
    """over the same tokens as the drafter's"""
    hidden: Tensor
    """[M, D] the target's hidden state for each row"""
    log_mass: Tensor | None = None
    """[M] log-sum-exp of its logits over all tokens, where V is a part of them and the objective wants the mass that p
    gives to V; None = normalise p over V"""

    @torch.no_grad()
    def log_probs(self, part: slice) -> Tensor:
        logits = self.head(self.hidden[part])
        return logits.log_softmax(-1) if self.log_mass is None else logits - self.log_mass[part, None]


class _Known(torch.autograd.Function):
    """A value whose gradients have been computed along with it."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: Sequence[Tensor], *inputs: Tensor) -> Tensor:
        ctx.save_for_backward(*gradients)
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(upstream * gradient for gradient in ctx.saved_tensors)


def chunked_loss(
    objective: Objective,
    rows: Rows,
    draft: DraftSide,
    target: TargetSide | None,
    coefficients: Mapping[str, Tensor],
    chunk_rows: int,
) -> tuple[Tensor, dict[str, Tensor]]:
    """L = sum_i coefficients_i * (sum of numerators_i), and these sums.

    The gradient of a chunk is computed right after its value, while its logits exist, and the backward pass of L only
    scales it (as liger-kernel's fused linear cross-entropy does, arXiv 2410.10989): no logits are stored, and none are
    computed twice.

    Args:
        target: None where the objective does not need it.
        coefficients: of each term, scalars.
        chunk_rows: rows whose logits exist at a time; chunks end between blocks, or between texts where the objective
            reads whole texts.

    Returns:
        L, with gradients for `draft.hidden` and `draft.weights`, and the terms without.
    """
    # gradients are those of L over its largest coefficient: values near 1 fit into float16, coefficients need not
    largest = torch.stack(list(coefficients.values())).max().clamp(min=1e-30)
    gradients: list[Tensor] = []
    of_weights: list[Tensor] = []
    sums: dict[str, Tensor] = {}
    weights = draft.weights
    value = largest.new_zeros(())
    for part in rows.chunks(chunk_rows, objective.whole_texts):
        log_p = None if target is None else target.log_probs(part)
        leaf = draft.hidden[part].detach().requires_grad_(torch.is_grad_enabled())
        places = rows[part]
        if draft.confidence is not None:
            places = replace(places, confidence=draft.confidence(leaf.detach()))
        numerators = objective.numerators(draft.head(leaf), log_p, places)
        terms = {name: x.sum() for name, x in numerators.items()}
        loss = torch.stack([coefficients[name] / largest * x for name, x in terms.items()]).sum()
        if torch.is_grad_enabled():
            gradient, *own = torch.autograd.grad(loss, [leaf, *weights], materialize_grads=True)
            gradients.append(gradient)
            wide = [g.to(torch.promote_types(g.dtype, torch.float32)) for g in own]
            of_weights = [a.add_(b) for a, b in zip(of_weights, wide, strict=True)] if of_weights else wide
        value = value + loss.detach()
        sums = {name: x.detach() + sums.get(name, 0) for name, x in terms.items()}
    if torch.is_grad_enabled():
        known = [torch.cat(gradients), *(g.to(w.dtype) for g, w in zip(of_weights, weights, strict=True))]
        value = _Known.apply(value, known, draft.hidden, *weights)
    return value * largest, sums
