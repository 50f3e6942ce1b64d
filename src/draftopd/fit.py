"""The training command: `python -m draftopd.fit experiment=... [--dry-run]`.

A run is one stage, or several of which each may start from another's weights; a table at the end compares them. The
same command with the same `hydra.run.dir`, or with `resume=auto`, goes on where it was stopped. With `--dry-run` it
only says what it would take.
"""

from draftopd.config import usage

if __name__ == "__main__":
    usage.answer("fit")  # before the imports of a run, which take seconds

import gc
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import hydra
from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from draftopd.checkpoints.native import find_checkpoint
from draftopd.checkpoints.run_folder import AUTO, of_cluster, to_resume
from draftopd.command import check_words, composed, one_line_errors
from draftopd.config.places import CONFIG_DIR, HOME
from draftopd.config.stages import members
from draftopd.console import Terminated, lines, quiet, say, stage, status, terminable
from draftopd.errors import DraftError
from draftopd.evaluation.report import write
from draftopd.evaluation.results import FILE, Result, Results, load
from draftopd.reports import plan, summary
from draftopd.reports.stages import best, of_all
from draftopd.tracking.header import command, git_commit, write_header
from draftopd.tracking.pages import STAGE
from draftopd.tracking.run import DESCRIPTION, Run, Status
from draftopd.tracking.store import check_store
from draftopd.training.run import build, run_stage, write_texts

RECIPE = "recipe.yaml"
"""in a stage's folder: its configuration, without the logger"""
NO_RECIPE = {"logger", "loggers", "output_dir", "texts_only", "from_scratch"}
"""what changes no result"""
DRY_RUN = "--dry-run"


@hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name="fit")
def _fit(config: DictConfig) -> None:
    """Runs the stages of a config, or the config itself as the only one, then reports."""
    with one_line_errors(), terminable(), lines(speaks=not rank_zero_only.rank):  # type: ignore[attr-defined]
        quiet()
        git_commit()  # of the code that runs, whatever is edited later
        folder, words = Path(HydraConfig.get().runtime.output_dir), list(HydraConfig.get().overrides.task)
        say(f"{config.name}: {command()}, in {folder}")
        parent = _tracked(config, folder)
        ended: Status = "FAILED"
        done: list[Results] = []
        try:
            stages = _stages(config, folder, parent, words)
            if config.texts_only:
                for of in stages:
                    with stage(of.name):
                        write_texts(of)
                return
            commands = _commands(stages, config, words, parent)
            found = {of.name: _finished(of, config) for of in stages}
            left = {of.name: of for of in stages if found[of.name] is None and _wanted(of, config)}
            for number, of in enumerate(stages, 1):
                results = found[of.name]
                if of.name in left:
                    with stage(f"{of.name} ({number} of {len(stages)})"):
                        start = _prepare(of, done, config)
                        system = build(of)
                        if of.name == next(iter(left)):
                            _announce([*left.values()], system)
                        describe = partial(_description, commands)
                        results = run_stage(system, describe, start, parent)
                        del system
                    gc.collect()  # a trainer is full of cycles, which would hold the stage's target and optimizer
                done += [] if results is None else [results]
            if done:
                _report(done, folder, commands, parent)
            ended = "FINISHED"
        except (KeyboardInterrupt, Terminated):
            ended = "KILLED"
            _tell_stopped(done, folder)
            raise
        finally:
            if parent is not None:
                parent.end(ended)


def _tracked(config: DictConfig, folder: Path) -> Run | None:
    """The MLflow run above those of the stages; a single stage makes its own, when all else is ready."""
    if not config.logger or config.texts_only or rank_zero_only.rank:  # type: ignore[attr-defined]
        return None
    if not config.stages:
        check_store(config.logger.tracking_uri, config.logger.experiment_name)  # before the target is loaded
        return None
    config.output_dir = str(folder)
    logger = instantiate(config.logger, _convert_="all", system_metrics=None)  # the stages have them
    parent: Run = logger.start(goes_on=True)
    write_header(parent, OmegaConf.to_container(config, resolve=True), {})  # type: ignore[arg-type]
    return parent


def _stages(config: DictConfig, folder: Path, parent: Run | None, words: Sequence[str]) -> list[DictConfig]:
    """One config per stage: its own experiment, what the user gave on the command line, and its place in its grid."""
    if not config.stages:
        config.output_dir = str(folder)
        return [config]
    configs: list[DictConfig] = []
    for member in members(config.stages, words):
        earlier = [made.name for made in configs]
        if member.start and member.start not in earlier:
            find_checkpoint(member.start, config.logger)  # tells now what would fail after the stages before it
        own = compose("fit", overrides=member.words)
        own.name, own.output_dir, own.init_from = member.name, str(folder / member.name), member.start
        if config.texts_only and member.start in earlier:
            own.init_from = None  # it has not run, and weights do not change texts
        own.init_optimizer = own.init_optimizer and own.init_from is not None
        if own.logger and parent is not None:
            own.logger.tags = {**(own.logger.tags or {}), "mlflow.parentRunId": parent.id}
        configs.append(own)
    return configs


def _recipe(of: DictConfig) -> str:
    """What makes a stage's results: its configuration, without the logger and its place."""
    return OmegaConf.to_yaml(OmegaConf.masked_copy(of, sorted({*map(str, of)} - NO_RECIPE)))


def _finished(of: DictConfig, config: DictConfig) -> Results | None:
    """The results of a stage that has ended in this folder; DraftError where another configuration ran there."""
    folder = Path(of.output_dir)
    if not config.stages:
        known = config.resume == AUTO and (folder / FILE).exists()
        return load(folder / FILE) if known else None
    if not any((folder / name).exists() for name in (FILE, "checkpoints")):
        return None
    recipe = folder / RECIPE
    if not recipe.exists() or _recipe(OmegaConf.load(recipe)) != _recipe(of):  # type: ignore[arg-type]
        raise DraftError(f"{folder} holds results of another configuration: choose another hydra.run.dir")
    return load(folder / FILE) if (folder / FILE).exists() else None


def _wanted(of: DictConfig, config: DictConfig) -> bool:
    """`only` does not leave it out."""
    return not config.only or any(of.name == name or of.name.startswith(f"{name}-") for name in config.only)


def _prepare(of: DictConfig, done: Sequence[Results], config: DictConfig) -> Result | None:
    """Writes down what makes the stage and gives it the checkpoints that it starts from and goes on from.

    Returns:
        The result of the stage that it starts from.
    """
    folder = Path(of.output_dir)
    start = next((r for results in done for r in results.results if r.name == of.init_from), None)
    if start is None and of.init_from in [member.name for member in members(config.stages or {}, ())]:
        raise DraftError(f"{of.name} starts from {of.init_from}, which has not run in {folder.parent}: add it to only")
    if config.stages and rank_zero_only.rank == 0:  # type: ignore[attr-defined]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / RECIPE).write_text(_recipe(of))
    if start is not None:  # where it lies now: a study may have been moved
        of.init_from = str(folder.parent / str(of.init_from) / "checkpoints" / "last.ckpt")
    if config.stages or config.resume == AUTO or of_cluster(folder):
        last = to_resume(folder)
        of.resume = last and str(last)
        if last and rank_zero_only.rank == 0:  # type: ignore[attr-defined]
            print(f"{of.name} goes on from {last}", flush=True)
    return start


def _announce(left: Sequence[DictConfig], system: plan.System) -> None:
    """The plan of all that is left, before the first of it; from then on bars and lines know the time left."""
    if status.speaks:
        made = plan.make_plan(left, system)
        plan.show(made)
        status.left = made.left


def _commands(
    stages: Sequence[DictConfig], config: DictConfig, words: Sequence[str], parent: Run | None
) -> summary.Commands:
    """What may be typed after the run."""
    facts = OmegaConf.load(HOME / "mlflow.yaml")
    usual = os.environ.get("MLFLOW_TRACKING_URI", facts.tracking_uri)
    uri = config.logger.tracking_uri if config.logger else None
    address, experiment = f"http://{facts.ui.host}:{facts.ui.port}", parent.experiment_id if parent else ""
    store = summary.Store(uri, usual, address, experiment)
    own = {member.name: member.words for member in members(config.stages or {}, words)} or {config.name: list(words)}
    kinds = {of.name: of.drafter.get("_target_", "").rpartition(".")[2] for of in stages if not of.drafter.get("path")}
    folder = Path(stages[0].output_dir)
    day = folder.parents[1] if config.stages else folder.parent  # where the next run will be, too
    compared = config.logger.experiment_name if config.logger and uri == usual else str(day)
    return summary.Commands(store, own, kinds, summary.again(words, config.seed, compared))


def _description(commands: summary.Commands, results: Results) -> str:
    return summary.markdown(summary.summary(results, commands))


def _report(stages: Sequence[Results], folder: Path, commands: summary.Commands, parent: Run | None) -> None:
    """Shows the stages side by side, and writes all that into the folder and into MLflow; the first process does."""
    if rank_zero_only.rank:  # type: ignore[attr-defined]
        return
    by_name = {r.name: r for results in stages for r in results.results}  # a start of several stages is there once
    results = replace(stages[0], results=list(by_name.values()))
    parts = summary.summary(results, commands, (parent.run_name, parent.id) if parent else None)
    files = [*write(results, folder), summary.show(parts, folder)]
    if parent is not None:
        parent.log_metrics(of_all(results), 0)
        parent.log_tags({DESCRIPTION: summary.markdown(parts), STAGE: f"{best(results).name}, the best"})
        for path in files:
            parent.log_artifact(path)


def _tell_stopped(done: Sequence[Results], folder: Path) -> None:
    if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
        hydra_config = HydraConfig.get()
        words = [*hydra_config.overrides.task, f"hydra.run.dir={folder}"]
        sweeps = hydra_config.mode is RunMode.MULTIRUN
        for line in summary.stopped(done, command(words if sweeps else None)):
            print(line, flush=True)


def _dry_run() -> None:
    """Prints the plan of all stages; nothing is written."""
    with one_line_errors(), composed("fit") as (config, words):
        quiet()
        stages = [of for of in _stages(config, Path("outputs"), None, words) if _wanted(of, config)]
        for of in stages:  # what starts from another stage needs no weights for a plan
            inside = of.init_from in (config.stages or ())
            of.init_from, of.from_scratch = None if inside else of.init_from, of.from_scratch or inside
            of.resume = None
        plan.show(plan.make_plan(stages, build(stages[0])))


def main() -> None:
    dry = DRY_RUN in sys.argv
    sys.argv = [word for word in sys.argv if word != DRY_RUN]
    check_words("fit")
    _dry_run() if dry else _fit()


if __name__ == "__main__":
    main()
