"""A run's plan, before anything long: texts to write, steps, FLOPs, hours, memory and disk of every stage."""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from hydra.utils import instantiate
from lightning.pytorch.utilities.seed import isolate_rng
from omegaconf import DictConfig, OmegaConf
from rich import get_console

from draftopd.console import duration, status
from draftopd.decoding.ledger import Ledger
from draftopd.decoding.memory import out_of_memory
from draftopd.decoding.rollout import rollout
from draftopd.reports.load import ACCEPTANCE, Load, attached, batch_of, load, replays
from draftopd.reports.stages import Cells, scaled
from draftopd.training.datamodule import DraftDataModule
from draftopd.training.module import DraftModule
from draftopd.training.run import System, drafter_group, make_data

STEPS = 6  # of decoding, timed


@dataclass(frozen=True)
class Rates:
    """Of this machine, timed; 0 where nothing was."""

    flops: float = 0.0
    """a second, in training"""
    tokens: float = 0.0
    """a second, of all texts that are written together"""
    how: str = ""

    def seconds(self, stage: Load) -> float | None:
        """Of a stage, its texts and its test included; None where that is not known."""
        if not self.flops or not self.tokens:
            return None
        train = None if stage.flops is None else stage.flops / self.flops
        limit = None if stage.minutes is None else 60 * stage.minutes
        known = [value for value in (train, limit) if value is not None]
        return min(known) + (stage.written + stage.tested) / self.tokens


@dataclass
class Plan:
    """Of the stages that are still to run, and the clock that compares it with what comes.

    Args:
        others: stages that are not planned: their target is another one, or their drafter a published one.
    """

    stages: list[Load]
    rates: Rates
    others: list[str] = field(default_factory=list)

    def parts(self) -> list[Cells | str]:
        """For the terminal."""
        title = "Plan: FLOPs of this run alone, by the ledger's formulas"
        cells = Cells(title, ["stage", "texts to\nwrite", "steps", "FLOPs", "time", "memory\nGB", "disk\nGB"])
        for stage in self.stages:
            seconds = self.rates.seconds(stage)
            steps, flops = ("-" if n is None else form(n) for n, form in ((stage.steps, _whole), (stage.flops, scaled)))
            sizes = [f"{size / 1e9:.2f}" for size in (stage.memory, stage.disk)]
            time_of = "-" if seconds is None else duration(seconds)
            cells.rows.append([stage.name, str(stage.texts), steps, flops, time_of, *sizes])
        known = [seconds for stage in self.stages if (seconds := self.rates.seconds(stage)) is not None]
        total = f"All stages: about {duration(sum(known))}. " if len(known) == len(self.stages) else ""
        length = f"Assumed: responses of {self.stages[0].response:.0f} tokens, {ACCEPTANCE:.0f} of them a verification."
        rates = f" Timed here: {self.rates.how}." if self.rates.how else " Not timed: no memory for a step."
        others = (
            f" Not planned (another target, or a published drafter): {', '.join(self.others)}." if self.others else ""
        )
        return [cells, total + length + rates + others]

    def left(self) -> float | None:
        """Seconds of the run, by the pace of the stage that is training, else as planned; None = not known."""
        planned = {stage.name: self.rates.seconds(stage) for stage in self.stages}
        names, now = list(planned), status.stage.split(" (")[0]
        if self.others or now not in names:
            return None
        share, seconds = status.share(), planned[now]
        later = [planned[name] for name in names[names.index(now) + 1 :]]
        if share > 0.02:
            elapsed = time.monotonic() - status.began
            own, whole = elapsed * (1 - share) / share, elapsed / share
        elif seconds is None:
            return None
        else:
            own = whole = seconds
        if not later:
            return own
        if seconds is None or any(value is None for value in later):
            return None
        return own + sum(value or 0.0 for value in later) * whole / seconds


def make_plan(stages: Sequence[DictConfig], system: System) -> Plan:
    """Nothing is written, and no random number of the run is drawn.

    Args:
        stages: those to run.
        system: of the first, built and not yet trained.
    """
    data, module = system.data, system.module
    loads, others = [], []
    with isolate_rng():
        with attached(data, module):
            loads.append(load(system.config, data, module, system.config.test))
            rates = _timed(system, round(loads[0].response))
        for config in stages[1:]:
            if _target(config) != _target(stages[0]) or config.drafter.get("path"):
                others.append(config.name)
                continue
            with _silent():
                data, module = _parts(config, system)
                with attached(data, module):
                    loads.append(load(config, data, module, config.test))
    return Plan(loads, rates, others)


def show(plan: Plan) -> None:
    console = get_console()
    for part in plan.parts():
        console.print(part if isinstance(part, str) else part.terminal(), highlight=False)
    console.print()


def _target(config: DictConfig) -> Any:
    return OmegaConf.to_container(config.target, resolve=True)


def _parts(config: DictConfig, system: System) -> tuple[DraftDataModule, DraftModule]:
    """Of a later stage, its drafter without weights."""
    target = system.module.target
    with torch.device("meta"):
        drafter = instantiate(drafter_group(config, target))(target=target.shape)
    objectives = {name: instantiate(config.get(name)) for name in ("objective", "random_objective")}
    module = instantiate(config.module)(target=target, drafter=drafter, **objectives)
    return make_data(config), module


def _timed(system: System, response: int) -> Rates:
    """A few steps of decoding, and one of training on made-up texts."""
    module, data, trainer = system.module, system.data, system.trainer
    module.to(trainer.strategy.root_device)  # where Lightning brings it anyhow
    try:
        tokens = _writing(data, module)
        compiled = bool(system.config.module.torch_compile)
        alone = trainer.world_size == 1 and not compiled
        flops = trainer.world_size * (_training if alone else _reading)(system, response)
    except Exception as error:
        if out_of_memory(error):
            return Rates()
        raise
    what = "a training step" if alone else f"the target's reading of a text, times {trainer.world_size} processes"
    how = f"{scaled(flops)}FLOP a second ({what}), {scaled(tokens)} tokens a second of writing"
    return Rates(flops, tokens * trainer.world_size, how)


def _writing(data: DraftDataModule, module: DraftModule) -> float:
    """Tokens a second of plain decoding, many texts together."""
    prompts = [ids for _, ids in data.encoded("train", data.decoding.batch_size)]
    few = replace(data.decoding, max_new_tokens=min(STEPS, data.decoding.max_new_tokens))
    ledger, start = Ledger(), time.perf_counter()
    results = rollout(module.target, None, prompts, few, ledger=ledger)
    spent = time.perf_counter() - start - ledger.seconds["prefill"]
    written = sum(result.trace.response_length - 1 for result in results)
    return written / spent if written else 0.0


def _training(system: System, response: int) -> float:
    """FLOPs a second of one micro-batch, there and back."""
    module, data, trainer = system.module, system.data, system.trainer
    batch = batch_of(data, module, min(data.batching.micro_batch_size, data.batching.batch_size), response)
    if not replays(data, module):
        features = torch.zeros(*batch.tokens.shape, module.drafter.fc.in_features, dtype=module.drafter.fc.weight.dtype)
        hidden = torch.zeros(*batch.drafts.shape, module.target.shape.hidden_size, dtype=module.target.model.dtype)
        batch.features, batch.target_hidden = features, hidden
    own, module.ledger = module.ledger, Ledger()
    try:
        for _ in range(2):  # the first one is slow
            module.ledger, start = Ledger(), time.perf_counter()
            with trainer.precision_plugin.forward_context():
                loss = module.loss(batch)
            loss.backward()
            float(loss.detach())
            seconds = time.perf_counter() - start
        return module.ledger.training_flops / seconds
    finally:
        module.ledger = own
        module.zero_grad(set_to_none=True)


def _reading(system: System, response: int) -> float:
    module = system.module
    batch = batch_of(system.data, module, 1, response).tokens.to(module.target.device)
    ledger, start = Ledger(), time.perf_counter()
    hidden, _ = module.target.read(batch)
    float(hidden.float().sum())
    ledger.read(module.target, batch.shape[1])
    return ledger.training_flops / (time.perf_counter() - start)


def _whole(number: float) -> str:
    return f"{number:,.0f}"


@contextmanager
def _silent() -> Iterator[None]:
    """Without warnings that the stage itself gives when its turn comes."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
