"""Puts drafters to the test: rollouts of whole conversations, clocks, the speed model; and the command's config."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from draftopd.checkpoints.native import restore
from draftopd.checkpoints.published import published
from draftopd.console import progress
from draftopd.data.prompts import Prompt, Prompts, continued, digest, fingerprint
from draftopd.data.sources import encode, encode_all
from draftopd.decoding.settings import Decoding
from draftopd.drafters.base import Drafter
from draftopd.errors import DraftError
from draftopd.evaluation import measure, speed
from draftopd.evaluation.metrics import Counts
from draftopd.evaluation.results import Result, Results, distinct, place
from draftopd.evaluation.scores import Answer
from draftopd.target.model import Target
from draftopd.trace import Trace

log = logging.getLogger(__name__)
FITTING = 32  # validation prompts on which cuts of blocks are fitted
Encode = Callable[[Prompt], list[int] | None]
"""token ids of a prompt; None where it is too long"""
Asked = tuple[Prompt, list[int]]
"""a prompt and its token ids"""


def encoder(target: Target, enable_thinking: bool | None, max_length: int | None) -> Encode:
    return lambda prompt: encode(prompt, target.tokenizer, enable_thinking, max_length)


def answer(
    target: Target, drafter: Drafter, asked: Sequence[Asked], decoding: Decoding, ids_of: Encode | None, title: str
) -> list[Answer]:
    """Rolls out every prompt; a later turn of a conversation follows the target's own answers to the earlier ones.

    Args:
        ids_of: encodes later turns; None = first turns only.
    """
    responses: list[list[Trace]] = [[] for _ in asked]
    waiting = list(enumerate(asked))
    while waiting:
        with progress(title, len(waiting)) as on_done:
            traces = measure.roll(target, drafter, [ids for _, (_, ids) in waiting], decoding, on_done)
        later = []
        for (i, (prompt, _)), trace in zip(waiting, traces, strict=True):
            responses[i].append(trace)
            if prompt.followups and ids_of is not None:
                text = target.tokenizer.decode(trace.tokens[trace.prompt_length :].tolist(), skip_special_tokens=True)
                following = continued(prompt, str(text))
                later.append((i, following, ids_of(following)))
        waiting = [(i, (prompt, ids)) for i, prompt, ids in later if ids is not None]
        if len(waiting) < len(later):
            left_out = (len(later) - len(waiting), len(later))
            log.warning("%d of %d later turns left out: longer than max_prompt_length", *left_out)
    return answers(asked, responses)


def answers(asked: Sequence[Asked], responses: Sequence[Sequence[Trace]]) -> list[Answer]:
    """What the traces of each prompt's responses came to."""
    pairs = zip(asked, responses, strict=True)
    return [Answer(p.id, p.set, digest(ids), [Counts.of(trace) for trace in traces]) for (p, ids), traces in pairs]


def time_answers(
    target: Target,
    drafters: Sequence[Drafter],
    asked: Sequence[Asked],
    answers: Sequence[list[Answer]],
    decoding: Decoding,
    places: Sequence[int],
) -> list[list[Answer]]:
    """Times the prompts at these places, all drafters and plain decoding by turns; answers of each drafter."""
    out = [list(of) for of in answers]
    if not places:
        return out
    with progress("timing", len(places)) as on_done:
        ids = [asked[at][1] for at in places]
        turns = measure.clocks(target, [*drafters, None], ids, decoding, on_done)
    for at, turn in zip(places, turns, strict=True):
        for number, clock in enumerate(turn[:-1]):
            out[number][at] = replace(out[number][at], speculative=clock, plain=turn[-1])
    return out


def first_of_sets(asked: Sequence[Asked], each: int) -> list[int]:
    """Places of the first prompts of every set."""
    sets = [prompt.set for prompt, _ in asked]
    return [at for at, name in enumerate(sets) if sets[:at].count(name) < each]


def evaluate_drafters(
    target: Target,
    drafters: dict[str, Drafter],
    asked: Sequence[Asked],
    decoding: Decoding,
    ids_of: Encode | None = None,
    *,
    timed: int = 0,
    block_sizes: Sequence[int] | None = (),
    fitting: Sequence[list[int]] = (),
) -> list[Result]:
    """Tests drafters of one target on the same prompts.

    Args:
        drafters: by name.
        ids_of: encodes later turns of conversations; None = first turns only.
        timed: prompts of each set that are timed one at a time against plain decoding.
        block_sizes: those of the speed model; None = 2 to the drafter's own, () = no speed model.
        fitting: token ids of prompts on which cuts of blocks are fitted; none = blocks are not cut.
    """
    sizes = {name: _block_sizes(drafter, block_sizes) for name, drafter in drafters.items()}
    given = [answer(target, d, asked, decoding, ids_of, f"rolling out {n}") for n, d in drafters.items()]
    places = first_of_sets(asked, timed)
    given = time_answers(target, list(drafters.values()), asked, given, decoding, places)
    results = []
    ids = [asked[at][1] for at in places[:timed]]
    for (name, drafter), of_drafter in zip(drafters.items(), given, strict=True):
        costs, rows = None, list[speed.BlockSize]()
        if ids and sizes[name]:
            with progress("timing block sizes", len(ids)) as on_done:
                costs, rows = speed.table(target, drafter, ids, decoding, sizes[name], on_done)
        cuts = speed.cut_table(target, drafter, fitting, ids, decoding) if ids and fitting else []
        results.append(Result(name, of_drafter, costs=costs, block_sizes=rows, cuts=cuts))
    return results


def _block_sizes(drafter: Drafter, given: Sequence[int] | None) -> list[int]:
    """Of the speed model, the drafter's own among them; none = no speed model."""
    if given is not None and not given:
        return []
    return sorted({*(range(2, drafter.block_size) if given is None else given), drafter.block_size})


@dataclass(frozen=True)
class Evaluation:
    results: Results
    prompts_fingerprint: str


def run(config: DictConfig) -> Evaluation:
    """The command: opens what the config names, tests it, and leaves out prompts that are too long.

    Raises:
        DraftError: a checkpoint, the prompts or a setting cannot be used.
    """
    target: Target | None = instantiate(config.target) if config.target else None
    given = checkpoints(config)
    first = open_subject(given[0], config, target)
    more = [*given[1:], *([config.against] if config.against else [])]
    others = [open_subject(name, config, first.target) for name in more]
    decoding = overlaid(first.decoding, config.decoding)
    prompts: Prompts | None = instantiate(config.prompts) if config.prompts else first.prompts
    if prompts is None:
        raise DraftError(f"{given[0]} brings no prompts of its own: give some, prompts=eval/gsm8k for example")
    thinking = first.enable_thinking if config.enable_thinking is None else config.enable_thinking
    ids_of = encoder(first.target, thinking, config.max_prompt_length)
    lengths = (thinking, config.max_prompt_length, "max_prompt_length")
    whole = config.prompts and config.split is None
    chosen = prompts.measured() if whole else prompts.split(config.split or "test")
    asked = encode_all(chosen, first.target.tokenizer, *lengths)[: config.limit]
    subjects = [first, *others]
    if config.against:  # it comes first: the others are held against it
        given, subjects = [config.against, *given], [subjects[-1], *subjects[:-1]]
    titles = distinct([subject.name for subject in subjects], [place(name) for name in given])
    drafters = {title: subject.drafter for title, subject in zip(titles, subjects, strict=True)}
    speed_words = {"timed": config.speed.prompts, "block_sizes": config.speed.block_sizes}
    fitting: list[list[int]] = []
    if config.speed.cut:
        validation = (first.prompts or prompts).split("val")[:FITTING]
        fitting = [ids for _, ids in encode_all(validation, first.target.tokenizer, *lengths)]
    results = evaluate_drafters(first.target, drafters, asked, decoding, ids_of, fitting=fitting, **speed_words)
    results = [replace(result, checkpoint=name) for result, name in zip(results, given, strict=True)]
    return Evaluation(Results(first.target.fingerprint, decoding, results), fingerprint(chosen))


def checkpoints(config: DictConfig) -> list[str]:
    """The drafters to test, without the one that they are held against."""
    return [config.checkpoint] if isinstance(config.checkpoint, str) else list(config.checkpoint)


@dataclass(frozen=True)
class Subject:
    """A drafter on its device, and what it brings along; a published folder has no prompts and settings of its own."""

    target: Target
    drafter: Drafter
    prompts: Prompts | None
    decoding: Decoding
    enable_thinking: bool | None
    name: str = "drafter"
    """it was trained or published under"""


def open_subject(name: str, config: DictConfig, target: Target | None) -> Subject:
    """A drafter from a checkpoint or run, which know their target and prompts, or from a published folder.

    Args:
        config: with `device` and `logger`.
        target: instead of the checkpoint's own; a folder needs it.

    Raises:
        DraftError: it cannot be opened.
    """
    place = device(config.device)
    if Path(name).expanduser().is_dir():
        if target is None:
            raise DraftError(f"{name} does not bring its target: give it, target=smollm2_135m for example")
        drafter = published(name, target)
        return Subject(target.to(place), drafter, None, Decoding(), None, Path(name).resolve().name)
    found = restore(name, config.logger.tracking_uri if config.logger else None, target)
    thinking = found.config.data.batching.enable_thinking
    own = (found.target.to(place), found.drafter.to(place), found.prompts, found.decoding, thinking)
    return Subject(*own, found.config.name)


def device(name: str) -> torch.device:
    """A GPU, if there is one, for "auto"; raises DraftError where this machine has no such device."""
    try:
        found = torch.device(name if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu")
        torch.zeros(1, device=found).item()  # a meta device has no values
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise DraftError(f"device={name} is not on this machine: take auto, cpu, or cuda:1 for example") from error
    return found


def overlaid(trained: Decoding, given: DictConfig) -> Decoding:
    """The settings of training, except those that are given."""
    return replace(trained, **{str(name): value for name, value in given.items() if value is not None})
