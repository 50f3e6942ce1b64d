"""The export command: `python -m draftopd.export run=... [layout=zlab|deepspec|safeai|...] [push_to_hub=me/mine]`."""

from draftopd.config import usage

if __name__ == "__main__":
    usage.answer("export")  # before the imports of a run, which take seconds

import re
from functools import partial
from pathlib import Path

import hydra
from huggingface_hub import HfApi
from hydra.utils import instantiate
from omegaconf import DictConfig

from draftopd.checkpoints.native import find_checkpoint, recorded_config, restore_drafter
from draftopd.checkpoints.published import default_layout, published, write
from draftopd.checkpoints.spec import DrafterSpec
from draftopd.command import CONFIG_DIR, check_words, one_line_errors
from draftopd.console import quiet
from draftopd.drafters.base import Drafter
from draftopd.errors import DraftError
from draftopd.publishing import hub
from draftopd.publishing.base import Base
from draftopd.publishing.card import Facts, model_card
from draftopd.publishing.engines import draft_vocabulary
from draftopd.publishing.record import find_record
from draftopd.target.model import Target
from draftopd.tracking.store import clear, open_store


def export(config: DictConfig) -> Path:
    """Writes a trained drafter as a published folder with its model card.

    It also becomes an artifact of its MLflow run, where one was named, and goes to the hub where that was asked for.

    Raises:
        DraftError: nothing usable was named, a check refuses what would be written, or the hub refuses it.
    """
    if config.push_to_hub:
        hub.require_login(HfApi())
    source = find_checkpoint(config.run, config.logger)
    run_id = None if Path(config.run).expanduser().exists() else config.run
    target, drafter, trained = _drafter(source, config)
    layout = config.layout or default_layout(drafter)
    folder = Path(config.to or f"exports/{layout}-{_name(source, run_id, trained)}").expanduser()
    base = Base.of(target, config.target_name)
    if config.push_to_hub and base.hub_id is None:
        raise DraftError(f"the target is the folder {base.place}: name its hub id for others, target_name=<hub id>")
    facts = Facts(
        base,
        layout,
        config.push_to_hub or str(folder),
        config.license or base.licence,
        recorded_config(source) if source.is_file() else None,
        find_record(config.run, source, config.results, target.fingerprint),
        run_id,
    )
    for finding in write(drafter, folder, layout, target, base.hub_id, partial(model_card, facts)):
        print(f"warning: {finding}")
    for engine, what in draft_vocabulary(DrafterSpec.of(drafter, target), layout).items():
        print(f"draft vocabulary: {engine}: {what}")
    print(f"written: {folder}")
    _publish(config, folder, layout, run_id)
    return folder


def _publish(config: DictConfig, folder: Path, layout: str, run_id: str | None) -> None:
    if config.logger and run_id:
        with clear(config.logger.tracking_uri):
            client = open_store(config.logger.tracking_uri)
            client.log_artifacts(run_id, str(folder), f"export/{layout}")
        print(f"artifact: export/{layout} of MLflow run {run_id}")
    if config.push_to_hub:
        print(f"pushed: {hub.push(HfApi(), folder, config.push_to_hub, private=config.private)}")


def _drafter(source: Path, config: DictConfig) -> tuple[Target, Drafter, DictConfig | None]:
    """And the configuration that it was trained with; a published folder has none."""
    if source.is_file():
        return restore_drafter(source, instantiate(config.target))
    if not config.target:
        raise DraftError(f"{source} is a folder: name its target too, as in target=hf target.path=<hub id or folder>")
    target = instantiate(config.target)
    return target, published(source, target), None


def _name(source: Path, run_id: str | None, trained: DictConfig | None) -> str:
    if run_id:
        return run_id[:8]
    return source.resolve().name if trained is None else re.sub(r"[^\w.-]+", "-", trained.name)[:80]  # it is no path


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
