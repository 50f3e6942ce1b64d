"""Rows: the supervised draft positions of a batch as one flat list, which is what objectives read.

One row is one draft slot of one block. Rows of a block are adjacent and in order, and begin at slot 1 unless the batch
says that its first slots are not supervised.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from draftopd.trace import ReplayBatch


@dataclass(frozen=True)
class Rows:
    """Places of M rows in their blocks, and their tokens as rows of the drafter's head (-1 = the head lacks it)."""

    draft: Tensor
    """[M] the draft"""
    text: Tensor
    """[M] the token committed at its position, the draft itself where that was accepted; -1 after the text's end"""
    slot: Tensor
    """[M] in-block position k of the draft, 1..K"""
    num_accepted: Tensor
    """[M] how many drafts of the row's block were accepted, r"""
    block: Tensor
    """[M] number of the row's block"""
    response: Tensor
    """[M] number of the row's text"""
    remaining: Tensor
    """[M] how many tokens of its text follow the block's anchor"""
    argmax: Tensor | None = None
    """[M] the target's most probable token, where the objective needs it (`needs_argmax`)"""
    confidence: Tensor | None = None
    """[M] logits of the chance that the target accepts the draft, where the drafter predicts it"""

    @property
    def accepted(self) -> Tensor:
        """[M] bool: the target accepted the draft."""
        return self.slot <= self.num_accepted

    @property
    def first_rejected(self) -> Tensor:
        """[M] bool: the slot r + 1, whose committed token is the target's correction."""
        return self.slot == self.num_accepted + 1

    @property
    def reached(self) -> Tensor:
        """[M] bool: the slots that decide acceptance, 1..r + 1. After them the text does not follow the drafts."""
        return self.slot <= self.num_accepted + 1

    @property
    def opens(self) -> Tensor:
        """[M] bool: the first row of its block."""
        return self.block.diff(prepend=self.block.new_tensor([-1])) != 0

    @property
    def opens_text(self) -> Tensor:
        """[M] bool: the first row of its text."""
        return self.response.diff(prepend=self.response.new_tensor([-1])) != 0

    def __getitem__(self, index: slice) -> "Rows":
        return replace(self, **{name: values[index] for name, values in vars(self).items() if values is not None})

    def __len__(self) -> int:
        return len(self.slot)

    def chunks(self, size: int, whole_texts: bool = False) -> Iterator[slice]:
        """Slices of whole blocks, or texts, of at most `size` rows unless one is larger; one empty slice if no rows."""
        starts = (self.opens_text if whole_texts else self.opens).nonzero()[:, 0].tolist()
        begin = last = 0
        for end in [*starts[1:], len(self)]:
            if end - begin > size and last > begin:
                yield slice(begin, last)
                begin = last
            last = end
        yield slice(begin, len(self))

    def prefix_product(self, values: Tensor) -> Tensor:
        """[M] product of `values` [M] over a row and the rows before it in its block."""
        return self._of_grid(self.grid(values, 1).cumprod(1))

    def prefix_sum(self, values: Tensor) -> Tensor:
        """[M] sum of `values` [M] over a row and the rows before it in its block."""
        return self._of_grid(self.grid(values, 0).cumsum(1))

    def suffix_sum(self, values: Tensor) -> Tensor:
        """[M] sum of `values` [M] over a row and the rows after it in its block."""
        return self._of_grid(self.grid(values, 0).flip(1).cumsum(1).flip(1))

    def grid(self, values: Tensor, fill: int) -> Tensor:
        """[M] -> [N, K]: a row for each block, padded with `fill`."""
        if not len(self):
            return values.reshape(0, 1)
        block = self.block - self.block[0]
        shape = (int(block[-1]) + 1, int(self.slot.max()))
        return values.new_full(shape, fill).index_put((block, self.slot - 1), values)

    def _of_grid(self, grid: Tensor) -> Tensor:
        return grid[self.block - self.block[:1], self.slot - 1]


def flatten(batch: ReplayBatch, head_index: Tensor | None) -> Rows:
    """Rows of a batch's valid drafts.

    Args:
        head_index: [V] row of the drafter's head for each token, -1 outside the draft vocabulary; None = all tokens.
    """
    slots = torch.arange(1, batch.drafts.shape[2] + 1, device=batch.drafts.device).expand_as(batch.drafts)
    at = batch.anchors[..., None] + slots
    text = batch.tokens.gather(1, at.clamp(max=batch.tokens.shape[1] - 1).flatten(1)).view_as(at)
    draft = batch.drafts
    if head_index is not None:
        draft, text = head_index[draft], head_index[text]
    text = torch.where(at < batch.lengths[:, None, None], text, -1)
    accepted = batch.accepted[..., None].expand_as(slots)
    number = torch.arange(batch.anchors.numel(), device=draft.device).view(*batch.anchors.shape, 1).expand_as(slots)
    response = torch.arange(len(batch.tokens), device=draft.device)[:, None, None].expand_as(slots)
    remaining = (batch.lengths[:, None, None] - 1 - batch.anchors[..., None]).expand_as(slots)
    valid = batch.valid
    block = number[valid].unique_consecutive(return_inverse=True)[1]
    draft, text, slots, accepted = (values[valid] for values in (draft, text, slots, accepted))
    return Rows(draft, text, slots, accepted, block, response[valid], remaining[valid])


def log_mass(head: Callable[[Tensor], Tensor], hidden: Tensor, size: int) -> Tensor:
    """[M] log-sum-exp of all logits of hidden [M, D], `size` rows at a time; no gradient."""
    with torch.no_grad():
        return torch.cat([head(part).logsumexp(-1) for part in hidden.split(size)])


def most_probable(head: Callable[[Tensor], Tensor], hidden: Tensor, size: int) -> Tensor:
    """[M] token with the largest logit for each of hidden [M, D], `size` rows at a time; no gradient."""
    with torch.no_grad():
        return torch.cat([head(part).argmax(-1) for part in hidden.split(size)])
