"""Reading drafters back: a checkpoint holds drafter, optimizer, config and the fingerprint of its target.

A published folder (exchange/) may stand in its place where weights alone are wanted.
"""

import pickle
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from draftopd.drafters.base import Drafter
from draftopd.errors import DraftError
from draftopd.exchange.published import load_published
from draftopd.target import Target


def find_checkpoint(name: str, logger: DictConfig | None) -> Path:
    """A checkpoint file or published folder by its path, or the checkpoint of an MLflow run by its id.

    Raises:
        DraftError: there is none.
    """
    path = Path(name).expanduser()
    if path.is_file() or path.is_dir():
        return path
    if logger and len(name) == 32 and "/" not in name:
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        try:
            path = Path(MlflowClient(logger.tracking_uri).get_run(name).data.tags.get("checkpoint", ""))
        except MlflowException as error:
            raise DraftError(
                f"no MLflow run {name} in {logger.tracking_uri}: give its id or a checkpoint file"
            ) from error
        if path.is_file():
            return path
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
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        state, trained_for, reads = (checkpoint[key] for key in ("state_dict", "target_fingerprint", "reads"))
    except (OSError, LookupError, TypeError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise DraftError(f"{path} is not a checkpoint of draftopd: {str(error).splitlines()[0]}") from error
    if trained_for != target.fingerprint:
        raise DraftError(
            f"the drafter in {path} was trained for the target {trained_for} and this target is {target.fingerprint}: "
            "a drafter works with its own target only"
        )
    if reads != drafter.reads:
        raise DraftError(f"the drafter in {path} reads {reads}, the config's drafter {drafter.reads}")
    weights = {name.removeprefix("drafter."): value for name, value in state.items() if name.startswith("drafter.")}
    try:
        drafter.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise DraftError(f"the drafter in {path} has another shape than the config's drafter: {reason}") from error
