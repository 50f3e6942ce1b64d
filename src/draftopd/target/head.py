"""What a target lends to a drafter: its shapes and its output head. A drafter's own head is a `Head` too."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedConfig

from draftopd.errors import DraftError


@dataclass(frozen=True)
class LayerSizes:
    """Sizes of decoder layers, named as in the configs of transformers."""

    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float


@dataclass(frozen=True)
class TargetShape(LayerSizes):
    """What a drafter must know of its target to be built."""

    num_layers: int
    vocab_size: int
    mask_token_id: int

    @classmethod
    def of(cls, config: PreTrainedConfig, vocab_size: int, mask_token_id: int) -> "TargetShape":
        """From the config of a language model, not all of which name every size.

        Raises:
            DraftError: a size is missing, or differs from layer to layer.
        """
        size, heads = _size(config, "hidden_size"), _size(config, "num_attention_heads")
        if size is None or heads is None:
            raise DraftError(f"the config of a {config.model_type} target names no hidden_size or num_attention_heads")
        rope = config.rope_parameters or {}
        kinds = [value for value in rope.values() if isinstance(value, dict)]  # of layers, as Gemma 3 has them
        rope = rope.get("full_attention") or (kinds or [rope])[0]
        return cls(
            hidden_size=size,
            num_layers=config.num_hidden_layers,
            num_attention_heads=heads,
            num_key_value_heads=_size(config, "num_key_value_heads") or heads,
            head_dim=_size(config, "head_dim") or size // heads,
            intermediate_size=_size(config, "intermediate_size") or 4 * size,
            rms_norm_eps=getattr(config, "rms_norm_eps", 1e-6),
            rope_theta=rope.get("rope_theta", 10000.0),
            vocab_size=vocab_size,
            mask_token_id=mask_token_id,
        )


def _size(config: PreTrainedConfig, name: str) -> int | None:
    """A size that all layers share; None where the config does not name it."""
    try:
        value = getattr(config, name, None)
    except RuntimeError:  # how transformers answers where layers have sizes of their own
        value = "different"
    if value is not None and not isinstance(value, int):
        raise DraftError(
            f"{config.model_type} is not supported as a target: its layers have unlike sizes ({name} {value}), and a "
            "drafter takes the sizes that all of them share"
        )
    return value


@dataclass(frozen=True, eq=False)
class Head:
    """An output head: [..., D] -> [..., V'] over all tokens or those of a draft vocabulary.

    Restricting softmax(p) to a draft vocabulary divides it by the mass p(V') of that vocabulary, which does not depend
    on the drafter: the gradient of KL(q‖p) is unchanged, that of KL(p‖q) only loses the factor p(V').

    Args:
        weight: [V', D], and bias [V'].
        scale, softcap: factor and soft cap that some families apply to their logits.
        vocabulary: [V'] target ids of the rows; None = row and id are the same.
        product: (rows [..., D], weight, bias) -> [..., V'].
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None
    vocabulary: Tensor | None = None
    product: Callable[[Tensor, Tensor, Tensor | None], Tensor] = F.linear

    @property
    def trained(self) -> tuple[Tensor, ...]:
        """Weights and bias as far as they are trained."""
        return tuple(w for w in (self.weight, self.bias) if w is not None and w.requires_grad)

    def __call__(self, hidden: Tensor) -> Tensor:
        """[..., D] -> logits [..., V'], in float32 at least."""
        logits = self.product(hidden.to(self.weight.dtype), self.weight, self.bias)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        logits = logits if self.scale == 1.0 else logits * self.scale
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    def tokens(self, index: Tensor) -> Tensor:
        """Token ids of the head's rows."""
        return index if self.vocabulary is None else self.vocabulary[index]
