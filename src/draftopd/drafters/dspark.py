"""DSpark (arXiv 2607.05147): DFlash's backbone, and a Markov head through which each draft reads the one before it.

The backbone fills a block in one pass, as DFlash does, but the row of the anchor predicts the first draft: slot k is
the row at position anchor + k - 1, and a block of K drafts has K rows. A table W1 embeds the token before a slot in r
numbers, a matrix W2 turns them into a bias of its logits:

    logits_k = head(h_k) + W2 W1[x_{k-1}],  x_0 the anchor, then the drafts

So the pass is parallel and only this small product is sequential. The head reads both as one row [h_k ‖ W1[x_{k-1}]]:
training forces the drafts x, drafting has just made them. A linear confidence head reads the same row and predicts
whether the target accepts the draft. Parameter names are those of the published checkpoints, whose embedding and head
are the target's.
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from draftopd.drafters.base import Embed, LendHead, Propose
from draftopd.drafters.dflash import DFlash
from draftopd.drafters.layers import init_linear
from draftopd.target.cache import RaggedCache
from draftopd.target.head import Head, TargetShape
from draftopd.trace import ReplayBatch
from draftopd.values.checked import checked
from draftopd.values.types import BlockSize, Count, Depth, Layers, Natural, Positive


class Markov(nn.Module):
    """The bias that a token gives to the logits of the next: a V x V' matrix of rank r."""

    def __init__(self, vocab_size: int, head_size: int, rank: int) -> None:
        super().__init__()
        self.markov_w1 = nn.Embedding(vocab_size, rank)
        self.markov_w2 = nn.Linear(rank, head_size, bias=False)
        nn.init.normal_(self.markov_w1.weight, std=0.02)
        init_linear(self.markov_w2)


class Confidence(nn.Module):
    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.proj = nn.Linear(inputs, 1)
        init_linear(self.proj)
        nn.init.zeros_(self.proj.bias)

    def forward(self, rows: Tensor) -> Tensor:
        """[..., D + r] -> logits [...]."""
        return self.proj(rows.to(self.proj.weight.dtype))[..., 0]


@dataclass(frozen=True, eq=False, kw_only=True)
class MarkovHead(Head):
    """The target's head, and a bias: rows [..., D + r] -> logits [..., V']."""

    markov: nn.Linear
    """W2"""

    @property
    def trained(self) -> tuple[Tensor, ...]:
        own = self.markov.weight
        return (*super().trained, own) if own.requires_grad else super().trained

    def base(self, hidden: Tensor) -> Tensor:
        """[..., D] -> logits without the bias."""
        return super().__call__(hidden)

    def bias_of(self, embedded: Tensor) -> Tensor:
        """[..., r] -> [..., V'] in float32 at least."""
        bias = self.markov(embedded)
        return bias.to(torch.promote_types(bias.dtype, torch.float32))

    def __call__(self, rows: Tensor) -> Tensor:
        size = self.weight.shape[1]
        return self.base(rows[..., :size]) + self.bias_of(rows[..., size:])


@checked
class DSpark(DFlash):
    """DFlash's arguments, and two of its own.

    Args:
        markov_rank: r.
        confidence: has the confidence head.
    """

    first_slot = 0

    def __init__(
        self,
        target: TargetShape,
        num_layers: Depth,
        block_size: BlockSize,
        markov_rank: Count,
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
        confidence: bool = True,
        window: Count | None = None,
    ) -> None:
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
        self.markov_rank = markov_rank
        self.markov_head = Markov(target.vocab_size, draft_vocab_size or target.vocab_size, markov_rank)
        if confidence:  # last, so that it changes no other weight of the same seed
            self.confidence_head = Confidence(self.hidden_size + markov_rank)

    def head_weights(self, target_vocab_size: int) -> int:
        return super().head_weights(target_vocab_size) + self.own_head_weights(target_vocab_size)

    def own_head_weights(self, target_vocab_size: int) -> int:
        return self.markov_rank * self.head_rows(target_vocab_size)

    def head(self, lend: LendHead) -> Head:
        lent = super().head(lend)
        return MarkovHead(**vars(lent), markov=self.markov_head.markov_w2)

    def forward(self, batch: ReplayBatch, embed: Embed) -> Tensor:
        hidden = super().forward(batch, embed)
        anchors = batch.tokens.gather(1, batch.anchors)[..., None]
        before = torch.cat([anchors, batch.drafts[..., :-1]], -1)
        return torch.cat([hidden, self.markov_head.markov_w1(before)], -1)

    def draft(self, state: RaggedCache, anchors: Tensor, embed: Embed, head: Head, propose: Propose) -> Tensor:
        assert isinstance(head, MarkovHead)
        hidden = self._block(state, anchors, embed)
        tokens = [anchors]
        for row, slot in zip(hidden.split(1, 1), head.base(hidden).split(1, 1), strict=True):
            before = self.markov_head.markov_w1(tokens[-1])[:, None]
            confidence = None if self.confidence_head is None else partial(self._confidence, row, before)
            tokens.append(head.tokens(propose(slot + head.bias_of(before), confidence))[:, 0])
            if propose.ended:
                break
        return torch.stack(tokens[1:], 1)

    def _confidence(self, hidden: Tensor, before: Tensor) -> Tensor:
        assert self.confidence_head is not None
        logits: Tensor = self.confidence_head(torch.cat([hidden, before], -1))
        return logits
