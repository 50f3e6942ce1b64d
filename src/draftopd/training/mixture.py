"""Batches of both kinds: blocks that the drafter drafted, beside blocks at random anchors of the target's own texts."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from draftopd.decoding import distributed
from draftopd.trace import ReplayBatch
from draftopd.training.datamodule import Steps, generator
from draftopd.training.on_policy import OnPolicyDataModule
from draftopd.training.sft import random_blocks
from draftopd.training.trace_sources import Redrafts
from draftopd.values.checked import checked
from draftopd.values.types import Count, Share


@checked
@dataclass(kw_only=True, eq=False, repr=False)
class MixedDataModule(OnPolicyDataModule):
    """On-policy distillation and SFT in the same optimizer steps, on different texts.

    Of the epoch's prompts, `own_share` get traces of the current drafter, the others random anchors on the texts that
    the target wrote for them. With a share of 1 these are the batches of OnPolicyDataModule; with 0, along `redrafts`
    and with all prompts in each epoch, those of SFTDataModule.

    Args:
        own_share: share of a step's texts that have drafted blocks, 0..1.
        own_share_end: the share at the end of the budget; between, it is linear in the budget spent at the start of
            each epoch. None = `own_share`.
        num_anchors: random anchors a text, as in SFTDataModule.
    """

    own_share: Share = 0.5
    own_share_end: Share | None = None
    num_anchors: Count = 24

    def __post_init__(self) -> None:
        super().__post_init__()
        self.ends = (self.own_share, self.own_share if self.own_share_end is None else self.own_share_end)

    def setup(self, stage: str) -> None:
        self.module.mix_anchors()

    @property
    def stores_hidden(self) -> bool:
        random = self.module.random_objective
        return super().stores_hidden or (random is not None and random.needs_target)

    def train_steps(self) -> Steps:
        keys, index = self._next_prompts()
        first, last = self.ends
        share = first + (last - first) * self.module.budget.share
        # spread evenly over the epoch, so that every step has its share
        spaced = [p for p in range(len(index)) if int((p + 1) * share + 1e-9) > int(p * share + 1e-9)]
        own = self._drawn if self.reuses or self._again else spaced
        others = set(range(len(index))) - set(own)
        owners = self._draw(keys, index, own)
        if isinstance(self.traces, Redrafts) and not super().stores_hidden:
            # stored for the other objective: after a rejection they are not the target's opinion of drafts
            self._phase = {place: replace(r, target_hidden=None) for place, r in self._phase.items()}
        texts = self.texts("train")
        if others and distributed.count() > 1:  # they share the writing, as in sft.py
            self.written("train", max(index[p] for p in others) + 1)

        def blocks(places: Sequence[int], step: int) -> list[ReplayBatch]:
            drafted = self._own_blocks({p: owners[p] for p in places if p in owners}, step)
            chosen = [index[p] for p in places if p in others]
            return drafted + random_blocks(
                self, texts, chosen, self.num_anchors, generator(self.seed, self.epoch, step)
            )

        return self._loader([p for p in range(len(index)) if p in owners or p in others], blocks)
