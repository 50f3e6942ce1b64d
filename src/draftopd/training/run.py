"""One stage of a run: everything that it trains with, its training and its test."""

import logging
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.utils import instantiate
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.utilities.exceptions import SIGTERMException
from omegaconf import DictConfig, OmegaConf
from rich import get_console

from draftopd.checkpoints.files import locate
from draftopd.checkpoints.native import find_checkpoint, load_drafter, optimizer_state, spent
from draftopd.checkpoints.published import drafter_config
from draftopd.checkpoints.run_folder import forget_cluster
from draftopd.console import Terminated
from draftopd.data.answers import UnansweredError
from draftopd.drafters.base import Drafter
from draftopd.errors import DraftError
from draftopd.evaluation.headline import headline
from draftopd.evaluation.results import Result, Results, Training, earlier_answers
from draftopd.target.model import Target
from draftopd.tracking.run import DESCRIPTION, Run, Status
from draftopd.training.callbacks import Observed, RunLogger, Start, log
from draftopd.training.datamodule import DraftDataModule
from draftopd.training.mixture import MixedDataModule
from draftopd.training.module import DraftModule
from draftopd.training.other_loggers import OtherLogger
from draftopd.training.run_record import RunRecord, fingerprints


@dataclass(frozen=True)
class System:
    """Everything that one stage trains with."""

    config: DictConfig
    module: DraftModule
    data: DraftDataModule
    trainer: L.Trainer
    logger: RunLogger | None
    others: list[OtherLogger]
    observed: Observed
    before: float | None
    """training FLOPs of what it starts from; None = not known"""


def build(config: DictConfig) -> System:
    """Instantiates a config.

    Raises:
        DraftError: drafter and target do not fit, or a part cannot be had.
    """
    _locate_published(config)
    require_start(config)
    data = make_data(config)
    for split in ("train", "val"):
        data.prompts.split(split)  # read before all that takes minutes
    target: Target = instantiate(config.target)
    _ = target.fingerprint  # of the weights as they are loaded: trainer.precision may convert them
    config.drafter = drafter_group(config, target)
    OmegaConf.resolve(config)
    OmegaConf.set_readonly(config, True)
    L.seed_everything(config.seed, verbose=False)  # after the target, whose first making draws random numbers
    drafter = _new_drafter(config, target)
    if drafter.init == "target":
        drafter.copy_target(target.body)  # a checkpoint's weights come after
    for name in (config.init_from, config.resume):
        if name:
            load_drafter(drafter, find_checkpoint(name, config.logger), target)
    objectives = {name: instantiate(config.get(name)) for name in ("objective", "random_objective")}
    module = instantiate(config.module)(target=target, drafter=drafter, **objectives)
    if config.init_optimizer:
        module.init_optimizer = optimizer_state(find_checkpoint(config.init_from, config.logger))
    before = spent(find_checkpoint(config.init_from, config.logger)) if config.init_from else 0.0
    record = RunRecord(OmegaConf.to_container(config), before)  # type: ignore[arg-type]
    observed = Observed(before=before)
    made = instantiate(config.callbacks, _convert_="all").values()
    callbacks = [*(c(observed) if isinstance(c, partial) else c for c in made), record]
    logger = RunLogger() if config.logger else None
    others = [OtherLogger(name, instantiate(of)) for name, of in (config.get("loggers") or {}).items()]
    trainer = make_trainer(config, callbacks, [*([logger] if logger else []), *others])
    _warn_of_precision(trainer)  # not as it is made: that is tried for all of a study's stages first
    get_console().quiet = not trainer.is_global_zero
    return System(config, module, data, trainer, logger, others, observed, before)


def _new_drafter(config: DictConfig, target: Target) -> Drafter:
    drafter: Drafter = target.adopt(instantiate(config.drafter)(target=target.shape))
    return drafter


def require_start(config: DictConfig) -> None:
    """Raises DraftError where what a run starts from cannot be had of what it names."""
    if config.resume and Path(config.resume).expanduser().is_dir():
        raise DraftError(f"resume={config.resume} is a folder without optimizer and step: start from it with init_from")
    start = config.init_from or config.drafter.get("path")
    if config.init_optimizer and not start:
        raise DraftError("init_optimizer=true takes the optimizer of init_from: name a checkpoint there")
    free = config.from_scratch or config.texts_only  # weights do not change texts
    if "prompts_per_epoch" in config.data and not (start or config.resume or free):
        raise DraftError(
            f"{config.name} trains on what its drafter drafts and would start from random weights: name a drafter, "
            "init_from=<MLflow run id or checkpoint> or drafter.path=<published folder>, or set from_scratch=true"
        )


def make_data(config: DictConfig) -> DraftDataModule:
    """The data module, with its prompts still unread.

    Raises:
        DraftError: its settings do not go together, or not with random_objective.
    """
    data: DraftDataModule = instantiate(config.data)(
        prompts=instantiate(config.prompts), cache=instantiate(config.texts)
    )
    if config.get("random_objective") and not isinstance(data, MixedDataModule):
        raise DraftError("random_objective is for data=mixed: other data have one kind of anchors")
    return data


def make_trainer(config: DictConfig, callbacks: list[L.Callback], loggers: Sequence[Logger] = ()) -> L.Trainer:
    """Lightning's trainer.

    Raises:
        DraftError: this machine, or the training step, does not work with its settings.
    """
    trainer: L.Trainer = instantiate(config.trainer)(callbacks=callbacks, logger=list(loggers) or False)
    if trainer.world_size > 1 and "strategy" not in config.trainer:
        raise DraftError("more than one process needs a strategy: take trainer=ddp or trainer=fsdp2")
    if trainer.precision == "16-mixed":
        # gradients would be clipped while they are scaled up, to a norm 65,536 times too small
        raise DraftError("trainer.precision=16-mixed scales gradients: take bf16-mixed or bf16-true")
    if config.module.attention == "flex_attention" and isinstance(trainer.accelerator, CPUAccelerator):
        raise DraftError("module.attention=flex_attention needs a GPU: on CPUs torch has no gradient for it")
    return trainer


def _warn_of_precision(trainer: L.Trainer) -> None:
    on_cpu = isinstance(trainer.accelerator, CPUAccelerator)
    if on_cpu and trainer.precision.startswith("bf16") and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        slow = "this processor has no bfloat16 products, and a step may take ten times as long"
        advice = "trainer.precision=%s: %s: take trainer.precision=32-true"
        logging.getLogger(__name__).warning(advice, trainer.precision, slow)


def _start(system: System) -> Start | None:
    """What the run starts from, and what it answered in a test that was the same."""
    config, module = system.config, system.module
    if not config.init_from:
        return None
    path = find_checkpoint(config.init_from, config.logger)

    def make() -> Drafter:
        drafter = _new_drafter(config, module.target)
        load_drafter(drafter, path, module.target)
        return drafter.to(module.device, next(module.drafter.parameters()).dtype)

    known = earlier_answers(path, module.target.fingerprint, system.data.decoding)
    return Start(make, system.trainer.strategy.broadcast(known))  # all processes do the same then


def _tested_start(system: System) -> list[Result]:
    start = system.observed.start
    if start is None:
        return []
    path = find_checkpoint(system.config.init_from, system.config.logger).resolve()
    name = path.name if path.is_dir() else path.parents[1].name
    return [Result(f"start {name}", start.answers, str(path))]


def _locate_published(config: DictConfig) -> None:
    """Refuses a wrong `drafter.path` before the target is loaded; training starts from the weights in that folder."""
    if config.drafter.get("path"):
        config.drafter.path = str(locate(config.drafter.path))
        config.init_from = config.init_from or config.drafter.path


def drafter_group(config: DictConfig, target: Target) -> dict[str, Any]:
    """The `drafter` group as its class takes it, without `path`.

    The folder is replaced by its sizes, so that the run's checkpoints do not need it. EAGLE's own files do not name
    the layers that they read: the target's depth tells them.
    """
    if path := config.drafter.get("path"):
        return drafter_config(path, target)
    return {name: value for name, value in config.drafter.items() if name != "path"}


def write_texts(config: DictConfig) -> None:
    """Writes the target's texts that a run of this config reads at first, and trains nothing.

    Raises:
        DraftError: it cannot be built, or not all texts can be had; what there is stays.
    """
    system = build(config)
    system.trainer.strategy.connect(system.module)
    system.data.trainer = system.trainer
    system.module.to(system.trainer.strategy.root_device)
    missing: list[str] = []
    counts = {"train": None, "val": None} | ({"test": config.test.prompts} if config.test.redraft else {})
    for split, count in counts.items():
        try:
            texts = system.data.written(split, count)
            print(f"{config.name}: {len(texts.prompts[:count])} {split} texts in {texts.folder}")
        except UnansweredError as error:  # the prompts of the other splits are to be written down too
            missing.append(str(error))
    if missing:
        raise UnansweredError("; ".join(missing))


def run_stage(
    system: System, describe: Callable[[Results], str], start: Result | None = None, parent: Run | None = None
) -> Results:
    """Trains one stage and tests it, unless `test.prompts` is 0.

    Args:
        describe: makes the description of its MLflow run.
        start: of the stage that it starts from. What comes from elsewhere is tested, too, and comes first in the
            results.
        parent: the MLflow run above it.

    Raises:
        DraftError: MLflow cannot be used.
        KeyboardInterrupt, Terminated: Ctrl-C or SIGTERM stopped it; its MLflow run ends as KILLED, its last checkpoint
            goes on where it was.
    """
    config, trainer, module, logger = system.config, system.trainer, system.module, system.logger
    if trainer.world_size > 1 or SLURMEnvironment.detect():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # Lightning stops all processes after a step, or queues again
    checkpoint = Path(config.output_dir) / "checkpoints" / "last.ckpt"
    resume = str(find_checkpoint(config.resume, config.logger)) if config.resume else None
    run: Run | None = None
    if logger and trainer.is_global_zero:
        own = resume is not None and Path(resume).resolve().is_relative_to(Path(config.output_dir).resolve())
        logger.run = run = instantiate(config.logger, _convert_="all").start(goes_on=own)
    status: Status = "FAILED"
    try:
        trainer.fit(module, datamodule=system.data, ckpt_path=resume, weights_only=True)
        if trainer.is_global_zero:
            forget_cluster(Path(trainer.default_root_dir))  # on SLURM, Lightning would load what is there for the test
        trainer.strategy.barrier()
        minutes, flops = module.budget.costs(module.ledger)["minutes"], module.ledger.training_flops
        others: list[Result] = []
        if config.test.prompts != 0:
            system.observed.start = None if start else _start(system)
            trainer.test(module, datamodule=system.data, verbose=False)
            others = _tested_start(system)
        first = start.name if start else others[0].name if others else None
        training = Training(first, flops, 60 * minutes, system.observed.history, system.before)
        place = trainer.strategy.broadcast(str(checkpoint.resolve()))  # processes may have folders of their own
        result = Result(config.name, system.observed.answers, place, run.id if run else None, training)
        results = Results(module.target.fingerprint, system.data.decoding, [*others, result])
        beside = replace(results, results=[*([start] if start else others), result])
        log(trainer, headline(result, beside))
        if trainer.is_global_zero:
            file = results.save(Path(config.output_dir))
            if run:
                run.log_artifact(file)
                run.log_tags({DESCRIPTION: describe(beside)})
        if parent is not None:
            parent.log_tags(fingerprints(trainer))
        status = "FINISHED"
    except (SystemExit, KeyboardInterrupt) as stop:  # Lightning turns Ctrl-C into an exit
        status = "KILLED"
        place = f"; last checkpoint: {checkpoint} (go on with resume=auto)" if checkpoint.exists() else ""
        if trainer.is_global_zero:
            print(f"\nstopped at step {trainer.global_step}{place}")
        raise (Terminated() if isinstance(stop, Terminated | SIGTERMException) else KeyboardInterrupt()) from None
    finally:
        _end(system.others, run, status, checkpoint)
    return results


def _end(others: Sequence[OtherLogger], run: Run | None, status: Status, checkpoint: Path) -> None:
    for other in others:
        other.close("success" if status == "FINISHED" else "failed")
    if run:
        run.end(status, checkpoint)
