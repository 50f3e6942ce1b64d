"""The geometry that drafting, verifying and replaying share.

A block is an anchor and K drafts. It sees the committed tokens strictly before its start, and itself: in both
directions (DFlash's drafter) or causally (verification by the target, EAGLE-3). All blocks of a text are rows after the
text, side by side in one forward.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from torch.nn.utils.rnn import pad_sequence

from draftopd.trace import ReplayBatch

ROW = 1.0  # blocks for which a row more could be computed: it has its own copy of its text's keys and values


def packed(batch: ReplayBatch) -> ReplayBatch:
    """With `rows`, where they make a forward cheaper: texts with many blocks take several, so that fewer blocks pad."""
    live = batch.drafted > 0
    counts = live.sum(1).tolist()

    def cost(width: int) -> float:
        return sum(-(-count // width) for count in counts) * (width + ROW)

    most = max(counts, default=0)
    width = min(range(1, most + 1), key=cost, default=0)
    if not width or cost(width) >= len(counts) * (live.shape[1] + ROW):
        return replace(batch, rows=None)
    rows = [part for places in live.flatten().nonzero()[:, 0].split(counts) for part in places.split(width)]
    return replace(batch, rows=pad_sequence([row for row in rows if len(row)], True, live.numel()))


class BlockRows:
    """The blocks of a batch [B, N, ...] as rows [R, n, ...], and back."""

    def __init__(self, batch: ReplayBatch) -> None:
        self.shape, self.rows = batch.anchors.shape, batch.rows

    def texts(self, states: Tensor) -> Tensor:
        """What belongs to texts, [B, ...], for each row: [R, ...]."""
        # not by states[...], whose gradient several CPU threads add up in any order
        return states if self.rows is None else states.index_select(0, self.rows[:, 0] // self.shape[1])

    def fold(self, blocks: Tensor) -> Tensor:
        """[B, N, ...] -> [R, n, ...]; places without a block get the last one, and nobody reads what comes of it."""
        return blocks if self.rows is None else blocks.flatten(0, 1)[self.rows.clamp(max=self.shape.numel() - 1)]

    def unfold(self, blocks: Tensor) -> Tensor:
        """[R, n, ...] -> [B, N, ...], zeros where the batch has no block."""
        if self.rows is None:
            return blocks
        places = blocks.new_zeros(self.shape.numel() + 1, *blocks.shape[2:])
        return places.index_copy(0, self.rows.flatten(), blocks.flatten(0, 1))[:-1].unflatten(0, self.shape)


def masked_blocks(anchors: Tensor, block_size: int, mask_token_id: int) -> Tensor:
    """Drafter input [B, N, W]: the anchor token, then mask tokens. anchors [B, N]: the tokens."""
    blocks = torch.full((*anchors.shape, block_size), mask_token_id, device=anchors.device)
    blocks[..., 0] = anchors
    return blocks


def block_positions(anchors: Tensor, block_size: int) -> Tensor:
    """[B, N, W] position of every slot: slot k has that of token anchor + k."""
    return anchors[..., None] + torch.arange(block_size, device=anchors.device)


def branch_mask(start: Tensor, block: Tensor, text_length: int, *, causal: bool, first: Tensor | None = None) -> Tensor:
    """Which of [text ‖ rows] each row may see: bool [B, 1, R, T + R], True = visible.

    Args:
        start: [B, R] first text position that the row does not see (its block's start).
        block: [B, R] the block of each row, with the rows of a block in order; -1 marks padding.
        causal: a row sees the rows of its block only up to itself, else all of them.
        first: [B, R] first text position that the row sees; None = 0.
    """
    at = torch.arange(text_length, device=start.device)
    text = at < start[..., None]
    if first is not None:
        text = text & (at >= first[..., None])
    rows = block[..., :, None] == block[..., None, :]
    if causal:
        rows = rows.tril()
    return torch.cat([text, rows], dim=-1)[:, None]


def flex_branch_mask(
    start: Tensor, block: Tensor, text_length: int, seen: Tensor, first: Tensor | None = None
) -> BlockMask:
    """The same mask for torch's flex attention, which skips what no row sees; keys are [text ‖ seen rows].

    Args:
        start, block, first: [B, R] of the query rows, as in `branch_mask`.
        seen: [B, S] blocks of the key rows, which are all visible to the rows of their block.
    """

    def visible(b: Tensor, _head: Tensor, row: Tensor, key: Tensor) -> Tensor:
        same = seen[b, (key - text_length).clamp(min=0)] == block[b, row]
        text = key < start[b, row]
        if first is not None:
            text = text & (key >= first[b, row])
        return torch.where(key < text_length, text, same)

    rows, keys = start.shape[1], text_length + seen.shape[1]
    return create_block_mask(visible, len(start), None, rows, keys, device=str(start.device))


def causal_mask(positions: Tensor, length: int) -> Tensor:
    """bool [B, 1, W, S]: a query at position p sees the slots 0..p of a cache whose slot is its position."""
    return (torch.arange(length, device=positions.device) <= positions[..., None])[:, None]


class Tails:
    """Drafts d[r+1..K-1] of every block, packed: as inputs they verify the drafts after the first rejection.

    Attributes (R = the most of any text, others padded):
        tokens, positions: [B, R].
        block: [B, R] the block of each draft; -1 marks padding.
        row_of: [B, N, K] the row that verifies each draft, for those that one of these rows verifies.
    """

    def __init__(self, batch: ReplayBatch) -> None:
        slots = torch.arange(1, batch.drafts.shape[2] + 1, device=batch.drafts.device)
        wanted = (slots > batch.accepted[..., None]) & (slots < batch.drafted[..., None])  # [B, N, K]
        flat = wanted.flatten(1)
        rank = flat.cumsum(1) - 1
        width = int(flat.sum(1).max())
        where = torch.where(flat, rank, width)

        def pack(values: Tensor, fill: int) -> Tensor:
            out = torch.full((len(flat), width + 1), fill, device=flat.device)
            return out.scatter(1, where, values.expand(wanted.shape).flatten(1))[:, :width]

        self.tokens = pack(batch.drafts, 0)
        self.positions = pack(batch.anchors[..., None] + slots, 0)
        self.block = pack(torch.arange(wanted.shape[1], device=flat.device)[:, None], -1)
        # draft k (1-based) is verified by the row of draft k - 1
        before = F.pad(rank.unflatten(1, wanted.shape[1:]), (1, 0))[..., :-1]
        self.row_of = before.clamp(min=0)
