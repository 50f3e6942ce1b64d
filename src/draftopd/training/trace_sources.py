"""Sources of on-policy traces: rollouts, redrafts of stored texts, or text that the drafter writes by itself."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from draftopd.console import progress
from draftopd.data.storage import SpillStore
from draftopd.decoding import distributed
from draftopd.decoding.free_running import free_running
from draftopd.decoding.redraft import redraft, require_greedy_drafts
from draftopd.decoding.rollout import rollout
from draftopd.decoding.settings import Decoding
from draftopd.errors import DraftError
from draftopd.objectives.base import Objective
from draftopd.trace import Rollout
from draftopd.training.datamodule import DraftDataModule
from draftopd.training.module import DraftModule
from draftopd.values.checked import checked
from draftopd.values.types import Count


@dataclass(frozen=True)
class Phase:
    """The prompts of one epoch, of all processes."""

    keys: Sequence[int]  # of each response's random numbers
    index: Sequence[int]  # of the training prompts
    keep_states: bool  # features and target hidden states of the verifications are wanted
    store: SpillStore  # where they go
    step: int  # optimizer steps before it
    drafter: Mapping[str, Tensor] | None = None  # weights that draft a phase again; None = the current ones


@checked
@dataclass(frozen=True, kw_only=True)
class TraceSource(ABC):
    """Where traces come from.

    Args:
        reuse: epochs that train on a phase's traces before the next phase draws new ones; each shuffles them anew.
    """

    reuse: Count = 1
    verified: ClassVar[bool] = True  # the text, by the target

    def check(self, decoding: Decoding) -> None:  # noqa: B027 - most sources work with all
        """Raises DraftError where the source does not work with these settings."""

    def stores_hidden(self, objective: Objective) -> bool:
        """Stored training texts need the target's last hidden states besides the features."""
        return False

    def writing(self, decoding: Decoding, epoch: int) -> Decoding:
        """How the target writes the training texts that this epoch reads."""
        return decoding

    def in_order(self, lap: int) -> bool:
        """This pass over the prompts takes them in their order, and not shuffled."""
        return False

    @abstractmethod
    def draw(self, data: DraftDataModule, phase: Phase) -> list[Rollout]:
        """This process's share of the phase's traces, drafted by the current weights or `phase.drafter`."""


class Rollouts(TraceSource):
    """Target-assisted rollouts: every response is written anew (arXiv 2605.29343)."""

    def draw(self, data: DraftDataModule, phase: Phase) -> list[Rollout]:
        return _write(rollout, data, phase)


class FreeRunning(TraceSource):
    """Text that the drafter writes by itself; the target only scores it.

    The paper's counter-example: such text drifts away from what the target would write (arXiv 2605.29343, Fig. 2).
    Validation and test roll out with the target, as everywhere.
    """

    verified: ClassVar[bool] = False

    def draw(self, data: DraftDataModule, phase: Phase) -> list[Rollout]:
        return _write(free_running, data, phase)


def _write(write: Callable[..., list[Rollout]], data: DraftDataModule, phase: Phase) -> list[Rollout]:
    pool = data.encoded("train")
    prompts = [pool[i][1] for i in distributed.own(phase.index)]
    write = partial(write, keep_states=phase.keep_states, keys=distributed.own(phase.keys))
    return _timed("rollout", write, data, prompts, phase)


def _timed(
    name: str, draw: Callable[..., list[Rollout]], data: DraftDataModule, items: Sequence[Any], phase: Phase
) -> list[Rollout]:
    module = data.module
    draw = partial(draw, drafter_step=phase.step, ledger=module.ledger, store=phase.store)
    with (
        distributed.whole(module.drafter),
        _as_before(module, phase.drafter),
        progress(f"{name}s", len(items)) as on_done,
        module.ledger.timed(name),
    ):
        return draw(module.target, module.drafter, items, data.decoding, on_done=on_done)


@contextmanager
def _as_before(module: DraftModule, weights: Mapping[str, Tensor] | None) -> Iterator[None]:
    """The drafter has these weights inside, and what is done inside costs nothing: it is in the ledger already."""
    if weights is None:
        yield
        return
    ledger, now = module.ledger.state_dict(), {n: w.detach().clone() for n, w in module.drafter.named_parameters()}
    try:
        _set(module, weights)
        yield
    finally:
        _set(module, now)
        module.ledger.load_state_dict(ledger)


@torch.no_grad()
def _set(module: DraftModule, weights: Mapping[str, Tensor]) -> None:
    for name, weight in module.drafter.named_parameters():
        weight.copy_(weights[name])


@checked
@dataclass(frozen=True, kw_only=True)
class Redrafts(TraceSource):
    """New drafts along texts that the target wrote once: at temperature 0 the traces of rollouts.

    They are equal up to the precision of stored features. Above temperature 0 rollouts write another text in every
    pass over the prompts, redrafts only after `rewrite_every` epochs.

    Args:
        rewrite_every: epochs after which the target writes new texts, above temperature 0; None = never.
    """

    rewrite_every: Count | None = None

    def check(self, decoding: Decoding) -> None:
        require_greedy_drafts(decoding)
        if self.rewrite_every is not None and decoding.greedy:
            raise DraftError(
                f"traces.rewrite_every={self.rewrite_every} needs data.decoding.temperature above 0: "
                "greedy texts never change"
            )

    def stores_hidden(self, objective: Objective) -> bool:
        """They are the target's opinion of drafts up to the first rejection: such a step does not run the target."""
        return objective.needs_target and not objective.needs_tails

    def writing(self, decoding: Decoding, epoch: int) -> Decoding:
        generation = epoch // self.rewrite_every if self.rewrite_every else 0
        # far from the seeds of other runs
        return replace(decoding, seed=(decoding.seed + 1_000_003 * generation) % 2**32)

    def in_order(self, lap: int) -> bool:
        """While texts have yet to be written, so that no phase waits for all of them."""
        return lap == 0 or self.rewrite_every is not None

    def draw(self, data: DraftDataModule, phase: Phase) -> list[Rollout]:
        """Without target hidden states after a first rejection: the step replays those that its objective reads."""
        texts, own = data.written("train", max(phase.index) + 1), distributed.own(phase.index)
        data.pay(texts, phase.index)
        chosen = [Rollout(texts[i], data.stored(texts, i)[0]) for i in own]
        results = _timed("redraft", redraft, data, chosen, phase)
        stored = (data.stored(texts, i)[1] for i in own)
        return [with_text_hidden(r, hidden, phase.store) for r, hidden in zip(results, stored, strict=True)]


def with_text_hidden(result: Rollout, hidden: Tensor | None, store: Callable[[Tensor], Tensor]) -> Rollout:
    """With the text's own hidden states [T, D] at its drafts: the target's, up to the first rejection of each block."""
    if hidden is None:
        return result
    rows = result.trace.anchors[:, None] + torch.arange(result.trace.drafts.shape[1])
    return replace(result, target_hidden=store(hidden[rows.clamp(max=len(hidden) - 1)]))
