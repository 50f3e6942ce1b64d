"""A run is one stage, or several of which each may start from another's weights; a table at the end compares them."""

import time
from pathlib import Path
from typing import Any

import lightning as L
from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from rich import get_console

from draftopd.checkpoints.files import locate
from draftopd.checkpoints.native import find_checkpoint, load_drafter
from draftopd.checkpoints.published import drafter_config
from draftopd.console import quiet
from draftopd.drafters.base import Drafter
from draftopd.errors import DraftError
from draftopd.target.model import Target
from draftopd.training import results as report
from draftopd.training.results import System
from draftopd.training.run_record import RunRecord


def run_stages(config: DictConfig) -> None:
    """Runs the stages of a config, or the config itself as the only one, then reports."""
    quiet()
    if config.stages and (config.init_from or config.resume):
        raise DraftError(f"{config.name} has stages of its own: init_from and resume go with one stage's experiment")
    folder = Path(HydraConfig.get().runtime.output_dir)
    if not config.stages:
        config.output_dir = str(folder)
        report.show([run_stage(config)], folder)
        return
    parent = report.Parent(config)
    results: list[report.StageResult] = []
    status = "FAILED"
    try:
        for stage in stage_configs(config, folder, parent.run_id):
            start = next((r for r in results if r.name == stage.init_from), None)
            if start is not None:
                stage.init_from = start.checkpoint
            results.append(run_stage(stage, start.name if start else None))
            parent.copy_fingerprint(results[-1])
        report.show(results, folder, parent)
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        parent.close(status)


def stage_configs(config: DictConfig, folder: Path, parent_run_id: str | None) -> list[DictConfig]:
    """One config a stage: its own experiment, then what the user gave on the command line."""
    given = [word for word in HydraConfig.get().overrides.task if not word.startswith("experiment=")]
    configs = []
    for name, stage in config.stages.items():
        composed = compose("fit", overrides=[f"experiment={stage.experiment}", *given])
        composed.name, composed.output_dir, composed.init_from = name, str(folder / name), stage.init_from
        if composed.logger:
            composed.logger.tags = {"mlflow.parentRunId": parent_run_id}
        configs.append(composed)
    return configs


def build(config: DictConfig) -> System:
    """Instantiates a config.

    Raises:
        DraftError: drafter and target do not fit, or a part cannot be had.
    """
    _locate_published(config)
    target: Target = instantiate(config.target)
    _ = target.fingerprint  # of the weights as they are loaded: trainer.precision may convert them
    config.drafter = drafter_group(config, target)
    OmegaConf.resolve(config)
    OmegaConf.set_readonly(config, True)
    L.seed_everything(config.seed, verbose=False)  # after the target, whose first making draws random numbers
    drafter: Drafter = instantiate(config.drafter)(target=target.shape)
    if config.resume and Path(config.resume).is_dir():
        raise DraftError(f"resume={config.resume} is a folder without optimizer and step: start from it with init_from")
    for name in (config.init_from, config.resume):
        if name:
            load_drafter(drafter, find_checkpoint(name, config.logger), target)
    module = instantiate(config.module)(target=target, drafter=drafter, objective=instantiate(config.objective))
    data = instantiate(config.data)(prompts=instantiate(config.prompts), cache=instantiate(config.texts))
    record = RunRecord(OmegaConf.to_container(config))  # type: ignore[arg-type]
    callbacks = [record, *instantiate(config.callbacks, _convert_="all").values()]
    logger = instantiate(config.logger, _convert_="all") if config.logger else None
    trainer = instantiate(config.trainer)(callbacks=callbacks, logger=logger or False)
    get_console().quiet = not trainer.is_global_zero
    if trainer.world_size > 1 and "strategy" not in config.trainer:
        raise DraftError("more than one process needs a strategy: take trainer=ddp or trainer=fsdp2")
    return System(config, module, data, trainer, logger)


def _locate_published(config: DictConfig) -> None:
    """A wrong `drafter.path` is told before the target takes its time; training starts from the weights there."""
    if config.drafter.get("path"):
        config.drafter.path = str(locate(config.drafter.path))
        config.init_from = config.init_from or config.drafter.path


def drafter_group(config: DictConfig, target: Target) -> dict[str, Any]:
    """The `drafter` group as its class takes it, without `path`.

    A folder there becomes the sizes in it, so that the run's checkpoints need the folder no more. EAGLE's own files do
    not name the layers that they read: the target's depth tells them.
    """
    path = config.drafter.get("path")
    if path:
        return drafter_config(path, target)
    return {name: value for name, value in config.drafter.items() if name != "path"}


def run_stage(config: DictConfig, start: str | None = None) -> report.StageResult:
    """Trains one stage and measures it on the test prompts.

    Raises:
        KeyboardInterrupt: the user stopped it; its MLflow run ends as KILLED, its last checkpoint is usable.
    """
    system = build(config)
    trainer, module, data = system.trainer, system.module, system.data
    checkpoint = Path(config.output_dir) / "checkpoints" / "last.ckpt"
    resume = str(find_checkpoint(config.resume, config.logger)) if config.resume else None
    began = time.perf_counter()
    status = "FAILED"
    try:
        trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
        seconds = time.perf_counter() - began
        module.to(trainer.strategy.root_device)  # Lightning has moved it to the CPU
        place = trainer.strategy.broadcast(str(checkpoint.resolve()))  # processes may have folders of their own
        result = report.measure_stage(config.name, start, place, system, seconds)
        status = "FINISHED"
    except (SystemExit, KeyboardInterrupt):  # Lightning turns Ctrl-C into an exit
        status = "KILLED"
        place = f"; last checkpoint: {checkpoint}" if checkpoint.exists() else ""
        if trainer.is_global_zero:
            print(f"\nstopped at step {trainer.global_step}{place}")
        raise KeyboardInterrupt from None
    finally:
        if system.logger:
            system.logger.experiment.set_terminated(system.logger.run_id, status)
    return result
