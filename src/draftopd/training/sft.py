"""SFT's batches: random anchors on the target's own texts.

As in on_policy.py, Lightning is handed one list of micro-batches per optimizer step and reloads every epoch.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from draftopd.decoding import distributed
from draftopd.trace import ReplayBatch, Trace
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
        size = self.batching.batch_size
        epoch = self.epoch
        # the first epoch goes through the texts in order, so that training starts while the target still writes
        order = (
            torch.randperm(len(texts), generator=generator(self.seed, epoch)).tolist() if epoch else range(len(texts))
        )

        def build(step: int) -> list[ReplayBatch]:
            draw = generator(self.seed, epoch, step)
            chosen = [i for i in order[step * size : (step + 1) * size] if candidates(texts[i]).numel()]
            anchors = {i: self._anchors(texts[i], draw) for i in chosen}  # drawn for all processes
            return [self.text_batch(texts, part, [anchors[i] for i in part]) for part in self.micro(chosen)]

        return DataLoader(Steps(build, max(1, len(texts) // size)), batch_size=None)

    def _anchors(self, text: Trace, draw: torch.Generator) -> Tensor:
        """Random positions of the response, its tail included."""
        places = candidates(text)
        return places[torch.randperm(len(places), generator=draw)[: self.num_anchors].sort().values]
