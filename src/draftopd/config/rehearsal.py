"""What can be made of a configuration without its target is made, for the checks of those that are made.

They know what no type tells: how settings go together, what this machine has, which files there are.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from tempfile import TemporaryDirectory
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, ListConfig
from torch import nn

from draftopd.checkpoints.native import find_checkpoint
from draftopd.checkpoints.run_folder import AUTO
from draftopd.console import quiet
from draftopd.data.prompts import Prompts
from draftopd.data.sources import JsonlPrompts
from draftopd.errors import DraftError
from draftopd.evaluation.results import load as load_results
from draftopd.evaluation.run import device
from draftopd.publishing.hub import check_repo
from draftopd.target import load
from draftopd.training.callbacks import Observed
from draftopd.training.other_loggers import require_installed
from draftopd.training.run import make_data, make_trainer, require_start
from draftopd.values.words import nearest

RUN_ID = 32  # letters of an MLflow run id: only the store knows whether there is such a run, and it is not opened here
STARTS = ("init_from", "resume", "checkpoint", "against", "run")


def rehearse(command: str, config: DictConfig) -> None:
    """Raises DraftError where a part cannot be made, or a file that is named is missing. Writes nothing."""
    quiet()
    for name in STARTS if command != "compare" else ():  # which takes names of runs
        value = config.get(name)
        for given in value if isinstance(value, ListConfig) else [value]:
            if given and len(given) != RUN_ID and (name, given) != ("resume", AUTO):
                _made(name, partial(find_checkpoint, given, None))
    _target(config.get("target"))
    if command == "fit":
        require_installed(list(config.get("loggers") or ()))
    if command == "fit" and not config.stages:
        _fit(config)
    if command == "export":
        _export(config)
    if command in ("evaluate", "chat"):
        device(config.device)
    if command == "evaluate":
        _require_files(_made("prompts", partial(instantiate, config.prompts)))


def _export(config: DictConfig) -> None:
    if config.results:
        load_results(Path(config.results).expanduser())
    if config.push_to_hub:
        check_repo(config.push_to_hub)


def require_writable(folder: Path, setting: str) -> None:
    """Raises DraftError where nothing can be written into a folder, or it cannot be made; leaves nothing there."""
    existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    try:
        with TemporaryDirectory(dir=existing):
            pass
    except OSError as error:
        raise DraftError(f"{setting}={folder} cannot be written: {error.strerror}: choose another folder") from error


def _target(config: DictConfig | None) -> None:
    """As far as nothing is loaded; a random one is made."""
    if config and resolve_name(config._target_) is load.tiny:
        _made("target", partial(instantiate, config))
    elif config and resolve_name(config._target_) is load.hf:
        load.model_source(config.path)


def _fit(config: DictConfig) -> None:
    require_start(config)
    require_writable(Path(config.texts.folder).expanduser(), "texts.folder")
    _made("traces", partial(instantiate, config.traces))
    for name in ("objective", "random_objective"):
        objective = _made(name, partial(instantiate, config.get(name)))
        if objective is not None:
            objective.factors  # noqa: B018  (raises)
    _made("budget", partial(instantiate, config.module.budget))
    _require_files(_made("data", partial(make_data, config)).prompts)
    _require_backend("module.torch_compile", config.module.torch_compile)
    _require_backend("data.decoding.compile", config.data.decoding.compile)
    optimizer = _made("module.optimizer", partial(instantiate, config.module.optimizer))
    _made("module.optimizer", partial(optimizer, [nn.Parameter(torch.zeros(1, 1))]))
    made = _made("callbacks", partial(instantiate, config.callbacks, _convert_="all")).values()
    callbacks = [part(Observed()) if isinstance(part, partial) else part for part in made]
    _made("trainer", partial(make_trainer, config, callbacks))


def _require_files(prompts: Prompts | None) -> None:
    if isinstance(prompts, JsonlPrompts):
        prompts.files()


def _made(name: str, make: Callable[[], Any]) -> Any:
    """What is made; whatever stops that is a mistake in this part of the configuration."""
    try:
        return make()
    except DraftError:
        raise
    except InstantiationException as error:
        cause = error.__cause__ or error
        raise cause if isinstance(cause, DraftError) else DraftError(f"{name} cannot be made: {cause}") from error
    except (MisconfigurationException, ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise DraftError(f"{name} cannot be made: {error}") from error


def _require_backend(name: str, compile_with: bool | str) -> None:
    if isinstance(compile_with, str):
        known = torch.compiler.list_backends(exclude_tags=())
        if compile_with not in known:
            raise DraftError(
                f"{name}={compile_with} is no backend of torch.compile{nearest(compile_with, known)} "
                f"(choose from {', '.join(known)}, or true)"
            )
