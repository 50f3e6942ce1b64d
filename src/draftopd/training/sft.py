"""SFT's batches: random anchors on the target's own texts.

As in on_policy.py, Lightning is handed one list of micro-batches per optimizer step and reloads every epoch.
"""

from dataclasses import dataclass

import torch
from torch.utils.data import DataLoader

from draftopd.decoding import distributed
from draftopd.trace import ReplayBatch
from draftopd.training.datamodule import DraftDataModule, Steps, candidates, generator


@dataclass(kw_only=True, eq=False, repr=False)
class SFTDataModule(DraftDataModule):
    """Blocks at random anchors of the target's own texts; every draft is the text's token, all accepted.

    Args:
        num_anchors: distinct anchors a text, redrawn every step from a generator seeded by (seed, epoch, step).
    """

    num_anchors: int = 24

    @property
    def stores_hidden(self) -> bool:
        return self.module.objective.needs_target  # it compares with the target's distribution in every step

    def train_dataloader(self) -> DataLoader:
        # written as they are needed; several processes would all wait for one shard, so they share the writing first
        texts = self.texts("train") if distributed.count() == 1 else self.written("train")
        size, epoch = self.batching.batch_size, self.epoch
        # the first epoch goes through the texts in order, so that training starts while the target still writes
        order = (
            torch.randperm(len(texts), generator=generator(self.seed, epoch)).tolist() if epoch else range(len(texts))
        )

        def build(step: int) -> list[ReplayBatch]:
            draw = generator(self.seed, epoch, step)
            places = {i: candidates(texts[i]) for i in order[step * size : (step + 1) * size]}
            chosen = [i for i, at in places.items() if len(at)]
            shuffled = {i: torch.randperm(len(places[i]), generator=draw) for i in chosen}  # for all processes
            anchors = {i: places[i][shuffled[i][: self.num_anchors].sort().values] for i in chosen}
            return [self.text_batch(texts, part, [anchors[i] for i in part]) for part in self.micro(chosen)]

        return DataLoader(Steps(build, max(1, len(texts) // size)), batch_size=None)
