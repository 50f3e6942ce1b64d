"""What every drafter offers: `forward` for training, `start` / `extend` / `draft` for decoding."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from draftopd.drafters.layers import Attention
from draftopd.errors import DraftError
from draftopd.target.cache import RaggedCache
from draftopd.target.head import Head, TargetShape
from draftopd.trace import ReplayBatch

Embed = Callable[[Tensor], Tensor]
LendHead = Callable[[Tensor | None], Head]
"""a draft vocabulary [V'] -> the target's head restricted to it: `Target.head`"""
R = TypeVar("R")


class Propose:
    """Chooses drafts, slot after slot: here the most likely ones."""

    @property
    def ended(self) -> bool:
        """No further slot of these blocks is wanted."""
        return False

    def __call__(self, logits: Tensor, confidence: Callable[[], Tensor] | None = None) -> Tensor:
        """Draft logits [B, n, V'] of the next n slots -> their drafts as rows of the head [B, n].

        Args:
            confidence: what a confidence head says of these slots: logits [B, n].
        """
        return logits.argmax(-1)


class Drafter(nn.Module, ABC):
    """A trainable model that proposes `num_draft_tokens` tokens after an anchor.

    Attributes:
        block_size: W = anchor + drafts.
        layer_ids: the target's decoder layers (0-based) whose outputs are the features it reads.
        fc: fuses the features; the only weights whose input needs no gradient.
        norm: before the output head.
        window: a slot sees the window - 1 positions before its own, in the text and in its block; None = all.
        confidence_head: from the rows that its head reads, [..., D'] -> logits [...] of the chance that the target
            accepts the draft; trained beside the objective and never by it. None = it has none.
        attention: over whole texts; decoding always takes torch's scaled_dot_product_attention.
        gradient_checkpointing: layers run again in the backward pass instead of storing their activations.
    """

    block_size: int
    hidden_size: int
    layer_ids: tuple[int, ...]
    d2t: Tensor | None
    fc: nn.Linear
    norm: nn.RMSNorm
    attention: Literal["sdpa", "flex_attention"] = "sdpa"
    gradient_checkpointing = False

    def __init__(
        self,
        target: TargetShape,
        block_size: int,
        layer_ids: Sequence[int],
        draft_vocab_size: int | None,
        init: Literal["random", "target"],
        window: int | None = None,
    ) -> None:
        if not all(0 <= layer < target.num_layers for layer in layer_ids):
            raise DraftError(
                f"drafter.layer_ids {list(layer_ids)} must lie in 0..{target.num_layers - 1}, the target's layers"
            )
        if draft_vocab_size is not None and draft_vocab_size > target.vocab_size:
            raise DraftError(f"drafter.draft_vocab_size {draft_vocab_size} must lie in 1..{target.vocab_size}")
        if window is not None and window < block_size:
            raise DraftError(f"drafter.window {window} must be at least drafter.block_size {block_size}")
        super().__init__()
        self.init = init
        self.window = window
        self.hidden_size = target.hidden_size
        self.block_size = block_size
        self.layer_ids = tuple(layer_ids)
        self.confidence_head: nn.Module | None = None
        # offsets as in published checkpoints: target id = draft id + d2t[draft id]
        offsets = None if draft_vocab_size is None else torch.zeros(draft_vocab_size, dtype=torch.long)
        self.register_buffer("d2t", offsets)

    @property
    def reads(self) -> dict[str, list[int]]:
        """What the weights do not tell; saved in checkpoints and compared when they are loaded."""
        return {"layer_ids": list(self.layer_ids), **({} if self.window is None else {"window": [self.window]})}

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Eval mode for a while."""
        was_training = self.training
        self.eval()
        try:
            yield
        finally:
            self.train(was_training)

    @contextmanager
    def blocks_of(self, block_size: int) -> Iterator[None]:
        """Drafts blocks of another size for a while; acceptance falls beyond the trained size."""
        own, self.block_size = self.block_size, block_size
        try:
            yield
        finally:
            self.block_size = own

    def run(self, layer: Callable[..., R], *inputs: Any) -> R:
        """layer(*inputs), under `gradient_checkpointing`."""
        if not (self.gradient_checkpointing and torch.is_grad_enabled()):
            return layer(*inputs)
        return checkpoint(layer, *inputs, use_reentrant=False, preserve_rng_state=False)

    @property
    def num_draft_tokens(self) -> int:
        return self.block_size - 1

    @property
    def vocabulary(self) -> Tensor | None:
        """[V'] sorted target ids that the drafter can propose; None = all of them."""
        return None if self.d2t is None else self.d2t + torch.arange(len(self.d2t), device=self.d2t.device)

    def set_vocabulary(self, token_ids: Tensor) -> None:
        """Fixes the draft vocabulary to these sorted ids [V']."""
        assert self.d2t is not None, "this drafter has the whole vocabulary"
        assert token_ids.shape == self.d2t.shape, "the draft vocabulary's size is fixed"
        self.d2t.copy_(token_ids - torch.arange(len(token_ids), device=token_ids.device))

    @property
    @abstractmethod
    def stack(self) -> Sequence[nn.Module]:
        """The decoder layers, first to last."""

    @torch.no_grad()
    def copy_target(self, body: Any) -> None:
        """Starts from the target's final norm and last layers, as far as names and shapes of weights are the same.

        Args:
            body: the target's decoder.

        Raises:
            DraftError: its final norm is not an RMS norm times a weight.
        """
        norm = getattr(body, "norm", None)
        ones = torch.ones(1, self.hidden_size, dtype=self.fc.weight.dtype, device=self.fc.weight.device)
        if norm is None or not torch.allclose(norm(ones)[0], norm.weight.to(ones.dtype), rtol=1e-2):
            raise DraftError("drafter.init=target needs a target with plain RMS norms: take drafter.init=random")
        self.norm.weight.copy_(norm.weight)
        count = min(len(self.stack), len(body.layers))
        for own, layer in zip(self.stack[-count:], body.layers[-count:], strict=True):
            theirs = layer.state_dict()
            for name, weight in own.named_parameters():
                if name in theirs and theirs[name].shape == weight.shape:
                    weight.copy_(theirs[name])

    def initialise(self, lend: LendHead) -> None:
        """Copies what a new drafter takes from the target, once its vocabulary is set; a trained one stays."""

    def head(self, lend: LendHead) -> Head:
        """The head that reads this drafter's hidden states."""
        return lend(self.vocabulary)

    def head_rows(self, target_vocab_size: int) -> int:
        """V', the tokens that its head knows."""
        return target_vocab_size if self.d2t is None else len(self.d2t)

    def head_weights(self, target_vocab_size: int) -> int:
        """Multiply-adds of the output head for one row."""
        return self.hidden_size * self.head_rows(target_vocab_size)

    def own_head_weights(self, target_vocab_size: int) -> int:
        """Those of them by weights that the drafter trains; the others are the target's."""
        return 0

    @property
    def confidence_weights(self) -> int:
        """Multiply-adds of the confidence head for one row."""
        head = self.confidence_head
        return 0 if head is None else sum(weight.numel() for weight in head.parameters() if weight.ndim == 2)

    def first_seen(self, positions: Tensor) -> Tensor | None:
        """The first position of the text that rows at these positions see; None = 0."""
        return None if self.window is None else positions - self.window + 1

    def unseen(self, state: RaggedCache, positions: Tensor) -> int:
        """The positions at a text's beginning that no row at these positions sees, nor any later one.

        0 where shapes are fixed: there only the mask hides them.
        """
        return 0 if self.window is None or state.fixed else max(0, int(positions.min()) - self.window + 1)

    @property
    def attentions(self) -> list[Attention]:
        return [module for module in self.modules() if isinstance(module, Attention)]

    @property
    def state_width(self) -> int:
        """Numbers that the decoding state holds for each position of a row."""
        return sum(2 * attention.k_proj.out_features for attention in self.attentions)

    def context_flops(self, tokens: float) -> float:
        """FLOPs of reading the features of this many committed tokens."""
        layers = [self.fc, *(layer for a in self.attentions for layer in (a.k_proj, a.v_proj))]
        return 2.0 * sum(layer.weight.numel() for layer in layers) * tokens

    @abstractmethod
    def block_flops(self, blocks: float, length: float) -> float:
        """FLOPs of one forward of this many blocks after texts of this mean length, without the head."""

    @abstractmethod
    def forward(self, batch: ReplayBatch, embed: Embed) -> Tensor:
        """What `head` reads of all draft slots of all blocks, [B, N, K, D] at least, from batch.features [B, T, F]."""

    def start(self, rows: int, capacity: int, device: torch.device, *, fixed: bool = False) -> RaggedCache:
        """An empty decoding state for a batch."""
        return RaggedCache(rows, capacity, device, fixed=fixed)

    @abstractmethod
    def extend(self, state: RaggedCache, features: Tensor, following: Tensor, embed: Embed) -> None:
        """Adds features [B, R, F] of committed tokens after each row's length; the caller advances `state.lengths`.

        `following` [B, R] are the tokens committed after each of them.
        """

    @abstractmethod
    def draft(self, state: RaggedCache, anchors: Tensor, embed: Embed, head: Head, propose: Propose) -> Tensor:
        """Proposes [B, K] tokens after the anchor tokens [B], which are at positions `state.lengths`.

        Fewer where `propose` ends and tokens are drafted one after the other. Nothing is seen of what the state holds
        from there on.
        """
