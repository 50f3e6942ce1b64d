"""Evaluates one drafter, or two on the same prompts: rollouts of whole conversations, clocks, the speed model."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from draftopd.checkpoints.native import restore
from draftopd.checkpoints.published import published
from draftopd.console import progress
from draftopd.data.prompts import Prompt, Prompts, continued
from draftopd.data.sources import encode
from draftopd.decoding.settings import Decoding
from draftopd.drafters.base import Drafter
from draftopd.errors import DraftError
from draftopd.evaluation import measure, speed
from draftopd.evaluation.measure import Clock
from draftopd.evaluation.scores import Answers
from draftopd.target.model import Target
from draftopd.trace import Trace


@dataclass(frozen=True)
class Candidate:
    """A drafter under evaluation, and what it did."""

    name: str
    drafter: Drafter
    answers: list[Answers]
    costs: speed.Costs | None
    block_sizes: list[speed.BlockSize]


@dataclass(frozen=True)
class Evaluation:
    target: Target
    decoding: Decoding
    candidates: list[Candidate]
    """one, or two: the drafter and what it is compared with"""
    left_out: int
    """prompts that were too long"""


def evaluate(config: DictConfig) -> Evaluation:
    """Runs a config.

    Raises:
        DraftError: a checkpoint, the prompts or a setting cannot be used.
    """
    target: Target | None = instantiate(config.target) if config.target else None
    first = _open(config.checkpoint, config, target)
    runs = [first] + ([_open(config.against, config, first.target)] if config.against else [])
    decoding = _decoding(first.decoding, config.decoding)
    prompts: Prompts | None = instantiate(config.prompts) if config.prompts else first.prompts
    if prompts is None:
        raise DraftError(f"{config.checkpoint} brings no prompts of its own: give some, prompts=eval/gsm8k for example")
    thinking = first.enable_thinking if config.enable_thinking is None else config.enable_thinking
    reader = _Reader(first.target, thinking, config.max_prompt_length)
    chosen = prompts.split(config.split)[: config.limit]
    asked = _asked(chosen, reader)
    names = ["drafter", "against"]
    traces = [_converse(run, asked, decoding, reader, name) for run, name in zip(runs, names, strict=False)]
    places = _heads([p.set for p, _ in asked], config.speed.prompts)
    timed = [asked[at][1] for at in places]
    turns = _time(runs, timed, decoding)
    candidates = []
    for i, run in enumerate(runs):
        answers = [Answers(p.id, p.set, got) for (p, _), got in zip(asked, traces[i], strict=True)]
        for at, turn in zip(places, turns, strict=True):
            answers[at] = replace(answers[at], fast=turn[i], plain=turn[-1])
        costs, sizes = _model(run, timed[: config.speed.prompts], decoding, config.speed.block_sizes)
        candidates.append(Candidate(names[i], run.drafter, answers, costs, sizes))
    return Evaluation(first.target, decoding, candidates, len(chosen) - len(asked))


def _asked(chosen: Sequence[Prompt], reader: "_Reader") -> list[tuple[Prompt, list[int]]]:
    asked = [(p, ids) for p in chosen if (ids := reader.ids(p)) is not None]
    if not asked:
        raise DraftError(f"each of the {len(chosen)} prompts is longer than max_prompt_length={reader.longest} tokens")
    return asked


@dataclass(frozen=True)
class _Subject:
    target: Target
    drafter: Drafter
    prompts: Prompts | None
    decoding: Decoding
    enable_thinking: bool | None


def _open(name: str, config: DictConfig, target: Target | None) -> _Subject:
    """A drafter from a checkpoint or run, which know their target and prompts, or from a published folder."""
    device = _device(config.device)
    if Path(name).expanduser().is_dir():
        if target is None:
            raise DraftError(f"{name} does not bring its target: give it, target=smollm2_135m for example")
        return _Subject(target.to(device), published(name, target), None, Decoding(), None)
    run = restore(name, config.logger.tracking_uri if config.logger else None, target)
    target, drafter, thinking = run.target.to(device), run.drafter.to(device), run.config.data.batching.enable_thinking
    return _Subject(target, drafter, run.prompts, run.decoding, thinking)


def _device(name: str) -> torch.device:
    try:
        return torch.device(name if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu")
    except RuntimeError as error:
        raise DraftError(f"device={name} is none: auto, cpu, cuda or cuda:1 for example") from error


def _decoding(trained: Decoding, given: DictConfig) -> Decoding:
    values: dict[str, Any] = {name: value for name, value in given.items() if value is not None}  # type: ignore[misc]
    known = {field.name for field in fields(Decoding)}
    assert set(given) <= known, "conf/evaluate.yaml lists the fields of Decoding"
    return replace(trained, **values)


class _Reader:
    """Encodes prompts; leaves out those that are too long."""

    def __init__(self, target: Target, thinking: bool | None, longest: int | None) -> None:
        self.target, self.thinking, self.longest = target, thinking, longest

    def ids(self, prompt: Prompt) -> list[int] | None:
        return encode(prompt, self.target.tokenizer, self.thinking, self.longest)

    def answer(self, trace: Trace) -> str:
        response = trace.tokens[trace.prompt_length :].tolist()
        return str(self.target.tokenizer.decode(response, skip_special_tokens=True))


def _converse(
    run: _Subject, asked: Sequence[tuple[Prompt, list[int]]], decoding: Decoding, reader: _Reader, name: str
) -> list[list[Trace]]:
    """Traces of every prompt, one a turn; a later turn is asked after the target's own answers to the earlier ones."""
    traces: list[list[Trace]] = [[] for _ in asked]
    waiting = [(i, prompt, ids) for i, (prompt, ids) in enumerate(asked)]
    while waiting:
        with progress(f"rolling out {name}", len(waiting)) as on_done:
            done = measure.roll(run.target, run.drafter, [ids for _, _, ids in waiting], decoding, on_done)
        later = []
        for (i, prompt, _), trace in zip(waiting, done, strict=True):
            traces[i].append(trace)
            if prompt.followups:
                following = continued(prompt, reader.answer(trace))
                ids = reader.ids(following)
                later += [(i, following, ids)] if ids is not None else []
        waiting = later
    return traces


def _heads(sets: Sequence[str], each: int) -> list[int]:
    """Places of the first prompts of every set."""
    return [at for at, name in enumerate(sets) if sets[:at].count(name) < each]


def _time(runs: Sequence[_Subject], timed: list[list[int]], decoding: Decoding) -> list[list[Clock]]:
    """For each timed prompt the clocks of all drafters, and last that of plain decoding."""
    if not timed:
        return []
    drafters = [*(run.drafter for run in runs), None]
    with progress("timing", len(timed)) as on_done:
        return measure.clocks(runs[0].target, drafters, timed, decoding, on_done)


def _model(
    run: _Subject, timed: list[list[int]], decoding: Decoding, block_sizes: Sequence[int] | None
) -> tuple[speed.Costs | None, list[speed.BlockSize]]:
    if not timed or (block_sizes is not None and not block_sizes):
        return None, []
    own = run.drafter.block_size
    sizes = sorted({*(range(2, own) if block_sizes is None else block_sizes), own})
    if sizes[0] < 2:
        raise DraftError(f"speed.block_sizes={sizes}: a block counts its anchor, so its size is at least 2")
    with progress("timing block sizes", len(timed)) as on_done:
        return speed.table(run.target, run.drafter, timed, decoding, sizes, on_done)
