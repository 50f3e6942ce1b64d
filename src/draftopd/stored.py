"""Files of tensors, written whole or not at all, with a digest of their bytes beside them that tells damage."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from draftopd.errors import DraftError


def save(tensors: Mapping[str, Tensor], path: Path) -> None:
    """
    Raises:
        DraftError: the disk does not take them.
    """
    unfinished = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        save_file(dict(tensors), unfinished)
        _beside(path).write_text(_digest(unfinished) + "\n")  # first: a file that is there can always be checked
        os.replace(unfinished, path)
    except (OSError, SafetensorError) as error:  # which is no OSError, whatever the disk says
        raise DraftError(f"cannot write {path}: {error} (set cache_dir to another disk)") from error
    finally:
        unfinished.unlink(missing_ok=True)


def check(path: Path) -> None:
    """
    Raises:
        DraftError: the file is not what was written.
    """
    try:
        whole = _beside(path).read_text().strip() == _digest(path)
    except OSError as error:
        raise DraftError(f"cannot read {path}: {error}; delete it, and it is written again") from error
    if not whole:
        raise DraftError(f"{path} is damaged: delete it, and it is written again")


def _beside(path: Path) -> Path:
    return path.with_suffix(".sha256")


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
