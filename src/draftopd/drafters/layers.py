"""What drafters are made of: rotary positions, grouped-query attention over explicit keys, a gated MLP."""

from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from draftopd.errors import DraftError
from draftopd.target.head import LayerSizes

KeysValues = tuple[Tensor, Tensor]
"""keys and values, each [B, S, kv_heads, head_dim]"""


def layer_sizes(target: LayerSizes, given: Mapping[str, float | None]) -> LayerSizes:
    """The target's sizes, except those that are given; DraftError where the heads do not fit together."""
    own: dict[str, Any] = {field.name: getattr(target, field.name) for field in fields(LayerSizes)}
    sizes = LayerSizes(**own | {name: value for name, value in given.items() if value is not None})
    heads, groups, width = sizes.num_attention_heads, sizes.num_key_value_heads, sizes.head_dim
    if heads % groups or width % 2:
        raise DraftError(f"a drafter cannot have {heads} heads of head_dim {width} and {groups} key-value heads")
    return sizes


@cache
def _compiled_flex_attention() -> Callable[..., Any]:
    """A fused kernel on GPUs only when compiled; on first use, because torch's compiler takes a second to import."""
    return torch.compile(flex_attention)


def join(*parts: KeysValues) -> KeysValues:
    """Keys and values of several sets of positions, one after the other."""
    return torch.cat([keys for keys, _ in parts], 1), torch.cat([values for _, values in parts], 1)


def rotate(x: Tensor, positions: Tensor, theta: float) -> Tensor:
    """Rotary position embedding of x [B, R, heads, head_dim] at positions [B, R]; half-split as in Llama and Qwen."""
    half = x.shape[-1] // 2
    steps = torch.arange(half, device=x.device, dtype=torch.float32) / half
    angle = positions[..., None, None].float() * theta**-steps
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


class RMSNorm(nn.RMSNorm):
    """Rows of another dtype than the weights', as in mixed precision, are normalised in the weights'; so torch does on
    a CPU, with a warning."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.weight.dtype)).to(x.dtype)


class Attention(nn.Module):
    """Grouped-query attention; keys and values are computed separately from queries, so that they can be cached.

    Args:
        inputs: width of the rows that go in; those that come out have `sizes.hidden_size`.
        norm_heads: an RMS norm on the queries and keys of each head, as in Qwen3; Llama has none.
    """

    def __init__(self, inputs: int, sizes: LayerSizes, *, norm_heads: bool) -> None:
        super().__init__()
        heads, kv_heads, head_dim = sizes.num_attention_heads, sizes.num_key_value_heads, sizes.head_dim
        size, self.head_dim, self.rope_theta = sizes.hidden_size, head_dim, sizes.rope_theta

        self.q_proj = nn.Linear(inputs, heads * head_dim, bias=False)
        self.k_proj = nn.Linear(inputs, kv_heads * head_dim, bias=False)
        self.v_proj = nn.Linear(inputs, kv_heads * head_dim, bias=False)
        self.o_proj = nn.Linear(heads * head_dim, size, bias=False)

        self.q_norm = RMSNorm(head_dim, sizes.rms_norm_eps) if norm_heads else nn.Identity()
        self.k_norm = RMSNorm(head_dim, sizes.rms_norm_eps) if norm_heads else nn.Identity()

    def keys_values(self, x: Tensor, positions: Tensor) -> KeysValues:
        """Of rows x [B, R, inputs] at positions [B, R]."""
        keys = self.k_norm(self.k_proj(x).unflatten(-1, (-1, self.head_dim)))
        return rotate(keys, positions, self.rope_theta), self.v_proj(x).unflatten(-1, (-1, self.head_dim))

    def forward(self, x: Tensor, positions: Tensor, seen: KeysValues, mask: Tensor | BlockMask) -> Tensor:
        """[B, R, size]: rows x [B, R, inputs] look at seen [B, S, ...] where mask [B, 1, R, S] allows it."""
        query = self.q_norm(self.q_proj(x).unflatten(-1, (-1, self.head_dim)))
        query = rotate(query, positions, self.rope_theta).transpose(1, 2)
        keys, values = (states.transpose(1, 2) for states in seen)
        attend: Callable[..., Tensor] = self._flex if isinstance(mask, BlockMask) else self._sdpa
        out = attend(query, keys, values, mask)
        return self.o_proj(out.transpose(1, 2).flatten(2))

    @staticmethod
    def _flex(query: Tensor, keys: Tensor, values: Tensor, mask: BlockMask) -> Tensor:
        plain = query.device.type == "cpu" or torch.compiler.is_compiling()
        run: Any = flex_attention if plain else _compiled_flex_attention()
        query, keys = query.to(values.dtype), keys.to(values.dtype)  # the kernel takes one dtype
        # for fewer than 128 rows torch would take its kernel for decoding, which has no configuration for some of them
        options = {"FORCE_USE_FLEX_ATTENTION": True}
        return run(query, keys, values, block_mask=mask, enable_gqa=True, kernel_options=options)

    @staticmethod
    def _sdpa(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        grouped = query.device.type == "cpu"
        if not grouped:  # a fused GPU kernel may refuse a mask with grouped queries; then all scores would be stored
            groups = query.shape[1] // keys.shape[1]
            keys, values = (states.repeat_interleave(groups, 1) for states in (keys, values))
        return F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, enable_gqa=grouped)


class MLP(nn.Module):
    def __init__(self, sizes: LayerSizes) -> None:
        size, inner = sizes.hidden_size, sizes.intermediate_size
        super().__init__()
        self.gate_proj = nn.Linear(size, inner, bias=False)
        self.up_proj = nn.Linear(size, inner, bias=False)
        self.down_proj = nn.Linear(inner, size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


def init_linear(module: nn.Module) -> None:
    """Small normal weights, for `nn.Module.apply`."""
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
