"""Where replay batches come from: the target's own texts (SFT), or fresh rollouts with the current weights (OPD).

Both hand Lightning one list of micro-batches per optimizer step and reload every epoch, so that an on-policy epoch is
drafted by the weights it starts from.
"""

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from draftopd import processes
from draftopd.datamodule import Batching, DraftDataModule, Steps, candidates, generator, progress
from draftopd.errors import DraftError
from draftopd.prompts import Prompts
from draftopd.rollout import Decoding, rollout
from draftopd.texts import TextCache
from draftopd.trace import ReplayBatch, Rollout, Trace, collate


class SFTDataModule(DraftDataModule):
    """Blocks at random anchors of the target's own texts; every draft is the text's token, all accepted.

    Args:
        num_anchors: distinct anchors a text, redrawn every step from a generator seeded by (seed, epoch, step).
    """

    def __init__(
        self,
        prompts: Prompts,
        texts: TextCache,
        decoding: Decoding,
        batching: Batching,
        num_anchors: int = 24,
        seed: int = 0,
    ) -> None:
        super().__init__(prompts, texts, decoding, batching, seed)
        self.num_anchors = num_anchors

    @property
    def keeps_hidden(self) -> bool:
        return self.module.objective.needs_target  # it compares with the target's distribution in every step

    def train_dataloader(self) -> DataLoader:
        # written as they are needed; several processes would all wait for one shard, so they share them out before
        texts = self.texts("train") if processes.count() == 1 else self.written("train")
        size = self.batching.batch_size
        epoch = self.trainer.current_epoch if self.trainer else 0
        # the first epoch goes through the texts in order, so that training starts while the target still writes
        order = (
            torch.randperm(len(texts), generator=generator(self.seed, epoch)).tolist() if epoch else range(len(texts))
        )

        def build(step: int) -> list[ReplayBatch]:
            draw = generator(self.seed, epoch, step)
            chosen = [i for i in order[step * size : (step + 1) * size] if candidates(texts[i]).numel()]
            anchors = {i: self._anchors(texts[i], draw) for i in chosen}  # all are drawn, whoever takes them
            return [self.replay(texts, part, [anchors[i] for i in part]) for part in self.micro(chosen)]

        return DataLoader(Steps(build, max(1, len(texts) // size)), batch_size=None)

    def _anchors(self, text: Trace, draw: torch.Generator) -> Tensor:
        """Random positions of the response, its tail included."""
        places = candidates(text)
        return places[torch.randperm(len(places), generator=draw)[: self.num_anchors].sort().values]


class OnPolicyDataModule(DraftDataModule):
    """Traces of target-assisted rollouts, drafted by the weights that the epoch starts from (arXiv 2605.29343).

    Args:
        prompts_per_epoch: prompts of one rollout phase. With `batch_size` equal to it every update is made on traces
            of exactly the current weights, as in the official run (210 prompts for each optimizer step).
    """

    def __init__(
        self,
        prompts: Prompts,
        texts: TextCache,
        decoding: Decoding,
        batching: Batching,
        prompts_per_epoch: int = 64,
        seed: int = 0,
    ) -> None:
        super().__init__(prompts, texts, decoding, batching, seed)
        self.prompts_per_epoch = prompts_per_epoch

    def train_dataloader(self) -> DataLoader:
        results = self._roll_out()
        drafted = processes.gather([len(r.trace.anchors) > 0 for r in results.values()])
        places = [place for place, any_block in enumerate(drafted) if any_block]
        if not places:
            raise DraftError("every response of this rollout ended with its first token: nothing was drafted")
        size = self.batching.batch_size
        steps = max(1, len(places) // size)

        def build(step: int) -> list[ReplayBatch]:
            # a remainder joins the last step: no trace that was paid for is dropped
            part = places[step * size : len(places) if step == steps - 1 else (step + 1) * size]
            owners = [place % processes.count() for place in part]  # traces are replayed where they were rolled out
            return [self._collate([results[place] for place in m]) for m in self.micro(part, owners)]

        return DataLoader(Steps(build, steps), batch_size=None)

    def _collate(self, results: list[Rollout]) -> ReplayBatch:
        if not results:
            return self.nothing()
        features = [r.features for r in results if r.features is not None]
        hidden = [r.target_hidden for r in results if r.target_hidden is not None]
        return collate([r.trace for r in results], features, hidden)

    def _roll_out(self) -> dict[int, Rollout]:
        """This process's share of the epoch's prompts, by their places in the epoch."""
        module, (keys, prompts) = self.module, self._next_prompts()
        mine = processes.own(prompts)
        with (
            progress("rolling out", len(mine)) as on_done,
            module.ledger.timed("rollout"),
            processes.whole(module.drafter),
        ):
            results = rollout(
                module.target,
                module.drafter,
                mine,
                self.decoding,
                keep=True,
                keys=processes.own(keys),
                drafter_step=module.global_step,
                ledger=module.ledger,
                on_done=on_done,
            )
        module.share_costs()
        return dict(zip(processes.own(range(len(prompts))), results, strict=True))

    def _next_prompts(self) -> tuple[range, list[list[int]]]:
        """Places of this epoch's prompts in the run, and the prompts: a new shuffle each time the pool is through."""
        pool = [ids for _, ids in self.encoded("train")]
        first = (self.trainer.current_epoch if self.trainer else 0) * self.prompts_per_epoch
        places = range(first, first + self.prompts_per_epoch)
        orders: dict[int, list[int]] = {}
        chosen = []
        for place in places:
            lap, at = divmod(place, len(pool))
            if lap not in orders:
                orders[lap] = torch.randperm(len(pool), generator=generator(self.seed, lap)).tolist()
            chosen.append(pool[orders[lap][at]])
        return places, chosen
