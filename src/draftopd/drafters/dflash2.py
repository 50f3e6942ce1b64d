"""DFlash2 (z-lab, 2026; its blog and model file): short convolutions within the block, and a candidate selector.

Around attention and around the MLP of each of DFlash's layers, a convolution adds to every row of a block what the rows
before it say: a weight for each channel, and on top of it one for each group of channels that is made of the row. The
selector is a head through which each draft reads the one before it. A slot's code is the code P of the token before,
multiplied channel by channel with its own projected hidden state:

    logits_k = head(h_k) + S (P[x_{k-1}] * U h_k),  x_0 the anchor, then the drafts

Engines compute the second term for the 16 candidates with the largest head(h_k) only; here all tokens have it. So that
these 16 hold what the sum would choose, half of the training blocks are without the second term (`train_unary`).
Parameter names are those of the published checkpoints, whose embedding and head are the target's.
"""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask

from draftopd.drafters.base import Embed
from draftopd.drafters.dflash import Layer
from draftopd.drafters.layers import KeysValues, init_linear
from draftopd.drafters.markov import MarkovDrafter
from draftopd.errors import DraftError
from draftopd.target.head import LayerSizes, TargetShape
from draftopd.trace import ReplayBatch
from draftopd.values.checked import checked
from draftopd.values.types import BlockSize, Count, Depth, Layers, Natural, Positive


class BlockConv(nn.Module):
    """Two causal convolutions along the rows of a block, before and after a part of a layer; at first the identity.

    Args:
        taps: rows that are read, a row's own among them.
        group_size: channels that share what is made of the row.
    """

    def __init__(self, size: int, taps: int, group_size: int) -> None:
        super().__init__()
        self.base_kernel = nn.Parameter(torch.zeros(2, taps, size))
        self.kernel_projection = nn.Linear(size, 2 * taps * (size // group_size), bias=False)
        nn.init.ones_(self.base_kernel[:, 0])
        nn.init.zeros_(self.kernel_projection.weight)

    def forward(self, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Rows [B, N, W, D] -> the same convolved, and the convolution of what is made of them."""
        made = self.kernel_projection(x).unflatten(-1, (2, self.base_kernel.shape[1], -1))  # [B, N, W, 2, taps, groups]
        before, after = zip(self.base_kernel, made.unbind(-3), strict=True)
        return convolved(x, *before), lambda rows: convolved(rows, *after)


def convolved(x: Tensor, base: Tensor, made: Tensor) -> Tensor:
    """Rows [..., W, D] by kernels base [taps, D] + made [..., W, taps, groups]; zeros before the first row."""
    width, groups, out = x.shape[-2], made.shape[-1], torch.zeros_like(x)
    for tap, (weight, own) in enumerate(zip(base, made.unbind(-2), strict=True)):
        rows = F.pad(x, (0, 0, tap, 0))[..., :width, :]
        grouped = rows.unflatten(-1, (groups, -1)) * own[..., None]  # kernels of all channels would be large
        out = out + rows * weight + grouped.flatten(-2)
    return out


class ConvolvedLayer(Layer):
    def __init__(self, sizes: LayerSizes, taps: int, group_size: int) -> None:
        super().__init__(sizes)
        self.apply(init_linear)
        self.attention_conv = BlockConv(sizes.hidden_size, taps, group_size)
        self.mlp_conv = BlockConv(sizes.hidden_size, taps, group_size)

    def forward(self, x: Tensor, positions: Tensor, text: KeysValues, mask: Tensor | BlockMask) -> Tensor:
        rows, after = self.attention_conv(self.input_layernorm(x))
        x = x + after(self.attend(rows, positions, text, mask))
        rows, after = self.mlp_conv(self.post_attention_layernorm(x))
        return x + after(self.mlp(rows))


class Selector(nn.Module):
    def __init__(self, size: int, vocab_size: int, head_size: int, rank: int) -> None:
        super().__init__()
        self.hidden_projection = nn.Linear(size, rank, bias=False)
        self.predecessor_codebook = nn.Parameter(torch.randn(vocab_size, rank) * 0.02)
        self.successor_codebook = nn.Parameter(torch.randn(head_size, rank) * 0.02)
        init_linear(self.hidden_projection)

    def forward(self, hidden: Tensor, before: Tensor) -> Tensor:
        codes: Tensor = F.embedding(before, self.predecessor_codebook) * self.hidden_projection(hidden)
        return codes


@checked
class DFlash2(MarkovDrafter):
    """DFlash's arguments, and three of its own.

    Args:
        selector_rank: r.
        conv_kernel_size: rows of a block that a convolution reads, a row's own among them.
        conv_group_size: channels that share the part of a kernel that is made of the row.
        train_unary: blocks with odd anchors train head(h_k) alone: no random numbers, whatever the micro-batches are.
    """

    def __init__(
        self,
        target: TargetShape,
        num_layers: Depth,
        block_size: BlockSize,
        selector_rank: Count,
        layer_ids: Layers | None = None,
        num_taps: Count | None = None,
        draft_vocab_size: Count | None = None,
        num_attention_heads: Count | None = None,
        num_key_value_heads: Count | None = None,
        head_dim: Count | None = None,
        intermediate_size: Count | None = None,
        rms_norm_eps: Positive | None = None,
        rope_theta: Positive | None = None,
        mask_token_id: Natural | None = None,
        init: Literal["random", "target"] = "random",
        conv_kernel_size: Count = 2,
        conv_group_size: Count = 16,
        train_unary: bool = True,
        window: Count | None = None,
    ) -> None:
        if target.hidden_size % conv_group_size:
            raise DraftError(
                f"drafter.conv_group_size {conv_group_size} must divide the target's hidden size {target.hidden_size}"
            )
        super().__init__(
            target=target,
            num_layers=num_layers,
            block_size=block_size,
            layer_ids=layer_ids,
            num_taps=num_taps,
            draft_vocab_size=draft_vocab_size,
            num_attention_heads=num_attention_heads,
            num_key_value_heads=num_key_value_heads,
            head_dim=head_dim,
            intermediate_size=intermediate_size,
            rms_norm_eps=rms_norm_eps,
            rope_theta=rope_theta,
            mask_token_id=mask_token_id,
            init=init,
            window=window,
        )
        self.selector_rank, self.train_unary = selector_rank, train_unary
        self.conv_kernel_size, self.conv_group_size = conv_kernel_size, conv_group_size
        self.layers = nn.ModuleList(
            ConvolvedLayer(self.sizes, conv_kernel_size, conv_group_size) for _ in range(num_layers)
        )
        head_size = draft_vocab_size or target.vocab_size
        self.candidate_selector = Selector(self.hidden_size, target.vocab_size, head_size, selector_rank)

    @property
    def markov(self) -> Tensor:
        return self.candidate_selector.successor_codebook

    def codes(self, hidden: Tensor, before: Tensor) -> Tensor:
        codes: Tensor = self.candidate_selector(hidden, before)
        return codes

    def forward(self, batch: ReplayBatch, embed: Embed) -> Tensor:
        rows = super().forward(batch, embed)
        if not (self.training and self.train_unary):
            return rows
        hidden, codes = rows.split([self.hidden_size, self.selector_rank], -1)
        alone = batch.anchors % 2 == 1
        return torch.cat([hidden, codes.masked_fill(alone[..., None, None], 0)], -1)

    def block_flops(self, blocks: float, length: float) -> float:
        projected = self.hidden_size * self.selector_rank * self.num_draft_tokens
        return super().block_flops(blocks, length) + 2.0 * projected * blocks
