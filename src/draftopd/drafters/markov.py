"""Heads through which each draft reads the one before it: what DSpark and DFlash2 share.

DFlash's backbone fills a block in one pass; beside the target's head, a matrix W2 turns r numbers, the code of a slot,
into a bias of its logits:

    logits_k = head(h_k) + W2 c_k

The code c_k is made of the token before the slot, and maybe of h_k. So the pass is parallel and only these small
products are sequential. The head reads both as one row [h_k ‖ c_k]: training forces the drafts, drafting has just made
them.
"""

from abc import abstractmethod
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from draftopd.drafters.base import Embed, LendHead, Propose
from draftopd.drafters.dflash import DFlash
from draftopd.target.cache import RaggedCache
from draftopd.target.head import Head
from draftopd.trace import ReplayBatch


@dataclass(frozen=True, eq=False, kw_only=True)
class MarkovHead(Head):
    """The target's head, and a bias: rows [..., D + r] -> logits [..., V']."""

    markov: Tensor
    """W2 [V', r]"""

    @property
    def trained(self) -> tuple[Tensor, ...]:
        return (*super().trained, self.markov) if self.markov.requires_grad else super().trained

    def base(self, hidden: Tensor) -> Tensor:
        """[..., D] -> logits without the bias."""
        return super().__call__(hidden)

    def bias_of(self, codes: Tensor) -> Tensor:
        """[..., r] -> [..., V'] in float32 at least."""
        bias = F.linear(codes, self.markov)
        return bias.to(torch.promote_types(bias.dtype, torch.float32))

    def __call__(self, rows: Tensor) -> Tensor:
        size = self.weight.shape[1]
        return self.base(rows[..., :size]) + self.bias_of(rows[..., size:])


class MarkovDrafter(DFlash):
    """DFlash's backbone under such a head."""

    @property
    @abstractmethod
    def markov(self) -> Tensor:
        """W2 [V', r]."""

    @abstractmethod
    def codes(self, hidden: Tensor, before: Tensor) -> Tensor:
        """Hidden states of slots [..., D] and the tokens before them [...] -> [..., r]."""

    def head_weights(self, target_vocab_size: int) -> int:
        return super().head_weights(target_vocab_size) + self.own_head_weights(target_vocab_size)

    def own_head_weights(self, target_vocab_size: int) -> int:
        return self.markov.shape[1] * self.head_rows(target_vocab_size)

    def head(self, lend: LendHead) -> Head:
        return MarkovHead(**vars(super().head(lend)), markov=self.markov)

    def forward(self, batch: ReplayBatch, embed: Embed) -> Tensor:
        hidden = super().forward(batch, embed)
        anchors = batch.tokens.gather(1, batch.anchors)[..., None]
        before = torch.cat([anchors, batch.drafts[..., :-1]], -1)
        return torch.cat([hidden, self.codes(hidden, before)], -1)

    def draft(self, state: RaggedCache, anchors: Tensor, embed: Embed, head: Head, propose: Propose) -> Tensor:
        assert isinstance(head, MarkovHead)
        hidden = self._block(state, anchors, embed)
        tokens = [anchors]
        for row, slot in zip(hidden.split(1, 1), head.base(hidden).split(1, 1), strict=True):
            code = self.codes(row, tokens[-1][:, None])
            confidence = None if self.confidence_head is None else partial(self._confidence, row, code)
            tokens.append(head.tokens(propose(slot + head.bias_of(code), confidence))[:, 0])
            if propose.ended:
                break
        return torch.stack(tokens[1:], 1)

    def _confidence(self, hidden: Tensor, codes: Tensor) -> Tensor:
        assert self.confidence_head is not None
        logits: Tensor = self.confidence_head(torch.cat([hidden, codes], -1))
        return logits
