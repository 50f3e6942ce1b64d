"""What drafters are made of: rotary positions, grouped-query attention over explicit keys, a gated MLP."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, flex_attention

KeysValues = tuple[Tensor, Tensor]
"""keys and values, each [B, S, kv_heads, head_dim]"""


@cache
def _compiled_flex_attention() -> Callable[..., Any]:
    """On GPUs it is a kernel only when it is compiled. Made on first use: torch's compiler takes a second to import."""
    return torch.compile(flex_attention)


def join(*parts: KeysValues) -> KeysValues:
    """Keys and values of several sets of positions, one behind the other."""
    return torch.cat([keys for keys, _ in parts], 1), torch.cat([values for _, values in parts], 1)


class Rotary(nn.Module):
    """Rotary position embedding, half-split layout as in Llama and Qwen."""

    def __init__(self, head_dim: int, theta: float) -> None:
        super().__init__()
        self.head_dim, self.theta = head_dim, theta

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        """x [B, R, heads, head_dim] at positions [B, R]."""
        half = self.head_dim // 2
        steps = torch.arange(half, device=x.device, dtype=torch.float32) / half
        angle = positions[..., None, None].float() * self.theta**-steps
        cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
        a, b = x[..., :half], x[..., half:]
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


class Attention(nn.Module):
    """Grouped-query attention whose keys and values are made apart from its queries, so that they can be kept.

    Args:
        inputs, size: width of the rows that go in and of those that come out.
        eps: of the RMS norm on the queries and keys of each head, as in Qwen3; None = no such norm, as in Llama.
    """

    def __init__(
        self, inputs: int, size: int, heads: int, kv_heads: int, head_dim: int, theta: float, eps: float | None
    ) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.q_proj = nn.Linear(inputs, heads * head_dim, bias=False)
        self.k_proj = nn.Linear(inputs, kv_heads * head_dim, bias=False)
        self.v_proj = nn.Linear(inputs, kv_heads * head_dim, bias=False)
        self.o_proj = nn.Linear(heads * head_dim, size, bias=False)
        self.q_norm = nn.Identity() if eps is None else nn.RMSNorm(head_dim, eps)
        self.k_norm = nn.Identity() if eps is None else nn.RMSNorm(head_dim, eps)
        self.rotary = Rotary(head_dim, theta)

    def keys_values(self, x: Tensor, positions: Tensor) -> KeysValues:
        """Of rows x [B, R, inputs] at positions [B, R]."""
        keys = self.k_norm(self.k_proj(x).unflatten(-1, (-1, self.head_dim)))
        return self.rotary(keys, positions), self.v_proj(x).unflatten(-1, (-1, self.head_dim))

    def forward(self, x: Tensor, positions: Tensor, seen: KeysValues, mask: Tensor | BlockMask) -> Tensor:
        """[B, R, size]: rows x [B, R, inputs] look at seen [B, S, ...] where mask [B, 1, R, S] allows it."""
        query = self.q_norm(self.q_proj(x).unflatten(-1, (-1, self.head_dim)))
        query = self.rotary(query, positions).transpose(1, 2)
        keys, values = (states.transpose(1, 2) for states in seen)
        out = (
            self._flex(query, keys, values, mask)
            if isinstance(mask, BlockMask)
            else self._sdpa(query, keys, values, mask)
        )
        return self.o_proj(out.transpose(1, 2).flatten(2))

    @staticmethod
    def _flex(query: Tensor, keys: Tensor, values: Tensor, mask: BlockMask) -> Tensor:
        plain = query.device.type == "cpu" or torch.compiler.is_compiling()
        run: Any = flex_attention if plain else _compiled_flex_attention()
        query, keys = query.to(values.dtype), keys.to(values.dtype)  # autocast does not know it and leaves norms wide
        return run(query, keys, values, block_mask=mask, enable_gqa=True)

    @staticmethod
    def _sdpa(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        grouped = query.device.type == "cpu"
        if not grouped:  # on GPUs no fused kernel is sure to take a mask and grouped queries: else all scores are kept
            groups = query.shape[1] // keys.shape[1]
            keys, values = (states.repeat_interleave(groups, 1) for states in (keys, values))
        return F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, enable_gqa=grouped)


class MLP(nn.Module):
    def __init__(self, size: int, inner: int) -> None:
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
