"""Callbacks that explain a run: where drafts are cut, how far drafter and target are apart, what the drafter writes.

They look at a fixed small number of texts, draw no random numbers, and add nothing to the ledger's FLOPs. Of several
processes the first one's rollouts are explained.
"""

from dataclasses import asdict
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_only

from draftopd.decoding import distributed
from draftopd.decoding.free_running import free_running
from draftopd.evaluation import run_plots
from draftopd.evaluation.diagnosis import Diagnosis, diagnose
from draftopd.evaluation.text_quality import Quality, quality
from draftopd.trace import Rollout
from draftopd.training.callbacks import Observed, data_of, log, run_of
from draftopd.training.module import DraftModule
from draftopd.values.checked import checked
from draftopd.values.types import Count


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
