"""Tensors on disk: files that are written whole or not at all, and tensors beyond a memory budget in unnamed files."""

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
    """Writes a file whole or not at all, with a digest of its bytes beside it; raises DraftError where it cannot."""
    unfinished = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        save_file(dict(tensors), unfinished)
        _beside(path).write_text(_digest(unfinished) + "\n")  # first: an existing file can always be checked
        os.replace(unfinished, path)
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk by an error of its own
        raise DraftError(f"cannot write {path}: {error} (set cache_dir to another disk)") from error
    finally:
        unfinished.unlink(missing_ok=True)


def check(path: Path) -> None:
    """Raises DraftError where a file does not match its digest."""
    try:
        whole = _beside(path).read_text().strip() == _digest(path)
    except OSError as error:
        raise DraftError(f"cannot read {path}: {error}; delete it, and it will be written again") from error
    if not whole:
        raise DraftError(f"{path} is damaged: delete it, and it will be written again")


def _beside(path: Path) -> Path:
    return path.with_suffix(".sha256")


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class SpillStore:
    """Moves tensors to the CPU: into memory while there is room, then into memory-mapped files.

    A file is written, mapped and unlinked at once: it takes its space as long as the tensor lives, and leaves nothing.

    Args:
        memory_gib: room for tensors in memory.
        folder: of the files.
    """

    def __init__(self, memory_gib: float, folder: Path) -> None:
        self.room, self.folder = int(memory_gib * 2**30), folder

    def __call__(self, tensor: Tensor) -> Tensor:
        """Raises DraftError where the disk is full."""
        tensor = tensor.cpu()
        if tensor.nbytes <= self.room:
            self.room -= tensor.nbytes
            return tensor
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with TemporaryDirectory(dir=self.folder) as scratch:
                path = Path(scratch) / "tensor"
                # written, not copied into the mapping: there a full disk would kill the process
                path.write_bytes(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
                mapped = torch.from_file(str(path), shared=True, size=tensor.numel(), dtype=tensor.dtype)
        except OSError as error:
            remedy = "set cache_dir elsewhere or raise data.keep_gib"
            raise DraftError(f"cannot store rollouts in {self.folder}: {error} ({remedy})") from error
        return mapped.view(tensor.shape)
