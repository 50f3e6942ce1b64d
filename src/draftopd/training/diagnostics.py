"""Callbacks that explain a run: where drafts are cut, how far drafter and target are apart, what the drafter writes.

They look at a fixed small number of texts, draw no random numbers, and add nothing to the ledger's FLOPs. Of several
processes the first one's rollouts are explained.
"""

import logging
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_only

from draftopd.checkpoints.published import default_layout, write
from draftopd.console import say, status
from draftopd.decoding import distributed
from draftopd.decoding.free_running import free_running
from draftopd.errors import DraftError
from draftopd.evaluation import run_plots
from draftopd.evaluation.diagnosis import Diagnosis, diagnose
from draftopd.evaluation.text_quality import Quality, quality
from draftopd.publishing.asking import ask
from draftopd.publishing.audit import Audit, audit, from_accepted, request
from draftopd.trace import Rollout
from draftopd.training.callbacks import Observed, data_of, log, run_of
from draftopd.training.module import DraftModule
from draftopd.values.checked import checked
from draftopd.values.types import Count, Natural, NonNegative, Positive

log_lines = logging.getLogger(__name__)


@checked
class Diagnostics(L.Callback):
    """Every rollout phase explained, as metrics `rollout/...` and one picture at the end; `val/...` at validations.

    Args:
        texts, rows: responses, and drafts of them, on which drafter and target are compared.
    """

    def __init__(self, observed: Observed, texts: Count = 8, rows: Count = 512) -> None:
        self.observed, self.texts, self.rows = observed, texts, rows
        self.history: dict[str, list[Diagnosis]] = {"rollout": [], "val": []}
        self.staleness: list[float] = []

    def state_dict(self) -> dict[str, Any]:
        history = {name: [vars(d) for d in phases] for name, phases in self.history.items()}
        return history | {"staleness": self.staleness.copy()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history = {name: [Diagnosis(**d) for d in state_dict[name]] for name in self.history}
        self.staleness = state_dict.get("staleness", [])  # older checkpoints have none

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.staleness = []
        fresh = [r for r in data_of(trainer).results if r.trace.drafter_step == trainer.global_step]
        self._phase("rollout", fresh, trainer, pl_module)  # not again where its traces are reused

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if data_of(trainer).results and batch:
            drafted_at = torch.cat([micro.drafter_step[micro.drafter_step >= 0] for micro in batch]).tolist()
            self.staleness += [trainer.global_step - sum(drafted_at) / len(drafted_at)] if drafted_at else []

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.staleness:
            log(trainer, {"rollout/staleness": sum(self.staleness) / len(self.staleness)})

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.sanity_checking:
            self._phase("val", [Rollout(t) for t in self.observed.traces if len(t.anchors)], trainer, pl_module)

    def _phase(self, name: str, results: list[Rollout], trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, DraftModule)
        with module.ledger.timed("diagnose"), distributed.whole(module.drafter):
            if not results:
                return
            sizes = {"texts": self.texts, "rows": self.rows, "step": trainer.global_step}
            phase = diagnose(module.target, module.drafter, results, **sizes)
        self.history[name].append(phase)
        log(trainer, {f"{name}/{key}": value for key, value in phase.metrics().items()})
        if name == "rollout" and data_of(trainer).verified:
            log(trainer, {"rollout/acceptance_length": phase.acceptance_length})

    @rank_zero_only
    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        tracked = run_of(trainer)
        titles = {"rollout": "rollout phases", "val": "validations"}
        name = "rollout" if self.history["rollout"] else "val"
        if tracked is not None and self.history[name]:
            tracked.log_figure(run_plots.diagnosis(self.history[name], titles[name]), "diagnostics.png")


@checked
class OwnText(L.Callback):
    """How the text that the drafter writes by itself degenerates, beside the target's own text for the same prompts.

    At the start of every epoch and at the end of training, by position in the response: -log p of its tokens under the
    target, and the share of tokens that end a repeated 4-gram. Metrics `own_text/...`, and one picture at the end.

    Args:
        prompts: validation prompts.
        bins: parts of the longest response that positions are averaged over.
    """

    def __init__(self, prompts: Count = 16, bins: Count = 8) -> None:
        self.prompts, self.bins = prompts, bins
        self.history: list[tuple[int, Quality]] = []
        self.reference: Quality | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"history": [(step, asdict(quality)) for step, quality in self.history]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history = [(step, Quality(**values)) for step, values in state_dict["history"]]

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._look(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._look(trainer, pl_module)
        tracked = run_of(trainer)
        if tracked is not None and self.reference is not None:
            tracked.log_figure(run_plots.own_text(self.history, self.reference), "own_text.png")

    def _look(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, DraftModule)
        data = data_of(trainer)
        prompts, longest = [ids for _, ids in data.encoded("val", self.prompts)], data.decoding.max_new_tokens
        with module.ledger.timed("diagnose"), distributed.whole(module.drafter):
            if self.reference is None:
                texts = data.written("val", len(prompts))
                self.reference = quality(module.target, [texts[i] for i in range(len(prompts))], longest, self.bins)
                log(trainer, _metrics("own_text/target_", self.reference))
            results = free_running(module.target, module.drafter, prompts, data.decoding)
            seen = quality(module.target, [r.trace for r in results], longest, self.bins)
        self.history.append((trainer.global_step, seen))
        log(trainer, _metrics("own_text/", seen))


def _metrics(prefix: str, seen: Quality) -> dict[str, float]:
    """Means of all tokens, and by the first position of each bin."""
    out = {}
    for name, values in (("nll", seen.nll), ("repeated", seen.repeated)):
        out[prefix + name] = seen.mean(name)
        places = zip(range(0, len(values) * seen.width, seen.width), values, seen.tokens, strict=True)
        out |= {f"{prefix}{name}_from/{place}": value for place, value, count in places if count}
    return out


@checked
class ServedAudit(L.Callback):
    """Exports the drafter, serves it, and holds what the engine accepts against redraft's own chain, step by step.

    Metrics `audit/...`. The target's text is greedy here, whatever the run's decoding is.

    Args:
        every: epochs (rollout phases) between audits; 0 = none.
        prompts: validation prompts.
        command: starts an engine; its words may hold names in braces (`publishing/asking.py`).
        on_difference: warn, or stop the run, where no tie explains a difference, or the engine does not answer.
        layout: of the exported folder; None = the default of this kind of drafter.
        tie: difference of logits up to which two tokens are a tie; None = 0.001 in float32, 0.25 in bfloat16.
        patience: seconds for the engine to start, and for each of its texts.

    Raises:
        DraftError: it is to stop the run, and has a reason.
    """

    def __init__(
        self,
        observed: Observed,
        every: Natural = 0,
        prompts: Count = 20,
        command: list[str] | None = None,
        on_difference: Literal["warn", "stop"] = "warn",
        layout: str | None = None,
        tie: NonNegative | None = None,
        patience: Positive = 1800.0,
    ) -> None:
        if every and not command:
            raise DraftError("callbacks.served_audit.every needs a command that serves the drafter: set its command")
        self.observed, self.every, self.prompts, self.command = observed, every, prompts, command or []
        self.on_difference, self.layout, self.tie, self.patience = on_difference, layout, tie, patience

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, DraftModule)
        if not self.every or (trainer.current_epoch + 1) % self.every:
            return
        fault = None
        with pl_module.ledger.timed("audit"), distributed.whole(pl_module.drafter):
            if trainer.is_global_zero:
                try:
                    fault = self._fault(trainer, self._audit(trainer, pl_module))
                except DraftError as error:
                    fault = f"the served audit could not be made: {error}"
        fault = trainer.strategy.broadcast(fault)  # the others wait for it
        if fault and self.on_difference == "stop":
            raise DraftError(fault)
        if fault and trainer.is_global_zero:
            log_lines.warning(fault)

    def _audit(self, trainer: L.Trainer, module: DraftModule) -> Audit:
        data, target, drafter = data_of(trainer), module.target, module.drafter
        prompts = [ids for _, ids in data.encoded("val", self.prompts)]
        output = Path(trainer.default_root_dir)
        output.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix="served-audit-") as scratch:
            folder = Path(scratch, "drafter")
            write(drafter, folder, self.layout or default_layout(drafter), target)
            asked = request(target, drafter, folder, prompts, data.decoding.max_new_tokens)
            answers = ask(self.command, asked, self.patience, output / "served_audit.log")
        return audit(target, drafter, prompts, from_accepted(prompts, answers), self.tie)

    def _fault(self, trainer: L.Trainer, found: Audit) -> str | None:
        counts = {"same": found.same, "ties": len(found.ties), "wrong": len(found.wrong)}
        shares = {f"audit/{name}": count / found.responses for name, count in counts.items()}
        log(trainer, shares | {"audit/tau": found.tau, "audit/tau_served": found.tau_served})
        say(", ".join(filter(None, (status.where, f"served audit: {found.summary}"))))
        for tie in found.ties:
            log_lines.info(tie)
        if found.passed:
            return None
        more = f"; and {len(found.wrong) - 1} more" if len(found.wrong) > 1 else ""
        return f"the exported drafter is not served as it was trained: {found.summary}; {found.wrong[0]}{more}"
