"""The folder of a run: its own, and for one run at a time."""

import os
from collections.abc import Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf

from draftopd.checkpoints.native import find_checkpoint
from draftopd.data.storage import remove_unfinished
from draftopd.errors import DraftError

AUTO = "auto"
"""`resume=auto`: go on in the newest folder of this run"""
LOCK = ".run.lock"
NAME = "hydra.run.dir=..., hydra.sweep.dir=... with -m"


def unused(name: str) -> str:
    """A new folder: `name`, or `name-2` and so on where others, of the same second, are there already.

    Raises:
        DraftError: it cannot be made.
    """
    for number in count(1):
        folder = name if number == 1 else f"{name}-{number}"
        try:
            Path(folder).mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise _unwritable(folder, error) from error
        return folder
    raise AssertionError


def lock_file(folder: str | Path) -> Path:
    return Path(os.path.abspath(folder)) / LOCK


def claim(folder: Path, config: DictConfig, earlier: DictConfig | None = None) -> FileLock:
    """Takes a folder for a run, as long as the lock lives; a process may do it twice.

    What killed runs left unfinished there, and beside the checkpoint that this run resumes, is removed.

    Args:
        config: of the run.
        earlier: config of the last run in the folder, if that is known.

    Raises:
        DraftError: another process is at work there, it holds another run's checkpoints, or it cannot be written.
    """
    lock = _lock(folder)
    _refuse_others_checkpoints(folder, config, earlier)
    for place in (folder, folder / "checkpoints", *folder.glob("*/"), *folder.glob("*/checkpoints/")):
        remove_unfinished(place)
    resumed = Path(config.get("resume") or "").expanduser()
    if resumed.is_file():
        _tidy(resumed)
    return lock


def _lock(folder: Path) -> FileLock:
    lock = FileLock(lock_file(folder), timeout=0, is_singleton=True)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise DraftError(f"another run is at work in {folder}: name another folder, {NAME}") from error
    except (OSError, NotImplementedError) as error:  # the latter where the file system has no locks
        raise _unwritable(folder, error) from error
    return lock


def _unwritable(folder: str | Path, error: Exception) -> DraftError:
    return DraftError(f"cannot write {folder}: {error} (name another folder, {NAME})")


def _refuse_others_checkpoints(folder: Path, config: DictConfig, earlier: DictConfig | None) -> None:
    found = next(_checkpoints(folder), None)
    if found is None:
        return
    resume, again = config.get("resume"), earlier is not None and same(earlier, config)
    if resume and resume != AUTO and find_checkpoint(resume, config.logger).resolve().is_relative_to(folder.resolve()):
        return
    if earlier is not None and config.get("stages") and earlier.get("stages"):
        return  # each stage is held against its own recipe
    if again and (resume == AUTO or of_cluster(folder)):
        return
    way = "the same command" if config.get("stages") else "resume=auto" if again else f"resume={found}"
    raise DraftError(
        f"{folder} has another run's checkpoints, {found}: name another folder, {NAME}; or go on with {way}"
    )


def _checkpoints(folder: Path) -> Iterator[Path]:
    """Of a run, or of its stages; the last one before the best."""
    for pattern in ("checkpoints/*.ckpt", "*/checkpoints/*.ckpt"):
        yield from (path for path in sorted(folder.glob(pattern), reverse=True) if path.is_file())


def same(one: DictConfig, other: DictConfig) -> bool:
    """Two configs are of one run: they differ at most in its place, its log, its parts, and how it goes on."""
    contents: list[Any] = [OmegaConf.to_container(config) for config in (one, other)]
    free = ("resume", "output_dir", "logger", "loggers", "only", "texts_only", "from_scratch")
    known, asked = ({key: value for key, value in content.items() if key not in free} for content in contents)
    return bool(known == asked)


def newest(root: Path, config: DictConfig) -> Path | None:
    """Of the folders `root/*/*` of this config's runs that have checkpoints, the one in which a run began last."""
    saved = sorted(root.glob("*/*/.hydra/config.yaml"), key=lambda path: path.stat().st_mtime, reverse=True)
    folders = (path.parents[1] for path in saved if f"name: {config.get('name')}\n" in path.read_text())
    found = (folder for folder in folders if any(_checkpoints(folder)))
    return next((folder for folder in found if (old := last_config(folder)) is not None and same(old, config)), None)


def of_cluster(folder: Path) -> list[Path]:
    """Checkpoints that Lightning saved in a run's folder when SLURM took the machine away and queued the job again."""
    return list(folder.glob("hpc_ckpt_*.ckpt"))


def forget_cluster(folder: Path) -> None:
    """Removes what a job that was queued again has gone on from."""
    for path in of_cluster(folder):
        path.unlink()


def to_resume(folder: Path) -> Path | None:
    """The checkpoint from which the run in this folder goes on: the last, or a later one of a cluster."""
    found = [path for path in (folder / "checkpoints" / "last.ckpt", *of_cluster(folder)) if path.exists()]
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def _tidy(checkpoint: Path) -> None:
    """Removes what a killed run left beside its checkpoint, where no run is at work."""
    folder = next((parent for parent in checkpoint.absolute().parents[1:3] if (parent / LOCK).exists()), None)
    if folder is not None:
        with suppress(Timeout, OSError), FileLock(lock_file(folder), timeout=0):
            remove_unfinished(checkpoint.parent)


def last_config(folder: Path) -> DictConfig | None:
    """Of the last run in a folder, as Hydra saved it."""
    path = folder / ".hydra" / "config.yaml"
    loaded = OmegaConf.load(path) if path.is_file() else None
    return loaded if isinstance(loaded, DictConfig) else None
