"""Faster layers for a frozen float32 target on a CPU; what it computes stays as it is."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from draftopd.errors import DraftError
from draftopd.target.cpu.linear import accelerate, find_library

GROUPED = "draftopd_grouped_sdpa"
"""name under which transformers knows `grouped_sdpa`"""
NORMS = {f"{family}RMSNorm" for family in ("Llama", "Mistral", "Qwen2", "Qwen3", "Granite", "Phi3", "SmolLM3")}
"""classes of transformers that compute the same as `Norm` in more operations"""


def replace_layers(model: PreTrainedModel, wanted: bool | None) -> bool:
    """Puts faster layers over the same weights into a model, by default wherever they work; tells whether it did.

    Names in the state dict stay. Raises DraftError where they are wanted and do not work.
    """
    on_cpu = model.dtype == torch.float32 and model.device.type == "cpu"
    library = find_library() if on_cpu else "float32 weights on the CPU"
    if wanted and isinstance(library, str):
        raise DraftError(f"target.cpu_layers=true needs {library}: leave it null")
    if wanted is False or isinstance(library, str):
        return False
    for parameter in model.parameters():
        if parameter.device.type == "cpu" and parameter.dtype == torch.float32:
            parameter.data = parameter.data.clone()  # memory-mapped from a file, they are a few percent slower
    accelerate(model, frozen=True)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__name__ in NORMS and child.weight.dtype == torch.float32:
                setattr(parent, name, Norm(child))
    if model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(GROUPED)
    return True


class Norm(nn.Module):
    """RMS norm of rows [..., D] in four operations: x / hypot(|x|, sqrt(D eps)) * sqrt(D) w. Frozen: w must not change.

    A single row spends as long on calls as on arithmetic; `nn.RMSNorm` and transformers' norms make twice as many.
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
) -> tuple[Tensor, Tensor | None]:
    """transformers' `sdpa`, but on a CPU it does not copy the keys for each query head of their group.

    Shapes and options are those of transformers' attention functions. For a few query rows under a mask, as in a
    verification, the copies cost as much as the attention.
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
