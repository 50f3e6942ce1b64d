"""EAGLE-3 (arXiv 2503.01840): one layer that drafts token after token, from the target's features, then from itself.

Its rows are pairs: at position p the fused feature of p beside the embedding of token p + 1, and the row predicts
token p + 2. A block at anchor a opens with the pair of position a - 1, the last whose feature is known; its next slots
pair their own last output with the draft just made, at positions a, a + 1, ... A slot sees the text's pairs before its
block and the slots before it. EAGLE, vLLM and SGLang use the same positions. Training forces the tokens and feeds the
outputs back (training-time test), so `forward` and `draft` are one loop. The embedding is lent by the target, the head
is its own. Parameter names are those of the published checkpoints, whose `t2d` follows from `d2t`.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask

from draftopd.blocks import BlockRows, branch_mask, flex_branch_mask
from draftopd.drafters.base import Drafter, Embed, LendHead, Propose
from draftopd.drafters.layers import MLP, Attention, KeysValues, RMSNorm, init_linear, join, layer_sizes
from draftopd.errors import DraftError
from draftopd.target.cache import RaggedCache
from draftopd.target.cpu.linear import Linear, linear
from draftopd.target.head import Head, LayerSizes, TargetShape
from draftopd.trace import ReplayBatch
from draftopd.values.checked import checked
from draftopd.values.types import BlockSize, Count, Layers, Positive

Texts = tuple[Tensor, KeysValues]
"""fused features [B, T, D] by position, and their pairs"""
Choose = Callable[[int, Tensor], Tensor]
"""slot k from 0, its hidden states [B, N, D] -> the tokens [B, N] that slot k + 1 reads"""


def default_layer_ids(target_layers: int) -> list[int]:
    """A low, a middle and a high layer: 1, L / 2 - 1 and L - 4 (0-based layer outputs); none where L is too small."""
    ids = [1, target_layers // 2 - 1, target_layers - 4]
    return ids if ids[0] < ids[1] < ids[2] else []


class Layer(nn.Module):
    def __init__(self, sizes: LayerSizes) -> None:
        super().__init__()
        size, eps = sizes.hidden_size, sizes.rms_norm_eps
        self.self_attn, self.mlp = Attention(2 * size, sizes, norm_heads=False), MLP(sizes)
        self.input_layernorm = RMSNorm(size, eps)
        self.hidden_norm = RMSNorm(size, eps)
        self.post_attention_layernorm = RMSNorm(size, eps)

    def pair(self, embedded: Tensor, hidden: Tensor) -> Tensor:
        """What attention reads: [..., 2 D]."""
        return torch.cat([self.input_layernorm(embedded.to(hidden.dtype)), self.hidden_norm(hidden)], -1)

    def forward(
        self, embedded: Tensor, hidden: Tensor, positions: Tensor, seen: list[KeysValues], mask: Tensor | BlockMask
    ) -> tuple[Tensor, KeysValues]:
        """Hidden states of one slot of all blocks, and its keys and values, to be appended to `seen`."""
        pair = self.pair(embedded, hidden)
        own = self.self_attn.keys_values(pair, positions)
        hidden = hidden + self.self_attn(pair, positions, join(*seen, own), mask)
        return hidden + self.mlp(self.post_attention_layernorm(hidden)), own


@checked
class Eagle3(Drafter):
    """The autoregressive drafter.

    Args:
        target: shapes of the target; sizes that are not given are the target's.
        block_size: W, anchor and drafts; at least 2. W - 1 is the number of training-time-test steps.
        layer_ids: features to read; default three layers.
        draft_vocab_size: size of a reduced vocabulary; None = the target's whole vocabulary.
        init: "target" = `copy_target` before training.
        num_layers: it has one; a setting that all drafters take.
        window: see `Drafter`; at least the block size, so that a block sees itself.
    """

    def __init__(
        self,
        target: TargetShape,
        block_size: BlockSize,
        layer_ids: Layers | None = None,
        draft_vocab_size: Count | None = None,
        num_attention_heads: Count | None = None,
        num_key_value_heads: Count | None = None,
        head_dim: Count | None = None,
        intermediate_size: Count | None = None,
        rms_norm_eps: Positive | None = None,
        rope_theta: Positive | None = None,
        init: Literal["random", "target"] = "random",
        num_layers: Literal[1] = 1,
        window: Count | None = None,
    ) -> None:
        depth = target.num_layers
        ids = default_layer_ids(depth) if layer_ids is None else layer_ids
        if layer_ids is None and not ids:
            raise DraftError(f"EAGLE-3 has no default layers for a target of {depth}: set drafter.layer_ids")
        super().__init__(target, block_size, ids, draft_vocab_size, init, window)
        own_sizes = {
            "num_attention_heads": num_attention_heads,
            "num_key_value_heads": num_key_value_heads,
            "head_dim": head_dim,
            "intermediate_size": intermediate_size,
            "rms_norm_eps": rms_norm_eps,
            "rope_theta": rope_theta,
        }
        self.sizes = layer_sizes(target, own_sizes)
        size = self.sizes.hidden_size
        self.fc = nn.Linear(len(ids) * size, size, bias=False)
        self.midlayer = Layer(self.sizes)
        self.norm = RMSNorm(size, self.sizes.rms_norm_eps)
        self.lm_head = nn.Linear(size, draft_vocab_size or target.vocab_size, bias=False)
        self.apply(init_linear)
        nn.init.zeros_(self.lm_head.weight)  # until `initialise`

    @property
    def stack(self) -> list[Layer]:
        return [self.midlayer]

    def initialise(self, lend: LendHead) -> None:
        """The head of a new drafter starts as the target's rows of the draft vocabulary."""
        if not self.lm_head.weight.any():
            head = lend(self.vocabulary)
            with torch.no_grad():
                self.lm_head.weight.copy_(head.weight * head.scale)

    def head(self, lend: LendHead) -> Head:
        product = linear if isinstance(self.lm_head, Linear) else F.linear
        return Head(self.lm_head.weight, vocabulary=self.vocabulary, product=product)

    def own_head_weights(self, target_vocab_size: int) -> int:
        return self.head_weights(target_vocab_size)

    @property
    def state_width(self) -> int:
        return super().state_width + self.hidden_size

    def block_flops(self, blocks: float, length: float) -> float:
        rows = blocks * self.num_draft_tokens
        weights = sum(p.numel() for p in self.midlayer.parameters() if p.ndim == 2)
        queries = self.midlayer.self_attn.q_proj.out_features
        seen = min(length, self.window or length) - 1 + self.block_size / 2
        return 2.0 * weights * rows + 4.0 * queries * rows * seen

    def _fuse(self, features: Tensor) -> Tensor:
        return self.fc(features.to(self.fc.weight.dtype))

    def _pairs(self, fused: Tensor, following: Tensor, positions: Tensor, embed: Embed) -> KeysValues:
        """Keys and values of pairs at positions [B, R]: fused features [B, R, D] and the tokens after them [B, R]."""
        return self.midlayer.self_attn.keys_values(self.midlayer.pair(embed(following), fused), positions)

    def _masks(self, start: Tensor, length: int, attention: str) -> Sequence[Tensor | BlockMask]:
        """What rows of each slot see: the text before `start` [B, N], and their block's slots up to their own."""
        slots, width = self.num_draft_tokens, start.shape[1]
        first = [self.first_seen(start + k) for k in range(slots)]
        block = torch.arange(width, device=start.device).expand_as(start)
        if attention == "flex_attention":
            return [flex_branch_mask(start, block, length, block.repeat(1, k + 1), first[k]) for k in range(slots)]
        # rows of all slots, slot after slot
        near = None if self.window is None else torch.cat([f for f in first if f is not None], 1)
        mask = branch_mask(start.repeat(1, slots), block.repeat(1, slots), length, causal=True, first=near)
        return [mask[:, :, k * width : (k + 1) * width, : length + (k + 1) * width] for k in range(slots)]

    def _unroll(
        self,
        texts: Texts,
        anchors: Tensor,
        positions: Tensor,
        *,
        embed: Embed,
        choose: Choose,
        attention: str,
        ended: Callable[[], bool] = lambda: False,
        unseen: int = 0,
    ) -> tuple[Tensor, Tensor]:
        """Fills blocks slot by slot, all blocks of a text side by side.

        Args:
            anchors, positions: [B, N] the anchor tokens and their positions.
            ended: asked after each slot whether it was the last.
            unseen: positions before the first that `texts` holds.

        Returns:
            hidden states [B, N, K, D] for the head, and the chosen tokens [B, N, K].
        """
        fused, text = texts
        masks = self._masks(positions - 1 - unseen, text[0].shape[1], attention)
        first = (positions - 1 - unseen).clamp(min=0)[..., None]  # padding blocks have their anchor at 0
        hidden = fused.gather(1, first.expand(-1, -1, fused.shape[-1]))
        tokens, seen, outputs, chosen = anchors, [text], [], []
        for k, mask in enumerate(masks):
            hidden, own = self.run(self.midlayer, embed(tokens), hidden, positions - 1 + k, [*seen], mask)
            seen.append(own)
            outputs.append(self.norm(hidden))
            tokens = choose(k, outputs[-1])
            chosen.append(tokens)
            if ended():
                break
        return torch.stack(outputs, 2), torch.stack(chosen, 2)

    def _texts(self, tokens: Tensor, features: Tensor, embed: Embed) -> Texts:
        """Of whole texts: tokens [B, T], features [B, T, F]."""
        fused = self._fuse(features)
        positions = torch.arange(fused.shape[1], device=fused.device).expand(len(fused), -1)
        # no token follows the last one: its pair is wrong, and no block sees it
        return fused, self._pairs(fused, tokens.roll(-1, 1), positions, embed)

    def forward(self, batch: ReplayBatch, embed: Embed) -> Tensor:
        assert batch.features is not None, "replay the batch first"
        rows, anchors = BlockRows(batch), batch.tokens.gather(1, batch.anchors)
        fused, (keys, values) = self._texts(batch.tokens, batch.features, embed)
        texts = rows.texts(fused), (rows.texts(keys), rows.texts(values))
        at, positions, drafts = (rows.fold(ids) for ids in (anchors, batch.anchors, batch.drafts))
        forced = lambda k, _: drafts[..., k]  # noqa: E731
        blocks, _ = self._unroll(texts, at, positions, embed=embed, choose=forced, attention=self.attention)
        return rows.unfold(blocks)

    def extend(self, state: RaggedCache, features: Tensor, following: Tensor, embed: Embed) -> None:
        fused = self._fuse(features)
        positions = state.begin(features.shape[1])
        state.append(0, *self._pairs(fused, following, positions, embed), fused)

    def draft(self, state: RaggedCache, anchors: Tensor, embed: Embed, head: Head, propose: Propose) -> Tensor:
        # the first slot's row stands one position before the anchor, and its feature is read whatever the window
        unseen, end = self.unseen(state, state.lengths - 1), state.seen
        keys, values, fused = (store[:, unseen:end] for store in state.stores[0])

        def choose(_: int, hidden: Tensor) -> Tensor:
            return head.tokens(propose(head(hidden)))

        texts, at, positions = (fused, (keys, values)), anchors[:, None], state.lengths[:, None]
        return self._unroll(
            texts,
            at,
            positions,
            embed=embed,
            choose=choose,
            attention="sdpa",
            ended=lambda: propose.ended,
            unseen=unseen,
        )[1][:, 0]
