"""A run is one stage, or several of which each may start from another's weights; a table at the end compares them."""

import logging
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import lightning as L
from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from lightning.pytorch.loggers import MLFlowLogger
from omegaconf import DictConfig, OmegaConf

from draftopd import report
from draftopd.checkpoints import find_checkpoint, load_drafter
from draftopd.datamodule import DraftDataModule
from draftopd.drafters.base import Drafter
from draftopd.module import DraftModule
from draftopd.record import RunRecord
from draftopd.target import Target


@dataclass
class System:
    """Everything that one stage trains with."""

    module: DraftModule
    data: DraftDataModule
    trainer: L.Trainer
    logger: MLFlowLogger | None


def run_stages(config: DictConfig) -> None:
    """Runs the stages of a config, or the config itself as the only one, then reports."""
    quiet()
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
    OmegaConf.resolve(config)
    OmegaConf.set_readonly(config, True)
    L.seed_everything(config.seed, verbose=False)
    target: Target = instantiate(config.target)
    drafter: Drafter = instantiate(config.drafter)(target=target.shape)
    if config.init_from:
        load_drafter(drafter, find_checkpoint(config.init_from, config.logger), target.fingerprint)
    module = instantiate(config.module)(target=target, drafter=drafter, objective=instantiate(config.objective))
    data = instantiate(config.data)(prompts=instantiate(config.prompts), texts=instantiate(config.texts))
    callbacks = list(instantiate(config.callbacks, _convert_="all").values())
    callbacks.append(RunRecord(OmegaConf.to_container(config)))  # type: ignore[arg-type]
    logger = instantiate(config.logger, _convert_="all") if config.logger else None
    trainer = instantiate(config.trainer)(callbacks=callbacks, logger=logger or False)
    return System(module, data, trainer, logger)


def run_stage(config: DictConfig, start: str | None = None) -> report.StageResult:
    """Trains one stage and measures it on the test prompts.

    Raises:
        KeyboardInterrupt: the user stopped it; its MLflow run ends as KILLED, its last checkpoint is usable.
    """
    system = build(config)
    checkpoint = Path(config.output_dir) / "checkpoints" / "last.ckpt"
    began = time.perf_counter()
    try:
        system.trainer.fit(system.module, datamodule=system.data, ckpt_path=config.resume, weights_only=True)
    except (SystemExit, KeyboardInterrupt):  # Lightning turns Ctrl-C into an exit
        if system.logger:
            system.logger.experiment.set_terminated(system.logger.run_id, "KILLED")
        print(f"\nstopped at step {system.trainer.global_step}; last checkpoint: {checkpoint}")
        raise KeyboardInterrupt from None
    seconds = time.perf_counter() - began
    return report.measure_stage(
        config.name, start, str(checkpoint.resolve()), system.module, system.data, seconds, config.test
    )


def quiet() -> None:
    """Silences what would drown the progress bars and is of no use to a reader; warnings of our own stay."""
    for name in ("lightning.pytorch", "lightning.fabric", "mlflow", "alembic", "transformers", "matplotlib"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for words in (
        ".*does not have many workers.*",
        ".*treespec, LeafSpec.*",
        ".*log_every_n_steps.*",
        ".*in eval mode at the start.*",
    ):
        warnings.filterwarnings("ignore", words)
