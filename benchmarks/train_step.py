"""What does an optimizer step cost? SFT beside Draft-OPD, as many blocks along the same responses, whole vocabulary."""

import argparse
import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import lightning as L
import torch
from benchmarks.bench import full_head, rounds_of, spread
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor

from draftopd.blocks import Tails
from draftopd.checkpoints.native import Restored
from draftopd.command import CONFIG_DIR
from draftopd.decoding.rollout import rollout
from draftopd.decoding.settings import Decoding
from draftopd.drafters.base import Drafter
from draftopd.target.model import Target
from draftopd.trace import ReplayBatch, Rollout, collate_rollouts, text_blocks
from draftopd.training.datamodule import Steps, candidates
from draftopd.training.module import DraftModule

RATIOS = {  # of seconds of a step
    "opd_step_vs_sft_step": ("opd", "sft"),
    "opd_replay_vs_sft": ("opd_replay", "sft"),
    "opd_replay_vs_opd": ("opd_replay", "opd"),
    "opd_replay_vs_sft_reading": ("opd_replay", "sft_reading"),
}
NOTES = {
    "sft": "cross-entropy along the target's texts, their features at hand",
    "opd": "draft_opd on blocks of rollouts, with what their verifications computed: no target forward",
    "sft_reading": "sft, where the target reads the texts in every step",
    "opd_replay": "opd, where Target.replay computes again in every step what the verifications knew",
    "step": "forward, backward, clipping and AdamW, logging included, as Lightning runs DraftModule; one micro-batch",
    "replay_tokens": "tokens that the target reads in Target.replay, counted at its door; text: committed tokens, "
    "tails: rejected drafts that judge a draft behind them",
}


@dataclass(frozen=True)
class Work:
    """Responses that were rolled out, and as many random anchors in each as it has blocks."""

    rolled: list[Rollout]
    anchors: list[Tensor]
    features: list[Tensor]
    """[T, F] of each text"""
    hidden: list[Tensor]
    """[T, D] the target's last hidden states"""
    before_norm: list[Tensor]
    """[T, D] and what its final norm makes them of"""

    def sft(self, features: bool = True, hidden: bool = False) -> ReplayBatch:
        traces = [r.trace for r in self.rolled]
        slots = self.rolled[0].trace.drafts.shape[1]
        given = (self.features if features else (), self.hidden if hidden else ())
        return text_blocks(traces, self.anchors, slots, *given)

    def opd(self, kept: bool = True) -> ReplayBatch:
        return collate_rollouts(self.rolled if kept else [Rollout(r.trace) for r in self.rolled])


def prepare(target: Target, drafter: Drafter, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> Work:
    rolled = rollout(target, drafter, prompts, Decoding(max_new_tokens), keep_states=True)
    rolled = [r for r in rolled if len(r.trace.anchors)]
    layers = target.shape.num_layers
    draw, size = torch.Generator().manual_seed(0), target.shape.hidden_size
    anchors, features = [], []
    for r in rolled:
        places = candidates(r.trace)
        anchors.append(places[torch.randperm(len(places), generator=draw)[: len(r.trace.anchors)].sort().values])
        tokens = r.trace.tokens[None].to(target.device)
        features.append(target.read(tokens, (*drafter.layer_ids, layers, layers - 1))[1][0].cpu())
    parts = [text.split([text.shape[1] - 2 * size, size, size], 1) for text in features]
    return Work(rolled, anchors, *(list(column) for column in zip(*parts, strict=True)))


@cache
def fit_config(*words: str) -> DictConfig:
    """`conf/fit.yaml` with these words of the command line; to be read only."""
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        return compose("fit", overrides=list(words))


def module(target: Target, drafter: Drafter, objective: str, **options: Any) -> DraftModule:
    """As `conf/` builds it with this objective, and with these options of `DraftModule`."""
    config = fit_config(f"objective={objective}")
    made = instantiate(config.module)
    return made(target=target, drafter=drafter, objective=instantiate(config.objective), **options)


class GivenSteps(L.LightningDataModule):
    """One epoch of these optimizer steps, and nothing to validate on."""

    epochs_per_phase = 1

    def __init__(self, steps: Sequence[list[ReplayBatch]]) -> None:
        super().__init__()
        self.steps = steps

    def encoded(self, split: str) -> list[Any]:
        return []

    def val_dataloader(self) -> list[Any]:
        return []

    def train_dataloader(self) -> Steps:
        return Steps(lambda step: self.steps[step], len(self.steps))


class Clock(L.Callback):
    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_batch_start(self, *_: Any) -> None:
        self.start = settled()

    def on_train_batch_end(self, *_: Any) -> None:
        self.seconds.append(settled() - self.start)


def settled() -> float:
    """The time when a GPU has done all that it was given."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def run_steps(module: DraftModule, steps: Sequence[ReplayBatch], precision: Any = "32-true") -> list[float]:
    """Seconds of one optimizer step on each batch, one after the other; the drafter's weights are put back."""
    clock = Clock()
    fit(module, GivenSteps([[batch] for batch in steps]), clock, precision=precision)
    return clock.seconds


def fit(
    module: DraftModule, data: L.LightningDataModule, callback: L.Callback, epochs: int = 1, precision: Any = "32-true"
) -> None:
    """Trains without validation; the drafter's weights are put back."""
    before, device = copy.deepcopy(module.drafter.state_dict()), module.target.device
    trainer = L.Trainer(
        accelerator="gpu" if device.type == "cuda" else "cpu",
        devices=1,
        precision=precision,
        max_epochs=epochs,
        reload_dataloaders_every_n_epochs=1,
        limit_val_batches=0,
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        inference_mode=False,
    )
    trainer.fit(module, datamodule=data)
    module.to(device)  # Lightning has moved it to the CPU
    module.drafter.load_state_dict(before)


def measure(
    run: Restored, prompts: Sequence[Sequence[int]], args: argparse.Namespace, save: Callable[[dict[str, Any]], None]
) -> None:
    target, drafter = run.target, full_head(run.drafter)
    work = prepare(target, drafter, prompts[: args.step_texts], args.tokens)
    sft, opd = module(target, drafter, "cross_entropy"), module(target, drafter, "draft_opd")
    ways = {
        "sft": (sft, work.sft()),
        "opd": (opd, work.opd()),
        "sft_reading": (sft, work.sft(features=False)),
        "opd_replay": (opd, work.opd(kept=False)),
    }
    counts = {name: counted(batch) for name, (_, batch) in ways.items()}
    tokens = replay_tokens(target, drafter, work.opd(kept=False))
    rounds: list[dict[str, Any]] = []
    for number in rounds_of(args.rounds, "training steps"):
        names = list(ways)
        shift = number % len(names)
        # the first step of a fit is not counted: it makes the optimizer's state
        order = names[shift:] + names[:shift]
        done = {name: run_steps(ways[name][0], [ways[name][1]] * (args.steps + 1))[1:] for name in order}
        middle = {name: spread(seconds)["median"] for name, seconds in done.items()}
        rounds.append(
            {
                "order": order,
                "seconds": {name: done[name] for name in names},
                "ratios": {name: middle[a] / middle[b] for name, (a, b) in RATIOS.items()},
            }
        )
        save({"notes": NOTES, "batch": counts, "replay_tokens": tokens, "rounds": rounds, "summary": summary(rounds)})


def summary(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "rounds": len(rounds),
        "ratios": {name: spread([r["ratios"][name] for r in rounds]) for name in rounds[0]["ratios"]},
        "seconds": {
            name: spread([spread(r["seconds"][name])["median"] for r in rounds]) for name in rounds[0]["seconds"]
        },
    }


def counted(batch: ReplayBatch) -> dict[str, int]:
    return {
        "texts": len(batch.tokens),
        "tokens": int(batch.lengths.sum()),
        "blocks": int((batch.drafted > 0).sum()),
        "rows": int(batch.valid.sum()),
    }


def replay_tokens(target: Target, drafter: Drafter, batch: ReplayBatch) -> dict[str, float]:
    """What `Target.replay` reads of a batch, beside the committed tokens and the tails that it needs."""
    read: list[int] = []
    hook = target.body.register_forward_pre_hook(
        lambda _module, _args, given: read.append(given["input_ids"].numel()), with_kwargs=True
    )
    try:
        target.replay(batch.to(target.device), drafter.layer_ids)
    finally:
        hook.remove()
    text = int(batch.lengths.sum())
    tails = int((batch.drafted - batch.accepted - 1).clamp(min=0).sum())
    packed = Tails(batch).block
    padding = batch.tokens.numel() - text + int((packed < 0).sum())
    return {
        "text": text,
        "tails": tails,
        "read": sum(read),
        "of_them_padding": padding,
        "real_vs_text_and_tails": (sum(read) - padding) / (text + tails),
        "padded_vs_text_and_tails": sum(read) / (text + tails),
    }
