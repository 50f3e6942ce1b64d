"""What does an epoch on redrafted traces cost beside an epoch of SFT on the same texts, with as many blocks?

Both are epochs as `fit` trains them: `data=on_policy traces=redrafts` drafts along the stored texts and then trains on
all drafts, `data=sft` trains on random anchors. The drafter's weights are put back after every epoch, so that all
rounds have the same traces, and the same FLOPs.
"""

import argparse
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from tempfile import TemporaryDirectory
from typing import Any

import lightning as L
from benchmarks.bench import rounds_of, spread
from benchmarks.train_step import counted, fit, fit_config, module
from hydra.utils import instantiate

from draftopd.checkpoints.native import Restored
from draftopd.data.prompts import Prompt
from draftopd.data.texts import TextCache
from draftopd.errors import DraftError
from draftopd.objectives.rows import flatten
from draftopd.trace import ReplayBatch, Trace
from draftopd.training.datamodule import DraftDataModule, candidates
from draftopd.training.module import DraftModule

NOTES = {
    "sft": "random anchors, the same number in every text: that which comes nearest to on_policy's blocks",
    "on_policy": "the current weights redraft along the texts, then steps on these blocks, all drafts supervised; "
    "on_policy_reuse_N: N epochs in a row train on the same traces",
    "texts": "the target's own, with features, on disk before the rounds; writing them is not timed",
    "seconds": "of one epoch, the redraft included: everything between the start and the end of `fit`, which validates "
    "nothing here",
    "phases": "of these seconds: `redraft`, and `train`, the steps without the making of their batches",
    "flops": "the ledger's training FLOPs of one epoch. A redraft is a forward of the drafter, a step a forward and a "
    "backward: without reuse the ratio is about 4/3 or more",
    "counts": "of one epoch; rows are supervised drafts, labelled those that have a token of the text: drafts of "
    "on_policy may lie after the text's end",
    "ratios": "on_policy / sft of the same round; above 1 where on_policy is dearer",
}


@dataclass(frozen=True)
class OneSplit:
    """The same prompts as train, val and test."""

    prompts: list[Prompt]
    fingerprint: str = ""

    def split(self, name: str) -> list[Prompt]:
        return self.prompts


@dataclass(frozen=True)
class Kind:
    data: DraftDataModule
    epochs: int = 1
    """of one fit; where traces are reused, all train on those of the first"""


class FitClock(L.Callback):
    def on_fit_start(self, *_: Any) -> None:
        self.start = time.perf_counter()

    def on_train_end(self, *_: Any) -> None:
        self.seconds = time.perf_counter() - self.start


class Counts(L.Callback):
    """What a fit trains on."""

    def __init__(self) -> None:
        self.found: Counter[str] = Counter()

    def on_train_batch_start(self, trainer: L.Trainer, step: Any, batch: list[ReplayBatch], index: int) -> None:
        self.found["steps"] += 1
        for micro in batch:
            self.found.update(counted(micro) | {"labelled": int((flatten(micro, None).text >= 0).sum())})


def measure(
    run: Restored, prompts: Sequence[Sequence[int]], args: argparse.Namespace, save: Callable[[dict[str, Any]], None]
) -> None:
    """On training prompts of its own, enough for several steps.

    Raises:
        DraftError: the drafter has too few.
    """
    with TemporaryDirectory(prefix="epoch-") as folder:
        # an epoch of each kind that is not timed: it writes the texts, and says how many blocks SFT needs
        kinds, counts = prepare(run, args, folder)
        batching = run.config.data.batching
        settings = {
            "batch_size": batching.batch_size,
            "micro_batch_size": batching.micro_batch_size,
            "objective": args.epoch_objective,
            "precision": precision(run),
            "sft_anchors": kinds["sft"].data.num_anchors,  # type: ignore[attr-defined]
        }
        rounds: list[dict[str, Any]] = []
        for number in rounds_of(args.epoch_rounds, "epochs"):
            rounds.append(one_round(run, kinds, args.epoch_objective, number))
            found = {"rounds": rounds, "summary": summary(rounds)}
            save({"notes": NOTES, "settings": settings, "counts": counts, **found})


def prepare(run: Restored, args: argparse.Namespace, folder: str) -> tuple[dict[str, Kind], dict[str, dict[str, int]]]:
    """The kinds of epoch, by name, and what one epoch of each trains on; the texts lie in `folder` then."""
    size, asked = run.config.data.batching.batch_size, [prompt for prompt, _ in run.asked("train", args.epoch_texts)]
    if len(asked) < args.epoch_texts:
        raise DraftError(f"the drafter's train split has {len(asked)} prompts: lower --epoch-texts={args.epoch_texts}")
    # SFT leaves out the texts of an unfinished last step, on-policy data do not
    prompts = asked[: len(asked) // size * size or None]
    given = {
        "prompts": OneSplit(prompts),
        "cache": TextCache(folder),
        "decoding": replace(run.decoding, max_new_tokens=args.tokens),
        "batching": instantiate(run.config.data.batching),
    }
    kinds: dict[str, Kind] = {}
    for reuse in args.epoch_reuse:
        config = fit_config("data=on_policy", "traces=redrafts", f"traces.reuse={reuse}")
        data = instantiate(config.data)(**given, prompts_per_epoch=len(prompts))
        kinds[f"on_policy_reuse_{reuse}" if reuse > 1 else "on_policy"] = Kind(data, reuse)
    counts = {name: counts_of(run, kind, args.epoch_objective) for name, kind in kinds.items()}
    traces = [r.trace for r in next(iter(kinds.values())).data.results]
    kinds["sft"] = Kind(instantiate(fit_config("data=sft").data)(**given, num_anchors=as_many(traces)))
    return kinds, counts | {"sft": counts_of(run, kinds["sft"], args.epoch_objective)}


def as_many(traces: Sequence[Trace]) -> int:
    """Anchors of each text with which the texts come nearest to as many blocks as these traces have."""
    places, blocks = [len(candidates(t)) for t in traces], sum(len(t.anchors) for t in traces)
    return min(range(1, max(places) + 1), key=lambda count: abs(sum(min(count, p) for p in places) - blocks))


def precision(run: Restored) -> Any:
    """That the drafter was trained with."""
    return run.config.trainer.precision


def train(run: Restored, kind: Kind, objective: str, callback: L.Callback) -> DraftModule:
    step = module(run.target, run.drafter, objective)
    fit(step, kind.data, callback, kind.epochs, precision(run))
    return step


def counts_of(run: Restored, kind: Kind, objective: str) -> dict[str, int]:
    counts = Counts()
    train(run, kind, objective, counts)
    return {name: count // kind.epochs for name, count in counts.found.items()}


def one_round(run: Restored, kinds: dict[str, Kind], objective: str, number: int) -> dict[str, Any]:
    names = list(kinds)
    shift, done = number % len(names), {}
    for name in names[shift:] + names[:shift]:
        clock, epochs = FitClock(), kinds[name].epochs
        ledger = train(run, kinds[name], objective, clock).ledger
        done[name] = {
            "seconds": clock.seconds / epochs,
            "phases": {part: ledger.seconds[part] / epochs for part in ("redraft", "train") if part in ledger.seconds},
            "flops": ledger.training_flops / epochs,
        }
    return {
        "order": list(done),
        "systems": {name: done[name] for name in names},
        "ratios": {
            f"{name}_{what}": done[name][what] / done["sft"][what]
            for name in names
            if name != "sft"
            for what in ("seconds", "flops")
        },
    }


def summary(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Median and quartiles over rounds; FLOPs do not change from round to round."""
    systems = rounds[0]["systems"]
    return {
        "rounds": len(rounds),
        "ratios": {name: spread([r["ratios"][name] for r in rounds]) for name in rounds[0]["ratios"]},
        "seconds": {name: spread([r["systems"][name]["seconds"] for r in rounds]) for name in systems},
        "flops": {name: system["flops"] for name, system in systems.items()},
    }
