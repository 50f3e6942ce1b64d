"""The training command: `python -m draftopd.fit experiment=...`.

A run is one stage, or several of which each may start from another's weights; a table at the end compares them.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import hydra
from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from draftopd.checkpoints.native import find_checkpoint
from draftopd.command import CONFIG_DIR, check_words, one_line_errors
from draftopd.console import quiet
from draftopd.errors import DraftError
from draftopd.evaluation.report import show
from draftopd.evaluation.results import Results
from draftopd.tracking.header import git_commit, write_header
from draftopd.tracking.run import Run, Status
from draftopd.tracking.store import check_store
from draftopd.training.run import run_stage


@hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name="fit")
def _fit(config: DictConfig) -> None:
    """Runs the stages of a config, or the config itself as the only one, then reports."""
    with one_line_errors():
        quiet()
        git_commit()  # of the code that runs, whatever is edited later
        if config.stages and (config.init_from or config.resume):
            raise DraftError(
                f"{config.name} has stages of its own: give init_from and resume to the experiment of one stage"
            )
        folder = Path(HydraConfig.get().runtime.output_dir)
        parent = _tracked(config, folder)
        status: Status = "FAILED"
        done: list[Results] = []
        try:
            for stage in _stages(config, folder, parent):
                start = next((r for results in done for r in results.results if r.name == stage.init_from), None)
                if start is not None:
                    stage.init_from = start.checkpoint
                done.append(run_stage(stage, start.name if start else None, parent))
            for path in _report(done, folder):
                if parent is not None:
                    parent.log_artifact(path)
            status = "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        finally:
            if parent is not None:
                parent.end(status)


def _tracked(config: DictConfig, folder: Path) -> Run | None:
    """The MLflow run above those of the stages; a single stage makes its own, when all else is ready."""
    if not config.logger or rank_zero_only.rank:  # type: ignore[attr-defined]
        return None
    if not config.stages:
        check_store(config.logger.tracking_uri, config.logger.experiment_name)  # before the target is loaded
        return None
    config.output_dir = str(folder)
    parent: Run = instantiate(config.logger, _convert_="all").start()
    write_header(parent, OmegaConf.to_container(config, resolve=True), {})  # type: ignore[arg-type]
    return parent


def _stages(config: DictConfig, folder: Path, parent: Run | None) -> list[DictConfig]:
    """One config per stage: its own experiment, then what the user gave on the command line."""
    if not config.stages:
        config.output_dir = str(folder)
        return [config]
    given = [word for word in HydraConfig.get().overrides.task if not word.startswith("experiment=")]
    configs: list[DictConfig] = []
    for name, stage in config.stages.items():
        if stage.init_from and stage.init_from not in [earlier.name for earlier in configs]:
            find_checkpoint(stage.init_from, config.logger)  # tells now what would fail after the stages before it
        composed = compose("fit", overrides=[f"experiment={stage.experiment}", *given])
        composed.name, composed.output_dir, composed.init_from = name, str(folder / name), stage.init_from
        composed.init_optimizer = composed.init_optimizer and stage.init_from is not None
        if composed.logger and parent is not None:
            composed.logger.tags = {**(composed.logger.tags or {}), "mlflow.parentRunId": parent.id}
        configs.append(composed)
    return configs


def _report(stages: Sequence[Results], folder: Path) -> list[Path]:
    """Shows the stages side by side; returns the files written, none in other processes than the first."""
    if rank_zero_only.rank:  # type: ignore[attr-defined]
        return []
    return show(replace(stages[0], results=[r for stage in stages for r in stage.results]), folder)


def main() -> None:
    check_words("fit")
    _fit()


if __name__ == "__main__":
    main()
