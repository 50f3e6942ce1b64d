"""A published drafter, independent of its layout."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch

from draftopd.checkpoints.findings import Findings
from draftopd.drafters.base import Drafter
from draftopd.drafters.dflash import DFlash
from draftopd.drafters.dflash2 import DFlash2
from draftopd.drafters.dspark import DSpark
from draftopd.drafters.eagle3 import Eagle3
from draftopd.errors import DraftError
from draftopd.target.head import LayerSizes, TargetShape
from draftopd.target.model import Target

Kind = type[DFlash] | type[Eagle3]


@dataclass(frozen=True)
class DrafterSpec:
    """What a config.json says of a drafter."""

    kind: Kind
    shape: TargetShape
    """sizes of the drafter's own layers, as if the target had the same; its `num_layers` is the target's depth, or
    the least that the layer ids need where the layout does not say it"""
    num_layers: int
    """layers of the drafter"""
    block_size: int
    """anchor and drafts"""
    layer_ids: tuple[int, ...]
    """0-based outputs of the target's decoder layers, whatever the layout counts from"""
    target_layers: int | None
    """depth of the target, where the layout says it"""
    draft_vocab_size: int | None
    """None = the target's whole vocabulary"""
    max_position_embeddings: int
    target_name: str | None
    target_architectures: tuple[str, ...]
    target_fingerprint: str | None
    markov_rank: int = 0
    """of DSpark"""
    confidence: bool = False
    """it has a confidence head"""
    selector_rank: int = 0
    conv_kernel_size: int = 0
    conv_group_size: int = 0
    """of DFlash2, all three"""
    logits: tuple[float, float | None] = (1.0, None)
    """factor and soft cap of the target's logits: drafts do not depend on them, unless a bias is added"""
    window: int | None = None
    """`Drafter.window`"""

    @classmethod
    def of(cls, drafter: Drafter, target: Target, target_name: str | None = None) -> "DrafterSpec":
        """`target_name` is the target's hub id; by default what it was loaded from.

        Raises DraftError where no published layout takes this kind of drafter.
        """
        if not isinstance(drafter, DFlash | Eagle3):
            raise DraftError(
                f"no published layout for {type(drafter).__name__} drafters: only DFlash, DSpark, DFlash2 and Eagle3 "
                "have one"
            )
        own = {**asdict(drafter.sizes), "mask_token_id": drafter.mask_token_id if isinstance(drafter, DFlash) else 0}
        shape, head = replace(target.shape, **own), target.head()
        sizes = ("selector_rank", "conv_kernel_size", "conv_group_size") if isinstance(drafter, DFlash2) else ()
        return cls(
            kind=type(drafter),
            shape=shape,
            num_layers=len(drafter.layers) if isinstance(drafter, DFlash) else 1,
            block_size=drafter.block_size,
            layer_ids=drafter.layer_ids,
            target_layers=shape.num_layers,
            draft_vocab_size=None if drafter.d2t is None else len(drafter.d2t),
            max_position_embeddings=getattr(target.config, "max_position_embeddings", None) or 32768,
            target_name=target_name or target.model.config.name_or_path or None,
            target_architectures=tuple(target.model.config.architectures or [type(target.model).__name__]),
            target_fingerprint=target.fingerprint,
            markov_rank=drafter.markov_rank if isinstance(drafter, DSpark) else 0,
            confidence=drafter.confidence_head is not None,
            **{name: getattr(drafter, name) for name in sizes},
            logits=(head.scale, head.softcap),
            window=drafter.window,
        )

    def options(self) -> dict[str, Any]:
        """Arguments of the drafter's constructor, besides its target's shape."""
        options: dict[str, Any] = {
            "block_size": self.block_size,
            "layer_ids": list(self.layer_ids),
            "draft_vocab_size": self.draft_vocab_size,
            "window": self.window,
            **{f.name: getattr(self.shape, f.name) for f in fields(LayerSizes) if f.name != "hidden_size"},
        }
        if self.kind is not Eagle3:
            options |= {"num_layers": self.num_layers, "mask_token_id": self.shape.mask_token_id}
        if self.kind is DSpark:
            options |= {"markov_rank": self.markov_rank, "confidence": self.confidence}
        if self.kind is DFlash2:
            options |= {"selector_rank": self.selector_rank}
            options |= {"conv_kernel_size": self.conv_kernel_size, "conv_group_size": self.conv_group_size}
        return options

    def build(self, device: str = "cpu") -> DFlash | Eagle3:
        """A new drafter of these sizes."""
        with torch.device(device):
            return self.kind(self.shape, **self.options())


@dataclass(frozen=True)
class Layout:
    """The format of one kind of drafter on disk."""

    name: str
    kind: Kind
    recognises: Callable[[dict[str, Any]], bool]
    parse: Callable[[dict[str, Any], Findings, int | None], DrafterSpec | None]
    """(config.json, findings, depth of the target where it is known) -> spec; None where an error leaves none"""
    compose: Callable[[DrafterSpec, str], dict[str, Any]]
    """(spec, dtype) -> config.json"""
    reduced: tuple[str, ...]
    """tensors that a reduced draft vocabulary adds"""
    prefix: tuple[str, str] = ("", "")
    """beginnings of tensor names here and in the layout, where they differ"""
    carried: tuple[str, ...] = ()
    """tensors of the target that the file carries a copy of"""
    windows: bool = False
    """config.json can say `Drafter.window`, in its meaning, to every engine that reads the layout"""

    def tensor(self, name: str) -> str:
        """The layout's name of a drafter's tensor."""
        ours, theirs = self.prefix
        return theirs + name.removeprefix(ours) if ours and name.startswith(ours) else name
