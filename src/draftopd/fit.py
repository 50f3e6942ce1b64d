"""The training command: `python -m draftopd.fit experiment=...`.

A run is one stage, or several of which each may start from another's weights; a table at the end compares them. The
same command with the same `hydra.run.dir`, or with `resume=auto`, goes on where it was stopped.
"""

from draftopd.config import usage

if __name__ == "__main__":
    usage.answer("fit")  # before the imports of a run, which take seconds

import gc
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
from draftopd.checkpoints.run_folder import AUTO, of_cluster, to_resume
from draftopd.command import CONFIG_DIR, check_words, one_line_errors
from draftopd.config.stages import members
from draftopd.console import Terminated, quiet, terminable
from draftopd.errors import DraftError
from draftopd.evaluation.report import show
from draftopd.evaluation.results import FILE, Results, load
from draftopd.tracking.header import git_commit, write_header
from draftopd.tracking.run import Run, Status
from draftopd.tracking.store import check_store
from draftopd.training.run import run_stage, write_texts

RECIPE = "recipe.yaml"
"""in a stage's folder: its configuration, without the logger"""


@hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name="fit")
def _fit(config: DictConfig) -> None:
    """Runs the stages of a config, or the config itself as the only one, then reports."""
    with one_line_errors(), terminable():
        quiet()
        git_commit()  # of the code that runs, whatever is edited later
        folder = Path(HydraConfig.get().runtime.output_dir)
        parent = _tracked(config, folder)
        status: Status = "FAILED"
        done: list[Results] = []
        try:
            for stage in _stages(config, folder, parent):
                if config.texts_only:
                    write_texts(stage)
                    continue
                results = _finished(stage, config)
                if results is None and _wanted(stage, config):
                    results = run_stage(stage, _prepare(stage, done, config), parent)
                    gc.collect()  # a trainer is full of cycles, which would hold the stage's target and optimizer
                done += [] if results is None else [results]
            for path in _report(done, folder) if done else []:
                if parent is not None:
                    parent.log_artifact(path)
            status = "FINISHED"
        except (KeyboardInterrupt, Terminated):
            status = "KILLED"
            raise
        finally:
            if parent is not None:
                parent.end(status)


def _tracked(config: DictConfig, folder: Path) -> Run | None:
    """The MLflow run above those of the stages; a single stage makes its own, when all else is ready."""
    if not config.logger or config.texts_only or rank_zero_only.rank:  # type: ignore[attr-defined]
        return None
    if not config.stages:
        check_store(config.logger.tracking_uri, config.logger.experiment_name)  # before the target is loaded
        return None
    config.output_dir = str(folder)
    parent: Run = instantiate(config.logger, _convert_="all").start(goes_on=True)
    write_header(parent, OmegaConf.to_container(config, resolve=True), {})  # type: ignore[arg-type]
    return parent


def _stages(config: DictConfig, folder: Path, parent: Run | None) -> list[DictConfig]:
    """One config per stage: its own experiment, what the user gave on the command line, and its place in its grid."""
    if not config.stages:
        config.output_dir = str(folder)
        return [config]
    configs: list[DictConfig] = []
    for name, stage, words in members(config.stages, HydraConfig.get().overrides.task):
        if stage.init_from and stage.init_from not in [earlier.name for earlier in configs]:
            find_checkpoint(stage.init_from, config.logger)  # tells now what would fail after the stages before it
        composed = compose("fit", overrides=words)
        composed.name, composed.output_dir, composed.init_from = name, str(folder / name), stage.init_from
        if config.texts_only and stage.init_from in [earlier.name for earlier in configs]:
            composed.init_from = None  # it has not run, and weights do not change texts
        composed.init_optimizer = composed.init_optimizer and composed.init_from is not None
        if composed.logger and parent is not None:
            composed.logger.tags = {**(composed.logger.tags or {}), "mlflow.parentRunId": parent.id}
        configs.append(composed)
    return configs


def _recipe(stage: DictConfig) -> str:
    """What makes a stage's results: its configuration, without the logger."""
    return OmegaConf.to_yaml(OmegaConf.masked_copy(stage, sorted({*map(str, stage)} - {"logger", "texts_only"})))


def _finished(stage: DictConfig, config: DictConfig) -> Results | None:
    """The results of a stage that has ended in this folder; DraftError where another configuration ran there."""
    folder = Path(stage.output_dir)
    if not config.stages:
        known = config.resume == AUTO and (folder / FILE).exists()
        return load(folder / FILE) if known else None
    if not any((folder / name).exists() for name in (FILE, "checkpoints")):
        return None
    if not (folder / RECIPE).exists() or (folder / RECIPE).read_text() != _recipe(stage):
        raise DraftError(f"{folder} holds results of another configuration: choose another hydra.run.dir")
    return load(folder / FILE) if (folder / FILE).exists() else None


def _wanted(stage: DictConfig, config: DictConfig) -> bool:
    """`only` does not leave it out."""
    return not config.only or any(stage.name == name or stage.name.startswith(f"{name}-") for name in config.only)


def _prepare(stage: DictConfig, done: Sequence[Results], config: DictConfig) -> str | None:
    """Writes down what makes the stage and gives it the checkpoints that it starts from and goes on from.

    Returns:
        The name of the stage that it starts from.
    """
    folder = Path(stage.output_dir)
    start = next((r for results in done for r in results.results if r.name == stage.init_from), None)
    if start is None and stage.init_from in (config.stages or ()):
        raise DraftError(
            f"{stage.name} starts from {stage.init_from}, which has not run in {folder.parent}: add it to only"
        )
    if config.stages and rank_zero_only.rank == 0:  # type: ignore[attr-defined]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / RECIPE).write_text(_recipe(stage))
    stage.init_from = stage.init_from if start is None else start.checkpoint
    if config.stages or config.resume == AUTO or of_cluster(folder):
        last = to_resume(folder)
        stage.resume = last and str(last)
        if last and rank_zero_only.rank == 0:  # type: ignore[attr-defined]
            print(f"{stage.name} goes on from {last}")
    return start.name if start else None


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
