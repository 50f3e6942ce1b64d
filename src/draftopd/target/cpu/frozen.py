"""What makes a frozen target faster on a CPU in float32, and leaves what it computes as it is."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from draftopd.target.cpu.linear import Linear, Packed

GROUPED = "draftopd_grouped_sdpa"
"""name of `grouped_sdpa` among transformers' kinds of attention"""
NORMS = (
    "LlamaRMSNorm",
    "MistralRMSNorm",
    "Qwen2RMSNorm",
    "Qwen3RMSNorm",
    "GraniteRMSNorm",
    "Phi3RMSNorm",
    "SmolLM3RMSNorm",
)
"""classes of transformers that compute what `Norm` computes, in more operations"""


def freeze(model: PreTrainedModel) -> str:
    """Turns off the gradients of a model's weights, and exchanges layers for faster ones over the same weights.

    Returns:
        The kind of attention that transformers was asked for.
    """
    model.requires_grad_(False)
    for parameter in model.parameters():
        if parameter.device.type == "cpu" and parameter.dtype == torch.float32:
            parameter.data = parameter.data.clone()  # mapped from a file, they are read a few percent slower
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                setattr(parent, name, _linear(child))
            elif type(child).__name__ in NORMS and child.weight.dtype == torch.float32:
                setattr(parent, name, Norm(child))
    attention = model.config._attn_implementation
    if attention == "sdpa":
        model.set_attn_implementation(GROUPED)
    return "sdpa" if attention == GROUPED else attention  # two targets may hold one model


class Norm(nn.Module):
    """RMS norm of rows [..., D] in four operations: x / hypot(|x|, sqrt(D eps)) * sqrt(D) w. Frozen: w must not change.

    A single row spends as long on calls as on arithmetic; `nn.RMSNorm` and transformers' own make twice as many.
    """

    scaled: Tensor
    floor: Tensor

    def __init__(self, norm: Any) -> None:
        super().__init__()
        weight, eps = norm.weight, norm.variance_epsilon
        self.weight = weight
        self.register_buffer("scaled", weight.detach() * weight.numel() ** 0.5, persistent=False)
        floor = torch.tensor((weight.numel() * eps) ** 0.5, dtype=weight.dtype, device=weight.device)
        self.register_buffer("floor", floor, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x / torch.hypot(torch.linalg.vector_norm(x, dim=-1, keepdim=True), self.floor) * self.scaled


def grouped_sdpa(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
):
    """transformers' `sdpa`, but on a CPU without copies of the keys for each query head of their group.

    Shapes and further options are those of transformers' attention functions; for a few query rows under a mask, what a
    verification has, the copies cost as much as the attention.
    """
    grouped = attention_mask is not None and query.shape[1] > key.shape[1] and query.device.type == "cpu"
    if not grouped or any(options.get(name) is not None for name in ("softcap", "position_bias", "cache")):
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    out = F.scaled_dot_product_attention(
        query, key, value, attn_mask=attention_mask, scale=options.get("scaling"), enable_gqa=True
    )
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(GROUPED, grouped_sdpa)
AttentionMaskInterface.register(GROUPED, sdpa_mask)


def _linear(layer: nn.Linear) -> Linear:
    with torch.device("meta"):
        new = Linear(layer.in_features, layer.out_features, layer.bias is not None, Packed())
    new.weight, new.bias = layer.weight, layer.bias
    return new.train(layer.training)
