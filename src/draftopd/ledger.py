"""What training has cost: tokens, FLOPs and seconds per phase.

FLOPs are two per multiply-add of every matrix product: 2 · weights · rows for linear layers, 4 · heads · head_dim for
each visible (query, key) pair of attention. A backward pass counts twice its forward.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache

import torch
from torch import Tensor, nn

from draftopd.drafters.base import Drafter
from draftopd.target import Target
from draftopd.trace import ReplayBatch

PHASES = ("prefill", "verify", "replay", "draft", "train")


@lru_cache(maxsize=4)
def linear_weights(module: nn.Module) -> int:
    """Multiply-adds that one row costs in the linear layers of a module."""
    return sum(m.weight.numel() for m in module.modules() if isinstance(m, nn.Linear))


class Ledger:
    """Adds up costs by phase: `prefill`, `verify` and `replay` of the target, `draft` and `train` of the drafter."""

    def __init__(self) -> None:
        self.flops: dict[str, float] = defaultdict(float)
        self.tokens: dict[str, float] = defaultdict(float)
        self.seconds: dict[str, float] = defaultdict(float)
        self._texts: list[Ledger] = []
        self._shared = self._counts()

    @property
    def training_flops(self) -> float:
        """Everything but writing the target's own texts, which is done once for all runs that read them."""
        return sum(self.flops.values())

    def metrics(self) -> dict[str, float]:
        """Costs by phase, and what writing texts has cost in this process."""
        phases = {"flops": self.flops, "tokens": self.tokens, "seconds": self.seconds}
        out = {f"ledger/{kind}/{phase}": v for kind, values in phases.items() for phase, v in values.items()}
        return {**out, "ledger/flops/texts": sum(ledger.training_flops for ledger in self._texts)}

    def watch(self, texts: "Ledger") -> None:
        """The ledger of a set of texts, reported beside this one."""
        self._texts.append(texts)

    def state_dict(self) -> dict[str, dict[str, float]]:
        return {"flops": dict(self.flops), "tokens": dict(self.tokens), "seconds": dict(self.seconds)}

    def load_state_dict(self, state: dict[str, dict[str, float]]) -> None:
        for name, values in state.items():
            getattr(self, name).update(values)
        self._shared = self._counts()

    def _counts(self) -> Tensor:
        """[2, phases] FLOPs and tokens."""
        return torch.tensor(
            [[kind.get(p, 0.0) for p in PHASES] for kind in (self.flops, self.tokens)], dtype=torch.float64
        )

    def share(self, add: Callable[[Tensor], Tensor]) -> None:
        """Adds what the other processes have counted since the last call: all call it and hold the same afterwards.

        Args:
            add: the sum of a tensor over processes.
        """
        self._shared = self._shared + add(self._counts() - self._shared)
        for kind, values in zip((self.flops, self.tokens), self._shared.tolist(), strict=True):
            kind.update({phase: value for phase, value in zip(PHASES, values, strict=True) if value})

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] += time.perf_counter() - start

    def _target(self, phase: str, target: Target, tokens: float, pairs: float, heads: float) -> None:
        config = target.config
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        attention = 4 * config.num_hidden_layers * config.num_attention_heads * width * pairs
        head = 2 * target.head().weight.numel() * heads
        self.flops[phase] += 2 * linear_weights(target.body) * tokens + attention + head
        self.tokens[phase] += tokens

    def prefill(self, target: Target, drafter: Drafter | None, rows: int, width: int, length: int) -> None:
        """Reading `width` prompt tokens in each of `rows` rows, up to position `length`."""
        self._target("prefill", target, rows * width, rows * width * (length - width / 2), rows)
        if drafter is not None:
            self.flops["draft"] += drafter.context_flops(rows * width)

    def verify(self, target: Target, drafter: Drafter | None, rows: int, width: int, length: int) -> None:
        self._target("verify", target, rows * width, rows * width * length, rows * width)
        if drafter is not None:
            self.flops["draft"] += drafter.context_flops(rows * width)
            self.flops["draft"] += drafter.block_flops(rows, length)
            self.flops["draft"] += 2 * drafter.head_weights(target.vocab_size) * rows * drafter.num_draft_tokens
            self.tokens["draft"] += rows * drafter.num_draft_tokens

    def replay(self, target: Target, batch: ReplayBatch) -> None:
        tails = float((batch.drafted - batch.accepted - 1).clamp(min=0).sum())
        text = float(batch.lengths.sum())
        length = batch.tokens.shape[1]
        self._target("replay", target, text + tails, text * length / 2 + tails * length, 0)

    def train(
        self, target: Target, drafter: Drafter, batch: ReplayBatch, target_rows: bool, whole_head: bool = False
    ) -> None:
        """One forward and backward of the drafter over a batch, and the target's head where its logits are read.

        Args:
            whole_head: the target's logits of all tokens are read beside those of a reduced draft vocabulary.
        """
        blocks = float((batch.drafted > 0).sum())
        rows = float(batch.drafted.sum())
        mean_length = float(batch.anchors[batch.drafted > 0].double().mean()) if blocks else 0.0
        head = 2 * drafter.head_weights(target.vocab_size) * rows
        forward = drafter.context_flops(float(batch.lengths.sum())) + drafter.block_flops(blocks, mean_length)
        # a lent head is frozen: backward goes through it once, into the hidden states
        passes = 3 if drafter.owns_head else 2
        self.flops["train"] += 3 * forward + passes * head + (head if target_rows else 0)
        self.flops["train"] += 2 * target.head().weight.numel() * rows if whole_head else 0
        self.tokens["train"] += rows
