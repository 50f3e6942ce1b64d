"""A trained drafter with its target and prompts, rebuilt from its checkpoint: for notebooks and measurements."""

from dataclasses import dataclass
from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from draftopd.checkpoints import find_checkpoint, load_drafter
from draftopd.drafters.base import Drafter
from draftopd.errors import DraftError
from draftopd.prompts import Prompts, encode
from draftopd.rollout import Decoding
from draftopd.target import Target


@dataclass(frozen=True)
class Restored:
    target: Target
    drafter: Drafter
    prompts: Prompts
    decoding: Decoding
    config: DictConfig

    def encoded(self, split: str, limit: int | None = None) -> list[list[int]]:
        """Token ids of a split's prompts, as training saw them."""
        batching = self.config.data.batching
        pairs = [
            encode(p, self.target.tokenizer, batching.enable_thinking, batching.max_prompt_length)
            for p in self.prompts.split(split)
        ]
        return [ids for ids in pairs if ids is not None][:limit]


def restore(checkpoint: str | Path, tracking_uri: str | None = None, target: Target | None = None) -> Restored:
    """Rebuilds what a checkpoint (a file, or an MLflow run id in `tracking_uri`) was trained with.

    Args:
        target: the target, where it is at hand already; it must be the one that the drafter was trained for.

    Raises:
        DraftError: nothing usable is there.
    """
    path = find_checkpoint(str(checkpoint), OmegaConf.create({"tracking_uri": tracking_uri}) if tracking_uri else None)
    saved = torch.load(path, map_location="cpu", weights_only=True)
    if "config" not in saved:
        raise DraftError(f"{path} holds no config of draftopd")
    config = OmegaConf.create(saved["config"])
    if target is None:
        target = instantiate(config.target)
    drafter: Drafter = instantiate(config.drafter)(target=target.shape)
    load_drafter(drafter, path, target.fingerprint)
    return Restored(target, drafter.eval(), instantiate(config.prompts), instantiate(config.data.decoding), config)
