"""What watches a run: callbacks compute acceptance length and speedup on held-out prompts and log them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.loggers.logger import Logger
from rich import get_console

from draftopd.console import progress, say, status
from draftopd.decoding import distributed
from draftopd.drafters.base import Drafter
from draftopd.errors import DraftError
from draftopd.evaluation import diagnosis, measure, plots, run, scores
from draftopd.evaluation.curves import Point
from draftopd.evaluation.scores import Answer
from draftopd.evaluation.trace_page import trace_page
from draftopd.trace import Rollout, Trace
from draftopd.tracking.pages import PFLOPS, TAU_VAL
from draftopd.tracking.run import Run
from draftopd.training.datamodule import DraftDataModule
from draftopd.training.module import DraftModule
from draftopd.values.checked import checked
from draftopd.values.types import Count, Natural


@dataclass
class Start:
    """The drafter that a run starts from, tested beside its own."""

    make: Callable[[], Drafter]
    answers: list[Answer]
    """those that are known; tested anew where these are to other prompts"""


@dataclass
class Observed:
    """What the callbacks of one run hand to each other."""

    traces: list[Trace] = field(default_factory=list)
    """of the last validation"""
    history: list[Point] = field(default_factory=list)
    """one per validation"""
    answers: list[Answer] = field(default_factory=list)
    """to the test prompts"""
    start: Start | None = None
    """None where the test leaves it out"""
    before: float | None = 0.0
    """training FLOPs of what the run starts from; None = not known"""


class RunLogger(Logger):
    """Lightning's way to a tracked run. Who starts the run ends it, after the test: Lightning would end it before."""

    run: Run | None = None
    """None in other processes than the first"""

    @property
    def name(self) -> None:
        return None

    @property
    def version(self) -> str | None:
        return self.run.id if self.run is not None else None

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if self.run is not None:
            self.run.log_metrics(metrics, step or 0)

    def log_hyperparams(self, *_args: object) -> None:
        """The run's header has them."""


def run_of(trainer: L.Trainer) -> Run | None:
    return next((logger.run for logger in trainer.loggers if isinstance(logger, RunLogger)), None)


def data_of(trainer: L.Trainer) -> DraftDataModule:
    assert isinstance(trainer.datamodule, DraftDataModule)  # type: ignore[attr-defined]
    return trainer.datamodule  # type: ignore[attr-defined]


def log(trainer: L.Trainer, values: dict[str, float]) -> None:
    """Into all loggers, what is known in the first process or equal in all."""
    for logger in trainer.loggers:
        logger.log_metrics(values, trainer.global_step)


class ProgressBar(RichProgressBar):
    """Lightning's bar with the stage, the epoch of how many, and the time left; in a terminal only."""

    @property
    def is_enabled(self) -> bool:
        return super().is_enabled and get_console().is_interactive

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        values = {k.removeprefix("train/"): v for k, v in super().get_metrics(trainer, pl_module).items()}
        values.pop("v_num", None)
        return values | ({"left": status.time_left} if status.time_left else {})

    def _get_train_description(self, current_epoch: int) -> str:
        return status.where


@checked
class AcceptanceLength(L.Callback):
    """Acceptance on held-out prompts: at every validation, and by rollouts on the test prompts when training has ended.

    Args:
        limit, test_limit: validation and test prompts; None = all of the split, and 0 test prompts = no test.
        test_redraft: the test redrafts texts that the target has written once, as validation does; no rollouts.

    Raises:
        DraftError: in a test, test_redraft with sampled drafts or conversations.
    """

    def __init__(
        self,
        observed: Observed,
        limit: Count | None = None,
        test_limit: Natural | None = None,
        test_redraft: bool = False,
    ) -> None:
        self.observed, self.limit = observed, limit
        self.test_limit, self.test_redraft = test_limit, test_redraft

    def state_dict(self) -> dict[str, Any]:
        return {"history": [vars(point) for point in self.observed.history]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.observed.history = [Point.read(saved) for saved in state_dict["history"]]

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, DraftModule)
        if trainer.sanity_checking:
            return
        data = data_of(trainer)
        prompts = data.encoded("val", self.limit)
        with progress("validating", len(prompts), said=False) as on_done, pl_module.ledger.timed("validate"):
            if data.decoding.samples_drafts:
                ids = [ids for _, ids in prompts]
                self.observed.traces = measure.roll(pl_module.target, pl_module.drafter, ids, data.decoding, on_done)
            else:  # the same traces, and the target verifies nothing
                self.observed.traces = _redrafted(data, pl_module.drafter, "val", len(prompts), on_done)
        if not any(len(trace.anchors) for trace in self.observed.traces):
            raise DraftError("every validation response is a single token: nothing was drafted; take other prompts")
        for name, values in measure.by_set(self.observed.traces, [p.set for p, _ in prompts]).items():
            prefix = f"val/{name}/" if name else "val/"
            # every process has all traces, so there is nothing to reduce
            pl_module.log_dict({prefix + key: value for key, value in values.items()}, batch_size=1)
        flops, tau = pl_module.ledger.training_flops, values["acceptance_length"]
        pl_module.log("val/training_flops", flops, batch_size=1)
        pl_module.log_dict({TAU_VAL: tau, PFLOPS: (flops + (self.observed.before or 0.0)) / 1e15}, batch_size=1)
        pl_module.log("tau", tau, prog_bar=True, logger=False, batch_size=1)
        costs = pl_module.budget.costs(pl_module.ledger)
        self.observed.history.append(Point(**costs, acceptance_length=tau))
        spent = f"{costs['flops']:.3g} FLOPs, {costs['minutes']:.1f} min"
        say(", ".join(filter(None, (status.where, f"τ {tau:.3f} on validation prompts", spent, status.time_left))))

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """By the functions of `python -m draftopd.evaluate`, later turns of conversations included."""
        assert isinstance(pl_module, DraftModule)
        data, start = data_of(trainer), self.observed.start
        self.observed.answers = self._answers(data, pl_module.drafter, "testing")
        if start is not None and not scores.same_prompts(start.answers, self.observed.answers):
            start.answers = self._answers(data, start.make(), "testing its start")
        pl_module.log_dict(scores.metrics(scores.score(self.observed.answers)), batch_size=1)

    def _answers(self, data: DraftDataModule, drafter: Drafter, title: str) -> list[Answer]:
        target, asked = data.module.target, data.encoded("test", self.test_limit)
        if not self.test_redraft:
            ids_of = run.encoder(target, data.batching.enable_thinking, data.batching.max_prompt_length)
            return run.answer(target, drafter, asked, data.decoding, ids_of, title)
        if any(prompt.followups for prompt, _ in asked):
            raise DraftError("test.redraft=true knows no later turns of conversations: set it to false")
        with progress(title, len(asked)) as on_done:
            traces = _redrafted(data, drafter, "test", len(asked), on_done)
        return run.answers(asked, [[trace] for trace in traces])


def _redrafted(data: DraftDataModule, drafter: Drafter, split: str, count: int, on_done: measure.Done) -> list[Trace]:
    """Along the target's texts of the first prompts of a split."""
    texts = data.written(split, count)
    stored = [Rollout(texts[i], data.stored(texts, i)[0]) for i in range(count)]
    return measure.redrafted(data.module.target, drafter, stored, data.decoding, on_done)


@checked
class Speedup(L.Callback):
    """Tokens per second against plain decoding of the same target in the same process, on test prompts.

    Args:
        prompts: test prompts that are timed, one at a time; 0 = do not measure.
    """

    def __init__(self, observed: Observed, prompts: Natural = 8) -> None:
        self.observed, self.prompts = observed, prompts

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, DraftModule)
        data, answers = data_of(trainer), self.observed.answers
        asked = data.encoded("test", len(answers))
        places = range(min(self.prompts, len(asked)))
        (self.observed.answers,) = run.time_answers(
            pl_module.target, [pl_module.drafter], asked, [answers], data.decoding, places
        )
        if trainer.is_global_zero:
            values = scores.metrics(scores.score(self.observed.answers))
            log(trainer, {name: value for name, value in values.items() if scores.is_speed(name)})


@checked
class TraceLog(L.Callback):
    """Examples of traces, block by block, and where drafts are rejected, as artifacts.

    Args:
        examples: traces of the last validation that are shown.
    """

    def __init__(self, observed: Observed, examples: Natural = 8) -> None:
        self.observed, self.examples = observed, examples

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, DraftModule)
        shown = [trace for trace in self.observed.traces if len(trace.anchors)][: self.examples]
        if not shown or not trainer.loggers:
            return
        # every process takes part
        with pl_module.ledger.timed("diagnose"), distributed.whole(pl_module.drafter):
            sides = [diagnosis.probabilities(pl_module.target, pl_module.drafter, trace) for trace in shown]
        tracked = run_of(trainer)
        if tracked is not None:
            tracked.log_text(trace_page(shown, pl_module.target.tokenizer, sides).html, "traces/examples.html")
            tracked.log_figure(plots.rejections(self.observed.traces), "traces/rejections.png")
