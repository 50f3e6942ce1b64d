"""The export command: `python -m draftopd.export run=... layout=zlab|safeai|speculators`."""

from draftopd.config import usage

if __name__ == "__main__":
    usage.answer("export")  # before the imports of a run, which take seconds

import re
from pathlib import Path

import hydra
from hydra.utils import instantiate
from omegaconf import DictConfig

from draftopd.checkpoints.native import find_checkpoint, restore_drafter
from draftopd.checkpoints.published import published, write
from draftopd.command import CONFIG_DIR, check_words, one_line_errors
from draftopd.console import quiet
from draftopd.drafters.base import Drafter
from draftopd.errors import DraftError
from draftopd.target.model import Target
from draftopd.tracking.store import clear, open_store


def export(config: DictConfig) -> Path:
    """Writes a trained drafter as a published folder, and as an artifact of its MLflow run where one was named.

    Raises:
        DraftError: nothing usable was named, or a check refuses what would be written.
    """
    source = find_checkpoint(config.run, config.logger)
    named = not Path(config.run).expanduser().exists()  # by an MLflow run id
    target, drafter, name = _drafter(source, config)
    folder = Path(config.to or f"exports/{config.layout}-{config.run[:8] if named else name}").expanduser()
    for finding in write(drafter, folder, config.layout, target, config.target_name):
        print(f"warning: {finding}")
    print(f"written: {folder}")
    if config.logger and named:
        with clear(config.logger.tracking_uri):
            client = open_store(config.logger.tracking_uri)
            client.log_artifacts(config.run, str(folder), f"export/{config.layout}")
        print(f"artifact: export/{config.layout} of MLflow run {config.run}")
    return folder


def _drafter(source: Path, config: DictConfig) -> tuple[Target, Drafter, str]:
    """And a name for it: the checkpoint's own, or the folder's."""
    if source.is_file():
        target, drafter, trained = restore_drafter(source, instantiate(config.target))
        return target, drafter, re.sub(r"[^\w.-]+", "-", trained.name)[:80]  # a stranger's name is no path
    if not config.target:
        raise DraftError(f"{source} is a folder: name its target too, as in target=hf target.path=<hub id or folder>")
    target = instantiate(config.target)
    return target, published(source, target), source.resolve().name


@hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name="export")
def _export(config: DictConfig) -> None:
    with one_line_errors():
        quiet()
        export(config)


def main() -> None:
    check_words("export")
    _export()


if __name__ == "__main__":
    main()
