"""A published DFlash drafter without the peculiarities of any layout."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch

from draftopd.drafters.base import Drafter
from draftopd.drafters.dflash import DFlash, Layer
from draftopd.errors import DraftError
from draftopd.exchange.findings import Findings
from draftopd.head import TargetShape
from draftopd.target import Target


@dataclass(frozen=True)
class Sheet:
    """What a config.json says of a DFlash drafter."""

    hidden_size: int
    num_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    rms_norm_eps: float
    rope_theta: float
    block_size: int
    """anchor and drafts"""
    mask_token_id: int
    layer_ids: tuple[int, ...]
    """0-based outputs of the target's decoder layers, whatever the layout counts from"""
    target_layers: int | None
    """depth of the target, where the layout says it"""
    vocab_size: int
    draft_vocab_size: int | None
    """None = the target's whole vocabulary"""
    max_position_embeddings: int
    target_name: str | None
    target_architectures: tuple[str, ...]
    target_fingerprint: str | None

    @classmethod
    def of(cls, drafter: Drafter, target: Target, target_name: str | None = None) -> "Sheet":
        """
        Args:
            target_name: hub id of the target; by default what it was loaded from.

        Raises:
            DraftError: there is no published layout for this kind of drafter.
        """
        if not isinstance(drafter, DFlash):
            raise DraftError(f"no published layout for {type(drafter).__name__} drafters: only DFlash has one here")
        layer = cast(Layer, drafter.layers[0])
        attention, mlp = layer.self_attn, layer.mlp
        return cls(
            hidden_size=drafter.hidden_size,
            num_layers=len(drafter.layers),
            num_attention_heads=attention.q_proj.out_features // attention.head_dim,
            num_key_value_heads=attention.k_proj.out_features // attention.head_dim,
            head_dim=attention.head_dim,
            intermediate_size=mlp.gate_proj.out_features,
            rms_norm_eps=cast(float, drafter.norm.eps),
            rope_theta=float(attention.rotary.theta),
            block_size=drafter.block_size,
            mask_token_id=drafter.mask_token_id,
            layer_ids=drafter.layer_ids,
            target_layers=target.shape.num_layers,
            vocab_size=target.vocab_size,
            draft_vocab_size=None if drafter.d2t is None else len(drafter.d2t),
            max_position_embeddings=getattr(target.config, "max_position_embeddings", None) or 32768,
            target_name=target_name or target.model.config.name_or_path or None,
            target_architectures=tuple(target.model.config.architectures or [type(target.model).__name__]),
            target_fingerprint=target.fingerprint,
        )

    def options(self) -> dict[str, Any]:
        """Arguments of DFlash, beside its target's shapes."""
        return {
            "num_layers": self.num_layers,
            "block_size": self.block_size,
            "layer_ids": list(self.layer_ids),
            "draft_vocab_size": self.draft_vocab_size,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "head_dim": self.head_dim,
            "intermediate_size": self.intermediate_size,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_theta": self.rope_theta,
            "mask_token_id": self.mask_token_id,
        }

    def build(self, device: str = "cpu") -> DFlash:
        """A new drafter of these sizes."""
        shape = TargetShape(
            hidden_size=self.hidden_size,
            num_layers=self.target_layers or max(self.layer_ids) + 1,
            num_attention_heads=self.num_attention_heads,
            num_key_value_heads=self.num_key_value_heads,
            head_dim=self.head_dim,
            intermediate_size=self.intermediate_size,
            rms_norm_eps=self.rms_norm_eps,
            rope_theta=self.rope_theta,
            vocab_size=self.vocab_size,
            mask_token_id=self.mask_token_id,
        )
        with torch.device(device):
            return DFlash(shape, **self.options())


@dataclass(frozen=True)
class Layout:
    """One way to lay a DFlash drafter out on disk."""

    name: str
    recognises: Callable[[dict[str, Any]], bool]
    parse: Callable[[dict[str, Any], Findings], Sheet | None]
    """config.json -> sheet; None where an error leaves none"""
    compose: Callable[[Sheet, str], dict[str, Any]]
    """(sheet, dtype) -> config.json"""
    reduced: tuple[str, ...]
    """tensors that a reduced draft vocabulary brings along"""
