"""DSpark (arXiv 2607.05147): DFlash's backbone, and a Markov head through which each draft reads the one before it.

The backbone fills a block in one pass, as DFlash does, but the row of the anchor predicts the first draft: slot k is
the row at position anchor + k - 1, and a block of K drafts has K rows. A slot's code is the token before it, embedded
by a table W1 (`markov`):

    logits_k = head(h_k) + W2 W1[x_{k-1}],  x_0 the anchor, then the drafts

A linear confidence head reads the same row [h_k ‖ W1[x_{k-1}]] and predicts whether the target accepts the draft.
Parameter names are those of the published checkpoints, whose embedding and head are the target's.
"""

from typing import Literal

from torch import Tensor, nn

from draftopd.drafters.layers import init_linear
from draftopd.drafters.markov import MarkovDrafter
from draftopd.target.head import TargetShape
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


@checked
class DSpark(MarkovDrafter):
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

    @property
    def markov(self) -> Tensor:
        return self.markov_head.markov_w2.weight

    def codes(self, hidden: Tensor, before: Tensor) -> Tensor:
        embedded: Tensor = self.markov_head.markov_w1(before)
        return embedded
