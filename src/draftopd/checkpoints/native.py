"""Our own checkpoints: drafter, optimizer, config and the fingerprint of the target; read back for runs and notebooks.

Where only weights are needed, a published folder (published.py) does as well.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from draftopd.checkpoints.allowed import allowed, refuse_remote_code
from draftopd.checkpoints.published import load_published
from draftopd.data.prompts import Prompt, Prompts
from draftopd.data.sources import encode_all
from draftopd.decoding.settings import Decoding
from draftopd.drafters.base import Drafter
from draftopd.errors import DraftError
from draftopd.target.model import Target


def find_checkpoint(name: str, logger: DictConfig | None) -> Path:
    """A checkpoint file or published folder by its path, or an MLflow run's checkpoint by its id; else DraftError."""
    path = Path(name).expanduser()
    if path.is_file() or path.is_dir():
        return path
    if logger and len(name) == 32 and "/" not in name:
        from draftopd.tracking.store import run_tags

        path = Path(run_tags(logger.tracking_uri, name).get("checkpoint", ""))
        if path.is_file():
            return path
        if path.name:
            raise DraftError(f"the checkpoint of MLflow run {name} is not at {path} any more: give the file itself")
    raise DraftError(
        f"'{name}' is neither a checkpoint file, a published folder, nor an MLflow run that has a checkpoint"
    )


def load_drafter(drafter: Drafter, path: Path, target: Target) -> None:
    """Loads a drafter's weights, of a checkpoint or a published folder, for the target they were trained for.

    Raises:
        DraftError: neither a checkpoint of ours nor a sound folder, another target, or another shape of drafter.
    """
    if path.is_dir():
        return load_published(drafter, path, target)
    state, trained_for, reads = _read(path, "state_dict", "target_fingerprint", "reads")
    if trained_for != target.fingerprint:
        raise DraftError(
            f"the drafter in {path} was trained for the target {trained_for} and this target is {target.fingerprint}: "
            "a drafter works with its own target only"
        )
    if reads != drafter.reads:
        raise DraftError(f"the drafter in {path} reads {reads}, the config's drafter {drafter.reads}")
    try:
        drafter.load_state_dict(_weights(state))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise DraftError(f"the drafter in {path} has another shape than the config's drafter: {reason}") from error


def _read(path: Path, *keys: str, optional: Sequence[str] = ()) -> list[Any]:
    """Parts of a checkpoint file, then optional ones, None for what is missing; DraftError where it is none of ours."""
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise DraftError(f"cannot read {path}: {error}") from error
    except Exception as error:  # of many kinds; torch's words for some of them tell to load what can run code
        reason = "it is damaged, or holds more than tensors and plain values, and nothing else is ever loaded"
        raise DraftError(f"{path} is not a checkpoint of draftopd: {reason}") from error
    parts = saved if isinstance(saved, dict) else {}
    missing = [key for key in keys if key not in parts]
    if missing:
        raise DraftError(f"{path} is not a checkpoint of draftopd: it holds no {missing[0]}")
    return [parts.get(key) for key in (*keys, *optional)]


def spent(path: Path) -> float | None:
    """Training FLOPs of the drafter in a checkpoint, those of what it started from included; None = not known."""
    if path.is_dir():
        return None
    ledger, config, before = _read(path, optional=("ledger", "config", "flops_before"))
    if before is None and isinstance(config, dict) and not config.get("init_from"):
        before = 0.0  # of an older version
    known = isinstance(ledger, dict) and isinstance(before, float)
    return float(sum(ledger["flops"].values())) + before if known else None


def recorded_config(path: Path) -> dict[str, Any]:
    """The configuration of a checkpoint file's run, to be read and shown only: it may name anything (allowed.py)."""
    (config,) = _read(path, "config")
    return {str(name): value for name, value in config.items()} if isinstance(config, dict) else {}


def optimizer_state(path: Path) -> dict[str, Any]:
    """The optimizer's state dict in a checkpoint; DraftError where it has none."""
    (states,) = [None] if path.is_dir() else _read(path, "optimizer_states")
    first = states[0] if isinstance(states, list) and states else None
    if not isinstance(first, dict) or not first.get("state"):
        raise DraftError(f"{path} has no optimizer: init_optimizer=true needs a checkpoint file of a run that trained")
    return first


@dataclass(frozen=True)
class Restored:
    target: Target
    drafter: Drafter
    prompts: Prompts
    decoding: Decoding
    config: DictConfig

    def asked(self, split: str, limit: int | None = None) -> list[tuple[Prompt, list[int]]]:
        """A split's prompts with their token ids, as training saw them."""
        batching, prompts = self.config.data.batching, self.prompts.split(split)
        lengths = (batching.enable_thinking, batching.max_prompt_length, "data.batching.max_prompt_length")
        return encode_all(prompts, self.target.tokenizer, *lengths)[:limit]

    def encoded(self, split: str, limit: int | None = None) -> list[list[int]]:
        """Token ids of a split's prompts."""
        return [ids for _, ids in self.asked(split, limit)]


def restore(checkpoint: str | Path, tracking_uri: str | None = None, target: Target | None = None) -> Restored:
    """Rebuilds what a checkpoint (a file, or an MLflow run id in `tracking_uri`) was trained with.

    Args:
        target: instead of loading it anew; it must be the one that the drafter was trained for.

    Raises:
        DraftError: there is no usable checkpoint, its config names what is not allowed (allowed.py), or its target runs
            code of a repository and was not given.
    """
    path = find_checkpoint(str(checkpoint), OmegaConf.create({"tracking_uri": tracking_uri}) if tracking_uri else None)
    target, drafter, config = restore_drafter(path, target)
    config.data.batching = asdict(_make(config, "data.batching", path))  # checked, and with what old ones lack
    prompts, decoding = (_make(config, place, path) for place in ("prompts", "data.decoding"))
    return Restored(target, drafter, prompts, decoding, config)


def restore_drafter(path: Path, target: Target | None = None) -> tuple[Target, Drafter, DictConfig]:
    """Target, drafter and config of a checkpoint file, without its prompts; raises as `restore`."""
    if path.is_dir():
        raise DraftError(f"{path} is a folder, and only a checkpoint file knows its target: name the file, or a target")
    saved, state = _read(path, "config", "state_dict")
    config = allowed(saved, path)
    if target is None:
        refuse_remote_code(config.target, path)
        target = _make(config, "target", path)
    assert target is not None
    with torch.device("meta"):  # a config may ask for any sizes: none are made that the file does not fill
        _require_shapes(_make(config, "drafter", path, target=target.shape), state, path)
    drafter: Drafter = target.adopt(_make(config, "drafter", path, target=target.shape))
    load_drafter(drafter, path, target)
    return target, drafter.eval(), config


def _make(config: DictConfig, place: str, path: Path, **late: Any) -> Any:
    """Makes a part of a checkpoint's config, with arguments that come late; DraftError where it cannot be made."""
    try:
        made = instantiate(OmegaConf.select(config, place))
        return made(**late) if late else made
    except (ArithmeticError, InstantiationException, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error.__cause__, DraftError):
            raise DraftError(str(error.__cause__)) from error
        reason = " ".join(str(error.__cause__ or error).split())[:200]
        raise DraftError(f"{path} is not loaded: its config has no usable {place}: {reason}") from error


def _weights(state: Any) -> dict[str, Any]:
    """Those of the drafter, by their names in it."""
    named = {str(name): value for name, value in state.items()} if isinstance(state, dict) else {}
    return {name.removeprefix("drafter."): value for name, value in named.items() if name.startswith("drafter.")}


def _require_shapes(drafter: Drafter, state: Any, path: Path) -> None:
    weights = _weights(state)
    wanted = {name: tuple(value.shape) for name, value in drafter.state_dict().items()}
    found = {name: tuple(value.shape) if isinstance(value, Tensor) else None for name, value in weights.items()}
    wrong = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    if wrong:
        raise DraftError(f"the drafter in {path} has another shape than the config's drafter: {', '.join(wrong[:3])}")
