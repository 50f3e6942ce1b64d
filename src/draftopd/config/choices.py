"""Hydra's complaints about the words of a command, in one line: what there is to choose from, and what is near."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from hydra.errors import ConfigCompositionException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from draftopd.config.places import CONFIG_DIR
from draftopd.errors import DraftError
from draftopd.values.words import nearest

NOT_ALONE = "common"  # a file that others of a group share


def options(group: str, folders: Sequence[Path]) -> list[str]:
    """All choices of a group, those of its folders too.

    Args:
        folders: of the configuration files.
    """
    files = [(top / group, file) for top in folders for file in sorted((top / group).rglob("*.yaml"))]
    return [str(file.relative_to(place).with_suffix("")) for place, file in files if file.stem != NOT_ALONE]


def groups(folders: Sequence[Path]) -> list[str]:
    return sorted({part.name for folder in folders for part in folder.iterdir() if part.is_dir()})


def own_folder(path: str) -> Path:
    """A user's own folder of configuration files.

    Raises:
        DraftError: there is none, or a file of ours would be read instead of one of these.
    """
    folder = Path(path).expanduser().absolute()
    if not folder.is_dir():
        raise DraftError(f"--config-dir {path}: there is no such folder")
    for file in sorted(folder.rglob("*.yaml")):
        if (CONFIG_DIR / file.relative_to(folder)).exists():
            raise DraftError(f"{file} has the name of a file of draftopd, which Hydra reads instead: rename it")
    return folder


def explain(error: Exception, folders: Sequence[Path]) -> str:
    """A mistake in the words of a command, with every choice there is."""
    if isinstance(error, RecursionError):
        return "a value is nested too deep"
    if isinstance(error, OverrideParseException):
        return f"{error.override} cannot be read: {one_line(error)}; quote values with special characters"
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return _no_choice(error.missing_cfg_file, folders) or one_line(error)
    if isinstance(error, ConfigCompositionException):
        cause = error.__cause__
        if isinstance(cause, AttributeError | ConfigKeyError) and isinstance(cause, OmegaConfBaseException):
            return _no_key(cause) or one_line(error)
        known = re.match(r"Could not (?:override|delete from config\.?) '([^']+)'", str(error))
        if known:
            return f"there is no {known[1]}{_from(known[1], groups(folders))}"
        if cause is not None:
            return f"{one_line(error)}: {str(cause).splitlines()[0]}"
    return one_line(error)


def _no_choice(missing: str, folders: Sequence[Path]) -> str | None:
    """group/choice, of which the group may have folders of its own."""
    group, _, choice = missing.partition("/")
    known = options(group, folders)
    return f"there is no {group}={choice}{_from(choice, known)}" if known else None


def _no_key(cause: OmegaConfBaseException) -> str | None:
    parent, key = cause.parent_node, str(cause.key)
    if not isinstance(parent, DictConfig) or not len(parent):
        return None
    names = [str(name) for name in parent if not str(name).startswith("_") and name != "hydra"]
    return f"there is no setting {cause.full_key}{_from(key, names)}"


def _from(name: str, known: Iterable[str]) -> str:
    known = list(known)
    return f"{nearest(name, known)} (choose from {', '.join(known)})"


def one_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:6])
