"""An objective over many rows, and its gradient, without their logits ever being there all at once."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from draftopd.objectives.base import Objective
from draftopd.objectives.rows import Rows

Logits = Callable[[Tensor], Tensor]


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
    draft_head: Logits,
    hidden: Tensor,
    target_head: Logits | None,
    target_hidden: Tensor | None,
    target_log_mass: Tensor | None,
    chunk_rows: int,
    coefficients: Mapping[str, Tensor],
    trained: Sequence[Tensor] = (),
) -> tuple[Tensor, dict[str, Tensor]]:
    """L = sum_i coefficients_i * (sum of numerators_i), and these sums.

    The gradient of a chunk is computed right behind its value, while its logits are there, and the backward pass of L
    only scales it (as liger-kernel's fused linear cross-entropy does, arXiv 2410.10989): no logits are kept, and none
    are computed twice.

    Args:
        draft_head: [m, D] -> logits [m, V].
        hidden: [M, D] the drafter's.
        target_head: over the same tokens.
        target_hidden: [M, D] what judges each row, where the objective needs it.
        target_log_mass: [M] log-sum-exp of the target's logits over all tokens, where V is a part of them and the
            objective wants the mass that p gives it; None = normalise p over V.
        chunk_rows: rows whose logits exist at a time; chunks end between blocks.
        coefficients: of each term, scalars.
        trained: weights of `draft_head` that are trained; a lent head has none.

    Returns:
        L, with gradients for `hidden` and `trained`, and the terms without.
    """
    # gradients are those of L over its largest coefficient: values near 1 outlive float16, coefficients need not
    largest = torch.stack(list(coefficients.values())).max().clamp(min=1e-30)
    gradients: list[Tensor] = []
    of_weights: list[Tensor] = []
    sums: dict[str, Tensor] = {}
    value = largest.new_zeros(())
    for part in rows.chunks(chunk_rows):
        with torch.no_grad():
            log_p = None
            if target_head is not None and target_hidden is not None:
                log_p = target_head(target_hidden[part])
                log_p = log_p.log_softmax(-1) if target_log_mass is None else log_p - target_log_mass[part, None]
        leaf = hidden[part].detach().requires_grad_(torch.is_grad_enabled())
        numerators = objective.numerators(draft_head(leaf), log_p, rows[part])
        terms = {name: x.sum() for name, x in numerators.items()}
        loss = torch.stack([coefficients[name] / largest * x for name, x in terms.items()]).sum()
        if torch.is_grad_enabled():
            gradient, *own = torch.autograd.grad(loss, [leaf, *trained], materialize_grads=True)
            gradients.append(gradient)
            wide = [g.to(torch.promote_types(g.dtype, torch.float32)) for g in own]
            of_weights = [a.add_(b) for a, b in zip(of_weights, wide, strict=True)] if of_weights else wide
        value = value + loss.detach()
        sums = {name: x.detach() + sums.get(name, 0) for name, x in terms.items()}
    if torch.is_grad_enabled():
        known = [torch.cat(gradients), *(g.to(w.dtype) for g, w in zip(of_weights, trained, strict=True))]
        value = _Known.apply(value, known, hidden, *trained)
    return value * largest, sums
