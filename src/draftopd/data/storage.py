"""Tensors on disk: files that are written whole or not at all, and tensors beyond a memory budget in unnamed files."""

import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from draftopd.errors import DraftError

PART = ".part"  # ends the names of folders in which something is being written


@contextmanager
def replacing(path: Path, remedy: str = "make room, or write to another folder") -> Iterator[Path]:
    """Gives the name of a new file or folder; once written it takes the place of `path`, whole.

    Whatever goes wrong, and where the process is killed, what stood there before stays as it was. A killed process
    leaves its scratch folder beside `path`: `remove_unfinished`.

    Args:
        remedy: the last words of the message.

    Raises:
        DraftError: it cannot be written, or cannot take its place.
    """
    place = path.absolute()
    scratch = place.with_name(f".{place.name}.{secrets.token_hex(4)}{PART}")
    try:
        scratch.mkdir(parents=True)
        yield scratch / place.name
        for written in scratch.rglob("*"):
            if written.is_file():  # safetensors makes files that only their owner can read
                written.chmod(scratch.stat().st_mode & 0o666)
            _sync(written)
        os.replace(scratch / place.name, place)
        _sync(place.parent)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise DraftError(f"cannot write {path}: {_reason(error)} ({remedy})") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def remove_unfinished(folder: Path, name: str | None = None) -> None:
    """Removes what killed processes left in a folder, of all files or of this one; nobody may be writing there now."""
    for scratch in folder.glob(f".*{PART}/"):
        if name is None or scratch.name.rsplit(".", 2)[0] == f".{name}":
            shutil.rmtree(scratch, ignore_errors=True)


def save(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Writes a file and a digest of its bytes beside it; one process at a time. Raises DraftError where it cannot."""
    remedy = "set cache_dir to another disk"
    for file in (path, _beside(path)):
        remove_unfinished(path.parent, file.name)
    with replacing(path, remedy) as part:
        save_file(dict(tensors), part)
        with replacing(_beside(path), remedy) as digest:  # first: an existing file can always be checked
            digest.write_text(_digest(part) + "\n")


def check(path: Path) -> None:
    """Raises DraftError where a file does not match its digest."""
    try:
        whole = _beside(path).read_text().strip() == _digest(path)
    except OSError as error:
        raise DraftError(f"cannot read {path}: {error}; delete it, and it will be written again") from error
    if not whole:
        raise DraftError(f"{path} is damaged: delete it, and it will be written again")


def _sync(path: Path) -> None:
    """Waits until the disk has a file, or the names in a folder; a full disk may come to light only here."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    except OSError:
        if not path.is_dir():  # some network file systems cannot do it for folders
            raise
    finally:
        os.close(number)


def _reason(error: BaseException) -> str:
    """The system's own, where torch hides it in an error of its own."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__context__
    return (str(cause or error).splitlines() or [type(error).__name__])[0]


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
