"""Draft-OPD's batches: blocks that the drafter itself proposed, with the weights that the epoch starts from.

Lightning is handed one list of micro-batches per optimizer step and reloads every epoch, so that every phase of
rollouts or redrafts is drafted by the current weights.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from draftopd.console import progress
from draftopd.data.prompts import Prompts
from draftopd.data.storage import Kept
from draftopd.data.texts import TextCache
from draftopd.decoding import distributed
from draftopd.decoding.free_running import free_running
from draftopd.decoding.redraft import redraft, require_greedy_drafts
from draftopd.decoding.rollout import rollout
from draftopd.decoding.settings import Decoding
from draftopd.errors import DraftError
from draftopd.trace import ReplayBatch, Rollout, Trace, collate_rollouts
from draftopd.training.datamodule import Batching, DraftDataModule, Steps, generator

Place = Callable[[Sequence[Trace], torch.Generator], ReplayBatch]
"""traces -> their batch, with blocks elsewhere than where they were drafted (placements.py)"""


class OnPolicyDataModule(DraftDataModule):
    """Traces of target-assisted rollouts, drafted by the weights that the epoch starts from (arXiv 2605.29343).

    Args:
        prompts_per_epoch: prompts of one rollout phase. With `batch_size` equal to it every update is made on traces
            of exactly the current weights, as in the official run (210 prompts for each optimizer step).
        refresh: `rollout`: the target writes every response again; `redraft`: the drafter goes along the texts that the
            target has written once and for all. The same traces at temperature 0, up to the precision of stored
            features. Above 0 rollouts of a later lap draw other texts, redrafts after `rewrite_every` epochs alone.
        rewrite_every: epochs after which the target writes texts anew for `redraft`, above temperature 0; None = never.
        keep_gib: what rollouts have computed of the features and hidden states of one phase stays in memory up to so
            many GiB a process, and as much of one step's batches; the rest is mapped from files in the cache's folder.
        place: lays the blocks elsewhere before they are trained on; None = where they were drafted.
        skip_share: see DraftDataModule.

    Raises:
        DraftError: `redraft` with sampled drafts, or `rewrite_every` where it could not do anything.
    """

    roll_out: Callable[..., list[Rollout]] = staticmethod(rollout)

    def __init__(
        self,
        prompts: Prompts,
        texts: TextCache,
        decoding: Decoding,
        batching: Batching,
        prompts_per_epoch: int = 64,
        seed: int = 0,
        place: Place | None = None,
        skip_share: float = 0.0,
        refresh: str = "rollout",
        rewrite_every: int | None = None,
        keep_gib: float = 8.0,
    ) -> None:
        super().__init__(prompts, texts, decoding, batching, seed, skip_share)
        if refresh not in ("rollout", "redraft"):
            raise DraftError(f"data.refresh={refresh} is not known: rollout or redraft")
        if refresh == "redraft":
            require_greedy_drafts(decoding)
        if rewrite_every is not None and (refresh != "redraft" or decoding.greedy or rewrite_every < 1):
            raise DraftError(
                f"data.rewrite_every={rewrite_every} must be at least 1, and needs data.refresh=redraft and "
                "data.decoding.temperature above 0: greedy texts never change"
            )
        self.rewrite_every = rewrite_every
        self.prompts_per_epoch, self.place, self.refresh, self.keep_gib = prompts_per_epoch, place, refresh, keep_gib
        self._phase: dict[int, Rollout] = {}  # this process's, by their places in the epoch

    @property
    def keeps_hidden(self) -> bool:
        """Up to a first rejection the text's own rows judge the drafts; with them a step runs no target at all."""
        objective = self.module.objective
        return self.refresh == "redraft" and objective.needs_target and not objective.needs_tails

    def writing(self, split: str) -> Decoding:
        if split != "train" or self.rewrite_every is None:
            return self.decoding
        generation = self.epoch // self.rewrite_every
        # far from the seeds of other runs
        return replace(self.decoding, seed=self.decoding.seed + 1_000_003 * generation)

    def train_dataloader(self) -> DataLoader:
        self._phase, self.results = {}, []  # the last phase's go before the next one's come
        self._phase = self._roll_out() if self.refresh == "rollout" else self._redraft()
        self.module.share_costs()
        # the text's own rows judge no tails, so nobody else may take them for the target's opinion of all drafts
        seen = [replace(r, target_hidden=None) if self.keeps_hidden else r for r in self._phase.values()]
        self.results = [r for r in seen if len(r.trace.anchors)]
        drafted = distributed.gather([len(r.trace.anchors) > 0 for r in self._phase.values()])
        places = [place for place, any_block in enumerate(drafted) if any_block]
        if not places:
            raise DraftError("every response of this rollout ended with its first token: nothing was drafted")
        size = self.batching.batch_size
        steps = max(1, len(places) // size)
        epoch = self.epoch

        def build(step: int) -> list[ReplayBatch]:
            # a remainder joins the last step: no trace that was paid for is dropped
            part = places[step * size : len(places) if step == steps - 1 else (step + 1) * size]
            owners = [place % distributed.count() for place in part]  # traces are replayed where they were rolled out
            draw, keep = generator(self.seed, epoch, step), self._store()
            return [self._batch([self._phase[place] for place in m], draw, keep) for m in self.micro(part, owners)]

        return DataLoader(Steps(build, steps), batch_size=None)

    def _batch(self, members: Sequence[Rollout], draw: torch.Generator, keep: Kept) -> ReplayBatch:
        if not members:
            return self.nothing()
        if self.place is not None:
            return self.place([r.trace for r in members], draw)
        batch = collate_rollouts(members)
        batch.features = None if batch.features is None else keep(batch.features)
        batch.target_hidden = None if batch.target_hidden is None else keep(batch.target_hidden)
        return batch if self.module.objective.needs_tails else batch.without_tails()

    def _store(self) -> Kept:
        """Where one phase, or one step, is kept."""
        return Kept(self.keep_gib, Path(self.cache.folder).expanduser() / "kept")

    def _roll_out(self) -> dict[int, Rollout]:
        """This process's share of the epoch's prompts, by their places in the epoch."""
        module, (keys, index), pool = self.module, self._next_prompts(), self.encoded("train")
        prompts = [pool[i][1] for i in distributed.own(index)]
        with (
            progress("rolling out", len(prompts)) as on_done,
            module.ledger.timed("rollout"),
            distributed.whole(module.drafter),
        ):
            results = self.roll_out(
                module.target,
                module.drafter,
                prompts,
                self.decoding,
                keep_states=self.place is None,  # what a verification computed does not fit blocks that were moved
                keys=distributed.own(keys),
                drafter_step=module.global_step,
                ledger=module.ledger,
                on_done=on_done,
                store=self._store(),
            )
        return dict(zip(distributed.own(range(len(index))), results, strict=True))

    def _redraft(self) -> dict[int, Rollout]:
        """As `_roll_out`, but what judges tails is left to the step, which replays it where the objective reads it."""
        module, index, store = self.module, self._next_prompts()[1], self._store()
        texts = self.written("train", max(index) + 1)
        chosen = [Rollout(texts[i], self.stored(texts, i)[0]) for i in distributed.own(index)]
        with (
            progress("redrafting", len(chosen)) as on_done,
            module.ledger.timed("redraft"),
            distributed.whole(module.drafter),
        ):
            results = redraft(
                module.target,
                module.drafter,
                chosen,
                self.decoding,
                drafter_step=module.global_step,
                ledger=module.ledger,
                on_done=on_done,
                store=store,
            )
        if self.keeps_hidden:
            rows = [self.stored(texts, i)[1] for i in distributed.own(index)]
            results = [judged(r, hidden, store) for r, hidden in zip(results, rows, strict=True)]
        return dict(zip(distributed.own(range(len(index))), results, strict=True))

    def _next_prompts(self) -> tuple[range, list[int]]:
        """Places of this epoch's prompts in the run, and their numbers: a new shuffle when the pool is through.

        Where texts are still to be written for redrafts, it is their order, so that no phase waits for all of them.
        """
        size = len(self.encoded("train"))
        first = self.epoch * self.prompts_per_epoch
        places = range(first, first + self.prompts_per_epoch)
        orders: dict[int, list[int]] = {}
        chosen = []
        for place in places:
            lap, at = divmod(place, size)
            if lap not in orders:
                shuffled = torch.randperm(size, generator=generator(self.seed, lap)).tolist()
                unwritten = self.refresh == "redraft" and (lap == 0 or self.rewrite_every is not None)
                orders[lap] = list(range(size)) if unwritten else shuffled
            chosen.append(orders[lap][at])
        return places, chosen


def judged(result: Rollout, hidden: Tensor | None, store: Kept) -> Rollout:
    """With rows of the text's own hidden states [T, D] for the drafts: right up to the first rejection of a block."""
    if hidden is None:
        return result
    rows = result.trace.anchors[:, None] + torch.arange(result.trace.drafts.shape[1])
    return replace(result, target_hidden=store(hidden[rows.clamp(max=len(hidden) - 1)]))


class FreeRunningDataModule(OnPolicyDataModule):
    """On-policy data of text that the drafter writes alone and the target only scores (free_running.py).

    The paper's counter-example: such text drifts away from what the target would write (arXiv 2605.29343, Fig. 2).
    Validation and test roll out with the target, as everywhere.
    """

    verified = False
    roll_out = staticmethod(free_running)
