"""How Lightning writes our checkpoints, and which of them it removes."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from draftopd.data.storage import replacing


class WholeCheckpoints(TorchCheckpointIO):
    """Checkpoints are written whole or not at all: `trainer.plugins`.

    Lightning's own way fills a file in the temporary folder and moves it. Between two file systems that is a copy into
    the place of the good file; and where the good file cannot be replaced, it stays and nobody is told.
    """

    def __init__(self) -> None:
        super().__init__()
        self.written: set[str] = set()

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Raises DraftError where the file cannot be written or replaced; what stood there stays."""
        self.written.add(str(path))
        if "://" in str(path):  # a bucket for example, where a new file appears at once
            return super().save_checkpoint(checkpoint, path, storage_options)
        with replacing(Path(path)) as part, part.open("wb") as file:
            torch.save(checkpoint, file)

    def load_checkpoint(self, path: str | Path, map_location: Any = None, weights_only: bool | None = None) -> Any:
        return super().load_checkpoint(path, map_location, weights_only=True)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Only one that this process wrote: other names come from the file that a run was resumed from."""
        if str(path) in self.written:
            super().remove_checkpoint(path)
