"""What a target lends to a drafter: its shapes and its output head."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class TargetShape:
    """What a drafter must know of its target to be built."""

    hidden_size: int
    num_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    rms_norm_eps: float
    rope_theta: float
    vocab_size: int
    mask_token_id: int


class Head:
    """The target's output head as lent to a drafter: [..., D] -> [..., V'] over all tokens or some of them.

    Restricting softmax(p) to a draft vocabulary divides it by the mass p(V') of that vocabulary, which does not depend
    on the drafter: the gradient of KL(q‖p) is unchanged, that of KL(p‖q) only loses the factor p(V').
    """

    def __init__(
        self, linear: nn.Linear, scale: float = 1.0, softcap: float | None = None, vocabulary: Tensor | None = None
    ) -> None:
        weight, bias = linear.weight.detach(), linear.bias
        self.weight = weight if vocabulary is None else weight[vocabulary]
        self.bias = None if bias is None else bias.detach() if vocabulary is None else bias.detach()[vocabulary]
        self.scale, self.softcap = scale, softcap
        self.vocabulary = vocabulary

    def __call__(self, hidden: Tensor) -> Tensor:
        logits = F.linear(hidden.to(self.weight.dtype), self.weight, self.bias).float()
        logits = logits if self.scale == 1.0 else logits * self.scale
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    def tokens(self, index: Tensor) -> Tensor:
        """Token ids of rows of the head."""
        return index if self.vocabulary is None else self.vocabulary[index]
