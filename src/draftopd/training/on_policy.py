"""Draft-OPD's batches: blocks that the drafter itself proposed, with the weights that the epoch starts from.

Lightning is handed one list of micro-batches per optimizer step and reloads every epoch, so that the current weights
draft every phase.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from draftopd.data.storage import SpillStore
from draftopd.decoding import distributed
from draftopd.decoding.settings import Decoding
from draftopd.errors import DraftError
from draftopd.trace import ReplayBatch, Rollout, Trace, collate_rollouts
from draftopd.training.datamodule import DraftDataModule, Steps, generator
from draftopd.training.trace_sources import Phase, TraceSource
from draftopd.values.checked import checked
from draftopd.values.types import Count, NonNegative

Place = Callable[[Sequence[Trace], torch.Generator], ReplayBatch]
"""traces -> their batch, with blocks elsewhere than where they were drafted (placements.py)"""


@checked
@dataclass(kw_only=True, eq=False, repr=False)
class OnPolicyDataModule(DraftDataModule):
    """Traces drafted by the weights that the epoch starts from (arXiv 2605.29343).

    Args:
        traces: where they come from.
        prompts_per_epoch: prompts of one phase. With `batch_size` equal to it every update is made on traces of exactly
            the current weights, as in the official run (210 prompts for each optimizer step).
        keep_gib: features and hidden states of one phase stay in memory up to so many GiB a process, and as much of
            one step's batches; the rest is memory-mapped from files in the cache's folder.
        place: moves the blocks before they are trained on; None = where they were drafted.

    Raises:
        DraftError: the source does not work with `decoding`.
    """

    traces: TraceSource
    prompts_per_epoch: Count = 64
    keep_gib: NonNegative = 8.0
    place: Place | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.traces.check(self.decoding)
        self.verified = self.traces.verified
        self._phase: dict[int, Rollout] = {}  # this process's, by their places in the epoch
        self._drawn: list[int] = []  # places of all processes' traces
        self._drawn_in = self._drawn_at = -1  # epoch and step
        self._drafter: dict[str, Tensor] = {}  # weights that drafted them
        self._again = False  # they were drawn before the checkpoint that the run was resumed from

    @property
    def epochs_per_phase(self) -> int:
        return self.traces.reuse

    @property
    def stores_hidden(self) -> bool:
        return self.traces.stores_hidden(self.module.objective)

    def writing(self, split: str) -> Decoding:
        return self.traces.writing(self.decoding, self._first_epoch) if split == "train" else self.decoding

    @property
    def _first_epoch(self) -> int:
        """Of those that train on the traces of this one."""
        return self.epoch - self.epoch % self.traces.reuse

    @property
    def reuses(self) -> bool:
        """This epoch trains on traces that an earlier one has drawn."""
        return self._drawn_in == self._first_epoch < self.epoch

    def state_dict(self) -> dict[str, Any]:
        """What draws the traces again, where further steps train on them."""
        assert self.trainer is not None
        through = self.trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        if self._drawn_in < 0 or (through and (self.epoch + 1) % self.traces.reuse == 0):
            return super().state_dict()
        phase = {"drawn_in": self._drawn_in, "drawn_at": self._drawn_at, "places": self._drawn}
        return super().state_dict() | phase | {"drafter": self._drafter}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        if "drafter" in state:
            self._drawn_in, self._drawn_at, self._drawn = state["drawn_in"], state["drawn_at"], state["places"]
            self._drafter, self._again = state["drafter"], True

    def train_steps(self) -> Steps:
        keys, index = self._next_prompts()
        owners = self._draw(keys, index, range(len(index)))
        return self._loader(list(owners), lambda part, step: self._own_blocks({p: owners[p] for p in part}, step))

    def _loader(self, places: Sequence[int], blocks: Callable[[Sequence[int], int], list[ReplayBatch]]) -> Steps:
        """Steps of `batch_size` places of the epoch's prompts.

        Args:
            blocks: (places, step) -> micro-batches of their blocks.
        """
        if not places:
            raise DraftError("every response of this rollout ended with its first token: nothing was drafted")
        if self.reuses:
            draw = generator(self.seed, self.epoch)
            places = [places[i] for i in torch.randperm(len(places), generator=draw).tolist()]
        size = self.batching.batch_size
        steps = max(1, len(places) // size)

        def build(step: int) -> list[ReplayBatch]:
            # a remainder joins the last step: no trace that was paid for is dropped
            return blocks(places[step * size : len(places) if step == steps - 1 else (step + 1) * size], step)

        return Steps(build, steps)

    def _own_blocks(self, owners: dict[int, int], step: int) -> list[ReplayBatch]:
        """Micro-batches of the blocks that were drafted at these places.

        Args:
            owners: place -> its process: traces are replayed where they were rolled out.
        """
        draw, store = generator(self.seed, self.epoch, step), self._store()
        parts = [[self._phase[place] for place in part] for part in self.micro(list(owners), list(owners.values()))]
        return [self._batch(part, draw, store) for part in parts]

    def _batch(self, members: Sequence[Rollout], draw: torch.Generator, store: SpillStore) -> ReplayBatch:
        if not members:
            return self.nothing()
        if self.place is not None:
            return self.place([r.trace for r in members], draw)
        batch = collate_rollouts(members)
        batch.features = None if batch.features is None else store(batch.features)
        batch.target_hidden = None if batch.target_hidden is None else store(batch.target_hidden)
        return batch if self.module.objective.needs_tails else batch.without_tails()

    def _store(self) -> SpillStore:
        """For the states of one phase, or of one step."""
        return SpillStore(self.keep_gib, Path(self.cache.folder).expanduser() / "spilled")

    def _draw(self, keys: Sequence[int], index: Sequence[int], places: Sequence[int]) -> dict[int, int]:
        """Draws the epoch's traces at these places of its prompts, or has them from an earlier epoch.

        Returns:
            place -> its process, of the places where anything was drafted.
        """
        if not self.reuses or self._again:
            self._take(keys, index, places)
        drafted = distributed.gather([len(r.trace.anchors) > 0 for r in self._phase.values()])
        return {p: i % distributed.count() for i, (p, some) in enumerate(zip(places, drafted, strict=True)) if some}

    def _take(self, keys: Sequence[int], index: Sequence[int], places: Sequence[int]) -> None:
        self._phase, self.results = {}, []  # the last phase's are freed before the next one's come
        if not self._again:
            self._drawn, self._drawn_in, self._drawn_at = list(places), self._first_epoch, self.module.global_step
            with distributed.whole(self.module.drafter):
                self._drafter = {n: w.detach().to("cpu", copy=True) for n, w in self.module.drafter.named_parameters()}
        phase = Phase(
            [keys[p] for p in places],
            [index[p] for p in places],
            keep_states=self.place is None,  # states of a verification do not fit blocks that are moved
            store=self._store(),
            step=self._drawn_at,
            drafter=self._drafter if self._again else None,
        )
        traces = self.traces.draw(self, phase) if places else []
        self._again = False
        self._phase = dict(zip(distributed.own(places), traces, strict=True))
        self.module.share_costs()
        # a text's own hidden states are not the target's opinion of drafts after a rejection: nobody else may read them
        seen = [replace(r, target_hidden=None) if self.stores_hidden else r for r in traces]
        self.results = [r for r in seen if len(r.trace.anchors)]

    def _next_prompts(self) -> tuple[range, list[int]]:
        """Places of this epoch's prompts in the run, and their numbers; every pass over the prompts shuffles anew."""
        size = len(self.encoded("train"))
        first = self.epoch // self.traces.reuse * self.prompts_per_epoch
        places = range(first, first + self.prompts_per_epoch)
        orders: dict[int, list[int]] = {}
        for lap in {place // size for place in places}:
            shuffled = torch.randperm(size, generator=generator(self.seed, lap)).tolist()
            orders[lap] = list(range(size)) if self.traces.in_order(lap) else shuffled
        return places, [orders[place // size][place % size] for place in places]
