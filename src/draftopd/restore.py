"""A trained drafter with its target and prompts, rebuilt from its checkpoint: for notebooks and measurements."""

import pickle
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
    target, drafter, config = restore_drafter(path, target)
    return Restored(target, drafter, instantiate(config.prompts), instantiate(config.data.decoding), config)


def restore_drafter(path: Path, target: Target | None = None) -> tuple[Target, Drafter, DictConfig]:
    """Target, drafter and config of a checkpoint file, without its prompts.

    Raises:
        DraftError: it is not a checkpoint of ours.
    """
    if path.is_dir():
        raise DraftError(f"{path} is a folder, and only a checkpoint file knows its target: name the file, or a target")
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        config = OmegaConf.create(saved["config"])
    except (LookupError, TypeError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise DraftError(f"{path} is not a checkpoint of draftopd: it holds no config of one") from error
    if target is None:
        target = instantiate(config.target)
    assert target is not None
    drafter: Drafter = instantiate(config.drafter)(target=target.shape)
    load_drafter(drafter, path, target)
    return target, drafter.eval(), config
