"""SFT's batches: random anchors on the target's own texts.

As in on_policy.py, Lightning is handed one list of micro-batches per optimizer step and reloads every epoch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from draftopd.data.texts import Texts
from draftopd.decoding import distributed
from draftopd.trace import ReplayBatch
from draftopd.training.datamodule import DraftDataModule, Steps, candidates, generator
from draftopd.values.checked import checked
from draftopd.values.types import Count


@checked
@dataclass(kw_only=True, eq=False, repr=False)
class SFTDataModule(DraftDataModule):
    """Blocks at random anchors of the target's own texts; every draft is the text's token, all accepted.

    Args:
        num_anchors: distinct anchors a text, redrawn every step from a generator seeded by (seed, epoch, step).
    """

    num_anchors: Count = 24

    @property
    def stores_hidden(self) -> bool:
        return self.module.objective.needs_target  # it compares with the target's distribution in every step

    def train_steps(self) -> Steps:
        # written as they are needed; several processes would all wait for one shard, so they share the writing first
        texts = self.texts("train") if distributed.count() == 1 else self.written("train")
        size, epoch = self.batching.batch_size, self.epoch
        # the first epoch goes through the texts in order, so that training starts while the target still writes
        order = (
            torch.randperm(len(texts), generator=generator(self.seed, epoch)).tolist() if epoch else range(len(texts))
        )

        def build(step: int) -> list[ReplayBatch]:
            part = order[step * size : (step + 1) * size]
            return random_blocks(self, texts, part, self.num_anchors, generator(self.seed, epoch, step))

        return Steps(build, max(1, len(texts) // size))


def random_blocks(
    data: DraftDataModule, texts: Texts, index: Sequence[int], num_anchors: int, draw: torch.Generator
) -> list[ReplayBatch]:
    """Micro-batches of these texts, each with at most `num_anchors` distinct random anchors."""
    data.pay(texts, index)
    places = [(i, at) for i in index if len(at := candidates(texts[i]))]
    shuffled = [torch.randperm(len(at), generator=draw) for _, at in places]  # for all processes
    chosen = [(i, at[o[:num_anchors].sort().values]) for (i, at), o in zip(places, shuffled, strict=True)]
    return [data.text_batch(texts, [i for i, _ in part], [at for _, at in part]) for part in data.micro(chosen)]
