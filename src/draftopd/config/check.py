"""A command's configuration, checked as a whole: every value, then what can be made of it, then its stages."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hydra import compose
from omegaconf import DictConfig, OmegaConf

from draftopd.checkpoints.run_folder import AUTO
from draftopd.config.nodes import check_values, require_sections
from draftopd.config.rehearsal import rehearse
from draftopd.config.stages import members
from draftopd.errors import DraftError

MISSING = "???"
GLOBAL = ("experiment", "scale")  # groups whose files set what the others hold


def check(command: str, config: DictConfig, words: Sequence[str] = ()) -> None:
    """Raises DraftError at the first mistake; loads no model and writes nothing.

    Args:
        config: composed, without hydra's own part.
        words: the overrides of the command, which stages take over. Hydra must be initialized where there are stages.
    """
    for group in GLOBAL:
        if group in config:
            raise DraftError(
                f"the settings of this {group} stand under {group}: begin its file with # @package _global_"
            )
    require_sections(command, config)
    values = OmegaConf.to_container(config, resolve=True)
    assert isinstance(values, dict)
    for name in _missing(values):
        raise DraftError(f"{name} must be given: add {name}=... to the command")
    check_values(command, {str(name): value for name, value in values.items()})
    rehearse(command, config)
    if command == "fit" and config.stages:
        _check_stages(config, words)


def _missing(values: Mapping[Any, Any], path: str = "") -> Iterator[str]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _missing(value, f"{path}{name}.")
        elif value == MISSING:
            yield f"{path}{name}"


def _check_stages(config: DictConfig, words: Sequence[str]) -> None:
    if config.init_from or config.resume not in (None, AUTO):
        raise DraftError(
            f"{config.name} has stages of its own: give init_from to the experiment of one stage, and resume=auto"
        )
    known = list(dict.fromkeys([*config.stages, *(member.name for member in members(config.stages, words))]))
    if unknown := sorted(set(config.only or ()) - set(known)):
        raise DraftError(f"only={unknown}: there are no such stages; those of {config.name} are {known}")
    earlier: list[str] = []
    for member in members(config.stages, words):
        composed = compose("fit", overrides=member.words)
        if composed.stages:
            raise DraftError(f"stages.{member.name}.experiment={member.experiment} has stages of its own")
        composed.init_from = None if member.start in earlier else member.start
        composed.from_scratch = composed.from_scratch or member.start in earlier
        composed.init_optimizer = composed.init_optimizer and composed.init_from is not None
        check("fit", composed)
        earlier.append(member.name)
