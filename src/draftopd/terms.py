"""Numerators of an objective over many rows, without their logits ever being there all at once."""

from collections.abc import Callable

from torch import Tensor
from torch.utils.checkpoint import checkpoint

from draftopd.losses import Objective
from draftopd.rows import Rows

Logits = Callable[[Tensor], Tensor]


def sum_terms(
    objective: Objective,
    rows: Rows,
    draft_head: Logits,
    hidden: Tensor,
    target_head: Logits | None,
    target_hidden: Tensor | None,
    target_log_mass: Tensor | None,
    chunk_rows: int,
) -> dict[str, Tensor]:
    """Sum of each term's numerators.

    Args:
        draft_head: [m, D] -> logits [m, V].
        hidden: [M, D] the drafter's.
        target_head: over the same tokens.
        target_hidden: [M, D] what judges each row, where the objective needs it.
        target_log_mass: [M] log-sum-exp of the target's logits over all tokens, where V is a part of them and the
            objective wants the mass that p gives it; None = normalise p over V.
        chunk_rows: rows whose logits exist at a time; chunks end between blocks.
    """

    def of_chunk(draft: Tensor, target: Tensor | None, mass: Tensor | None, part: Rows) -> dict[str, Tensor]:
        log_p = None
        if target is not None and target_head is not None:
            logits = target_head(target)
            log_p = logits.log_softmax(-1) if mass is None else logits - mass[:, None]
        return {name: value.sum() for name, value in objective.numerators(draft_head(draft), log_p, part).items()}

    parts = list(rows.chunks(chunk_rows))
    sums: dict[str, Tensor] = {}
    for part in parts:
        target = None if target_hidden is None else target_hidden[part]
        mass = None if target_log_mass is None else target_log_mass[part]
        call = (hidden[part], target, mass, rows[part])
        # with several chunks the logits of each are computed again in the backward pass instead of kept
        chunk = of_chunk(*call) if len(parts) == 1 else checkpoint(of_chunk, *call, use_reentrant=False)
        sums = {name: value + sums.get(name, 0) for name, value in chunk.items()}
    return sums
