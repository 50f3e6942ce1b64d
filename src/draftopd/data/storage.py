"""Tensors on disk: files written whole or not at all, and tensors spilt to unnamed files beyond a memory budget."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from draftopd.errors import DraftError


def save(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Writes a file whole or not at all, with a digest of its bytes beside it.

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
    """Compares a file with its digest.

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


class Kept:
    """Gives back each tensor on the CPU, where it is to be kept.

    A file is written, mapped and unlinked at once: its space is taken as long as the tensor lives, and nothing is left.

    Args:
        memory_gib: of the tensors that stay in memory.
        folder: of the files.
    """

    def __init__(self, memory_gib: float, folder: Path) -> None:
        self.room, self.folder = int(memory_gib * 2**30), folder

    def __call__(self, tensor: Tensor) -> Tensor:
        """
        Raises:
            DraftError: the disk is full.
        """
        tensor = tensor.cpu()
        if tensor.nbytes <= self.room:
            self.room -= tensor.nbytes
            return tensor
        try:
            return self._mapped(tensor.contiguous())
        except OSError as error:
            raise DraftError(
                f"cannot keep rollouts in {self.folder}: {error} (set cache_dir elsewhere or raise data.keep_gib)"
            ) from error

    def _mapped(self, tensor: Tensor) -> Tensor:
        self.folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=self.folder) as scratch:
            path = Path(scratch) / "tensor"
            # written and not copied into the mapping, where a full disk would kill the process
            path.write_bytes(tensor.view(-1).view(torch.uint8).numpy().data)
            mapped = torch.from_file(str(path), shared=True, size=tensor.numel(), dtype=tensor.dtype)
        return mapped.view(tensor.shape)
