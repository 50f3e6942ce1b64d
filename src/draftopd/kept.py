"""Tensors that are kept until they are trained on: in memory up to a budget, behind it in files mapped into memory."""

from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from draftopd.errors import DraftError


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
