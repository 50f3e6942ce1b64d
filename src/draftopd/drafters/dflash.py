"""DFlash (arXiv 2602.06036): one pass fills a whole block, conditioned on the target by key-value injection.

The projected target features are extra keys and values in every layer; they are never updated by the layers. A block
[anchor, mask, ..., mask] attends to the features strictly before its anchor and, in both directions, to itself; slot k
predicts the token at its own position. Embedding and head are lent by the target. Parameter names are those of the
published z-lab checkpoints.
"""

from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask

from draftopd.blocks import BlockRows, block_positions, branch_mask, flex_branch_mask, masked_blocks
from draftopd.drafters.base import Drafter, Embed, Propose
from draftopd.drafters.layers import MLP, Attention, KeysValues, RMSNorm, init_linear, join, layer_sizes
from draftopd.target.cache import RaggedCache
from draftopd.target.head import Head, LayerSizes, TargetShape
from draftopd.trace import ReplayBatch
from draftopd.values.checked import checked
from draftopd.values.types import BlockSize, Count, Depth, Layers, Natural, Positive


def default_layer_ids(num_taps: int, target_layers: int) -> list[int]:
    """z-lab's rule: the middle layer for one tap, else evenly spaced from 1 to L - 3 (0-based layer outputs)."""
    if num_taps == 1:
        return [target_layers // 2]
    return [round(1 + i * (target_layers - 4) / (num_taps - 1)) for i in range(num_taps)]


class Layer(nn.Module):
    def __init__(self, sizes: LayerSizes) -> None:
        super().__init__()
        size, eps = sizes.hidden_size, sizes.rms_norm_eps
        self.self_attn, self.mlp = Attention(size, sizes, norm_heads=True), MLP(sizes)
        self.input_layernorm = RMSNorm(size, eps)
        self.post_attention_layernorm = RMSNorm(size, eps)

    def forward(self, x: Tensor, positions: Tensor, text: KeysValues, mask: Tensor | BlockMask) -> Tensor:
        """Rows of blocks x [B, N, W, D] at positions [B, N * W]."""
        x = x + self.attend(self.input_layernorm(x), positions, text, mask)
        return x + self.mlp(self.post_attention_layernorm(x))

    def attend(self, normed: Tensor, positions: Tensor, text: KeysValues, mask: Tensor | BlockMask) -> Tensor:
        rows = normed.flatten(1, 2)
        # the same projections for text and block
        seen = join(text, self.self_attn.keys_values(rows, positions))
        return self.self_attn(rows, positions, seen, mask).view_as(normed)


@checked
class DFlash(Drafter):
    """The block drafter.

    Args:
        target: shapes of the target; sizes that are not given are the target's.
        num_layers: decoder layers of the drafter.
        block_size: W, anchor and drafts; at least 2.
        layer_ids: features to read; default z-lab's rule with `num_taps` (default `num_layers`) layers.
        draft_vocab_size: size of a reduced vocabulary; None = the target's whole vocabulary.
        mask_token_id: by default the target's.
        init: "target" = `copy_target` before training.
        window: see `Drafter`; at least the block size, so that a block sees itself.

    Attributes:
        first_slot: the row of a block that predicts its first draft: 1 where rows predict the token at their own
            position, 0 where they predict the next one, so that a block needs one row less.
    """

    first_slot = 1

    def __init__(
        self,
        target: TargetShape,
        num_layers: Depth,
        block_size: BlockSize,
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
        window: Count | None = None,
    ) -> None:
        ids = layer_ids if layer_ids is not None else default_layer_ids(num_taps or num_layers, target.num_layers)
        super().__init__(target, block_size, ids, draft_vocab_size, init, window)
        self.mask_token_id = target.mask_token_id if mask_token_id is None else mask_token_id
        own_sizes = {
            "num_attention_heads": num_attention_heads,
            "num_key_value_heads": num_key_value_heads,
            "head_dim": head_dim,
            "intermediate_size": intermediate_size,
            "rms_norm_eps": rms_norm_eps,
            "rope_theta": rope_theta,
        }
        self.sizes = layer_sizes(target, own_sizes)
        size, eps = self.sizes.hidden_size, self.sizes.rms_norm_eps
        self.fc = nn.Linear(len(ids) * size, size, bias=False)
        self.hidden_norm = RMSNorm(size, eps)
        self.layers = nn.ModuleList(Layer(self.sizes) for _ in range(num_layers))
        self.norm = RMSNorm(size, eps)
        self.apply(init_linear)

    @property
    def reads(self) -> dict[str, list[int]]:
        return {**super().reads, "mask_token_id": [self.mask_token_id]}

    @property
    def stack(self) -> list[Layer]:
        return cast(list[Layer], self.layers)

    def block_flops(self, blocks: float, length: float) -> float:
        width = self.num_draft_tokens + self.first_slot
        rows = blocks * width
        weights = sum(p.numel() for p in self.layers.parameters() if p.ndim == 2)
        queries = sum(attention.q_proj.out_features for attention in self.attentions)
        return 2.0 * weights * rows + 4.0 * queries * rows * (min(length, self.window or length) + width)

    def _context(self, features: Tensor) -> Tensor:
        return self.hidden_norm(self.fc(features.to(self.fc.weight.dtype)))

    def _texts(self, features: Tensor) -> list[KeysValues]:
        """Keys and values of whole texts in each layer, from features [B, T, F]."""
        context = self._context(features)
        positions = torch.arange(features.shape[1], device=features.device).expand(len(features), -1)
        return [self.run(layer.self_attn.keys_values, context, positions) for layer in self.stack]

    def _blocks(
        self,
        texts: list[KeysValues],
        anchors: Tensor,
        positions: Tensor,
        embed: Embed,
        attention: str,
        unseen: int = 0,
    ) -> Tensor:
        """Hidden states [B, N, K, D] of the draft slots after the anchor tokens [B, N] at these positions.

        Args:
            unseen: positions before the first that `texts` holds.
        """
        rows, blocks = anchors.shape
        width = self.num_draft_tokens + self.first_slot
        inputs = masked_blocks(anchors, width, self.mask_token_id)
        start = positions[..., None].expand_as(inputs).flatten(1) - unseen
        positions = block_positions(positions, width).flatten(1)
        block = torch.arange(blocks, device=start.device).repeat_interleave(width).expand(rows, -1)
        length = texts[0][0].shape[1]
        first = self.first_seen(positions - unseen)
        mask: Tensor | BlockMask
        if attention == "flex_attention":
            mask = flex_branch_mask(start, block, length, block, first)
        else:
            mask = branch_mask(start, block, length, causal=False, first=first)
        x = embed(inputs.flatten(1)).to(self.norm.weight.dtype).unflatten(1, inputs.shape[1:])
        for layer, text in zip(self.stack, texts, strict=True):
            x = self.run(layer, x, positions, text, mask)
        return self.norm(x[:, :, self.first_slot :])

    def forward(self, batch: ReplayBatch, embed: Embed) -> Tensor:
        assert batch.features is not None, "replay the batch first"
        rows, anchors = BlockRows(batch), batch.tokens.gather(1, batch.anchors)
        texts = [(rows.texts(keys), rows.texts(values)) for keys, values in self._texts(batch.features)]
        blocks = self._blocks(texts, rows.fold(anchors), rows.fold(batch.anchors), embed, self.attention)
        return rows.unfold(blocks)

    def extend(self, state: RaggedCache, features: Tensor, following: Tensor, embed: Embed) -> None:
        context = self._context(features)
        positions = state.begin(features.shape[1])
        for i, layer in enumerate(self.stack):
            state.append(i, *layer.self_attn.keys_values(context, positions))

    def _block(self, state: RaggedCache, anchors: Tensor, embed: Embed) -> Tensor:
        """Hidden states [B, K, D] of the draft slots after the anchor tokens [B]."""
        unseen, end = self.unseen(state, state.lengths), state.seen
        texts = [(keys[:, unseen:end], values[:, unseen:end]) for keys, values in state.stores.values()]
        return self._blocks(texts, anchors[:, None], state.lengths[:, None], embed, "sdpa", unseen)[:, 0]

    def draft(self, state: RaggedCache, anchors: Tensor, embed: Embed, head: Head, propose: Propose) -> Tensor:
        return head.tokens(propose(head(self._block(state, anchors, embed))))
