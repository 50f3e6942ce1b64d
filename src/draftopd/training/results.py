"""What a run ends with: acceptance and speedup on held-out prompts as a table, a picture and JSON."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.loggers import MLFlowLogger
from lightning.pytorch.utilities import rank_zero_only
from mlflow import MlflowClient
from omegaconf import DictConfig, OmegaConf
from rich import get_console
from rich.table import Table

from draftopd.console import progress
from draftopd.data.prompts import Prompt
from draftopd.evaluation import measure, plots, stats
from draftopd.evaluation.curves import Curve, Point
from draftopd.trace import Trace
from draftopd.tracking import command, git_commit, machine, versions
from draftopd.training.callbacks import AcceptanceLength
from draftopd.training.datamodule import DraftDataModule
from draftopd.training.module import DraftModule


@dataclass(frozen=True)
class Answer:
    """What one test prompt's blocks came to, by position 1..K."""

    id: str
    set: str
    held: list[int]
    """blocks whose first k drafts held"""
    judged: list[int]
    """blocks that drafted k tokens before the response's end"""

    @classmethod
    def of(cls, prompt: Prompt, trace: Trace) -> "Answer":
        slots = torch.arange(1, trace.drafts.shape[1] + 1)
        held, judged = ((counts[:, None] >= slots).sum(0).tolist() for counts in (trace.accepted, trace.drafted))
        return cls(prompt.id, prompt.set, held, judged)


@dataclass(frozen=True)
class StageResult:
    """What one stage reached on the test prompts."""

    name: str
    start: str | None
    """name of the stage whose weights it started from"""
    checkpoint: str
    run_id: str | None
    decoding: str
    acceptance_lengths: list[float]
    """one a prompt; NaN where the response was a single token"""
    answers: list[Answer]
    """one a prompt"""
    metrics: dict[str, float]
    training_flops: float
    seconds: float
    curve: list[Point]
    """what this stage had cost, and its acceptance length on the validation prompts, at each validation"""


class Parent:
    """The MLflow run above the stages' runs; does nothing without an MLflow logger or off the first process."""

    def __init__(self, config: DictConfig) -> None:
        self.client: MlflowClient | None = None
        self.run_id: str | None = None
        if not config.logger or rank_zero_only.rank:  # type: ignore[attr-defined]
            return
        self.client = MlflowClient(config.logger.tracking_uri)
        experiment = self.client.get_experiment_by_name(config.logger.experiment_name)
        experiment_id = experiment.experiment_id if experiment else None
        if experiment_id is None:
            location = config.logger.artifact_location
            experiment_id = self.client.create_experiment(config.logger.experiment_name, location)
        tags = {"git_commit": git_commit(), "command": command(), "machine": machine()}
        self.run_id = self.client.create_run(experiment_id, run_name=config.name, tags=tags).info.run_id
        self.client.log_text(self.run_id, OmegaConf.to_yaml(config, resolve=True), "config.yaml")
        self.client.log_dict(self.run_id, versions(), "versions.json")

    def copy_fingerprint(self, stage: "StageResult") -> None:
        """The target's, which is first known when a stage has loaded it."""
        if self.client and self.run_id and stage.run_id:
            tags = self.client.get_run(stage.run_id).data.tags
            self.client.set_tag(self.run_id, "target_fingerprint", tags["target_fingerprint"])

    def close(self, status: str) -> None:
        if self.client and self.run_id:
            self.client.set_terminated(self.run_id, status)


@dataclass(frozen=True)
class System:
    """Everything that one stage trains with."""

    config: DictConfig
    module: DraftModule
    data: DraftDataModule
    trainer: L.Trainer
    logger: MLFlowLogger | None


def measure_stage(name: str, start: str | None, checkpoint: str, system: System, seconds: float) -> StageResult:
    """Rolls out the test prompts once, times some of them against plain decoding, and logs both."""
    module, data, test = system.module, system.data, system.config.test
    prompts = data.encoded("test", test.prompts)
    with progress(f"testing {name}", len(prompts) + test.speedup_prompts) as on_done:
        ids = [ids for _, ids in prompts]
        traces = measure.roll(module.target, module.drafter, ids, data.decoding, on_done)
        timed = ids[: test.speedup_prompts]
        speed = measure.speedup(module.target, module.drafter, timed, data.decoding, on_done) if timed else {}
    sets = measure.by_set(traces, [prompt.set for prompt, _ in prompts])
    metrics = {f"{group}/{key}" if group else key: v for group, values in sets.items() for key, v in values.items()}
    watcher = next((c for c in system.trainer.callbacks if isinstance(c, AcceptanceLength)), None)  # type: ignore[attr-defined]
    result = StageResult(
        name=name,
        start=start,
        checkpoint=checkpoint,
        run_id=None if system.logger is None else system.logger.run_id,
        decoding=data.decoding.words,
        acceptance_lengths=[trace.acceptance_length for trace in traces],
        answers=[Answer.of(prompt, trace) for (prompt, _), trace in zip(prompts, traces, strict=True)],
        metrics=metrics | speed,
        training_flops=module.ledger.training_flops,
        seconds=seconds,
        curve=[] if watcher is None else watcher.history,
    )
    if system.logger is not None:
        _log(result, system.logger, module.global_step)
    return result


def _log(result: StageResult, logger: MLFlowLogger, step: int) -> None:
    """Test metrics, and results.json of this run alone: what a comparison of runs starts from."""
    estimate = stats.bootstrap(result.acceptance_lengths)
    interval = {"acceptance_length_low": estimate.low, "acceptance_length_high": estimate.high}
    logger.log_metrics({f"test/{key}": value for key, value in (result.metrics | interval).items()}, step)
    logger.experiment.log_text(logger.run_id, json.dumps({"stages": [asdict(result)]}, indent=1), "results.json")


@rank_zero_only
def show(results: Sequence[StageResult], folder: Path, parent: Parent | None = None) -> None:
    """Prints the table; writes results.json and the picture, and adds them to the parent's MLflow run."""
    console = get_console()
    console.print(_table(results))
    lines = list(_differences(results))
    for line in lines:
        console.print(line)
    document = {"stages": [asdict(r) for r in results], "differences": lines}
    (folder / "results.json").write_text(json.dumps(document, indent=1))
    curves: dict[str | None, Curve] = {}
    for r in results:
        curves[r.name] = Curve(r.name, r.curve).behind(curves.get(r.start))
    figure = plots.curves(list(curves.values()))
    figure.savefig(folder / "acceptance_length.png", dpi=150)
    plots.close(figure)
    if parent and parent.client:
        for name in ("results.json", "acceptance_length.png"):
            parent.client.log_artifact(parent.run_id, str(folder / name))
    console.print(f"picture: {folder / 'acceptance_length.png'}", soft_wrap=True)
    console.print(f"numbers: {folder / 'results.json'}", soft_wrap=True)


def _table(results: Sequence[StageResult]) -> Table:
    count = len(results[0].acceptance_lengths)
    table = Table(title=f"{count} held-out prompts, {results[0].decoding}; τ = acceptance length, bonus included")
    for column in ("stage", "τ [95 %]", "pooled", "speedup", "PFLOPs", "minutes"):
        table.add_column(column, justify="left" if column == "stage" else "right", no_wrap=True)
    for r in results:
        table.add_row(
            r.name,
            str(stats.bootstrap(r.acceptance_lengths)),
            f"{r.metrics['acceptance_length_pooled']:.3f}",
            f"{r.metrics['speedup']:.2f}x" if "speedup" in r.metrics else "-",
            (f"{_before(r, results) / 1e15:.3f}+" if r.start else "") + f"{r.training_flops / 1e15:.3f}",
            f"{r.seconds / 60:.1f}",
        )
    return table


def _differences(results: Sequence[StageResult]):
    """Paired differences of stages that share a start, later minus earlier."""
    for i, late in enumerate(results):
        for early in results[:i]:
            if late.start == early.start or late.start == early.name:
                d = stats.paired(late.acceptance_lengths, early.acceptance_lengths)
                p_value = f"p {'' if d.p_text.startswith('<') else '= '}{d.p_text}, " if d.p_text else ""
                yield f"{late.name} - {early.name}: {d.text('+.3f')}, {p_value}paired over {d.count} prompts"


def _before(result: StageResult, results: Sequence[StageResult]) -> float:
    """Training FLOPs of the stages that a stage started from."""
    start = next((r for r in results if r.name == result.start), None)
    return 0.0 if start is None else start.training_flops + _before(start, results)
