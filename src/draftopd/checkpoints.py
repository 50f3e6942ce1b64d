"""Reading drafters back: a checkpoint holds drafter, optimizer, config and the fingerprint of its target."""

import pickle
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from draftopd.drafters.base import Drafter
from draftopd.errors import DraftError


def find_checkpoint(name: str, logger: DictConfig | None) -> Path:
    """A checkpoint file by its path, or that of an MLflow run by its id.

    Raises:
        DraftError: there is none.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path
    if logger and len(name) == 32 and "/" not in name:
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        try:
            path = Path(MlflowClient(logger.tracking_uri).get_run(name).data.tags.get("checkpoint", ""))
        except MlflowException as error:
            raise DraftError(f"{name}: no such MLflow run in {logger.tracking_uri}") from error
        if path.is_file():
            return path
    raise DraftError(f"{name} is neither a checkpoint file nor an MLflow run that still has one")


def load_drafter(drafter: Drafter, path: Path, fingerprint: str) -> None:
    """Loads a drafter's weights for the target they were trained for.

    Raises:
        DraftError: not a checkpoint of ours, another target, or another shape of drafter.
    """
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        state, trained_for, reads = (checkpoint[key] for key in ("state_dict", "target_fingerprint", "reads"))
    except (OSError, LookupError, TypeError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise DraftError(f"{path} is not a checkpoint of draftopd: {str(error).splitlines()[0]}") from error
    if trained_for != fingerprint:
        raise DraftError(
            f"the drafter in {path} was trained for the target {trained_for} and this target is {fingerprint}: "
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
