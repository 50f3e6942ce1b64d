"""What training has cost: tokens, FLOPs and seconds per phase.

FLOPs are two per multiply-add of every matrix product: 2 · weights · rows for linear layers, 4 · heads · head_dim for
each visible (query, key) pair of attention, full attention in every layer. A backward pass counts twice its forward.
They are those of all rows in a forward, also of padding in prompts and of complete responses that wait for their batch
to be made smaller; a block that is cut counts the drafts of a whole one. They leave out layers that run twice to save
memory, pairs that a kernel computes and hides, and padding of training batches and of texts that are read.
tests/decoding/test_ledger.py compares them with the operations that really ran.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from draftopd.drafters.base import Drafter
from draftopd.target.model import Target
from draftopd.trace import ReplayBatch, Trace

PHASES = ("prefill", "verify", "replay", "draft", "train", "decode", "redraft", "paid")


def _causal(rows: int, width: int, length: float) -> float:
    """Visible pairs of `width` queries in each row; the last query sees `length` keys, on average over the rows."""
    return rows * width * (length - (width - 1) / 2)


class Ledger:
    """Adds up costs by phase: `prefill`, `verify` and `replay` of the target, `draft` and `train` of the drafter;
    `paid` for texts that were there before.

    Tokens are those that a model reads in a phase; but `decode` counts tokens that verifications commit, and `redraft`
    response tokens that are drafted again. Seconds nest: `rollout` holds `prefill` and `decode`, `decode` and `redraft`
    hold `draft`, `decode` holds `verify`, `train` holds `replay`, and so does `redraft` for texts without features. On
    a GPU `draft` and `verify` are the time to launch the work; a step waits for its end before its `decode` ends.
    """

    def __init__(self) -> None:
        self.flops: dict[str, float] = defaultdict(float)
        self.tokens: dict[str, float] = defaultdict(float)
        self.seconds: dict[str, float] = defaultdict(float)
        self._texts: list[Ledger] = []
        self._shared = self._counts()

    @property
    def training_flops(self) -> float:
        """All phases. Writing the target's own texts has a ledger of its own, unless `texts.charged` adds it here."""
        return sum(self.flops.values())

    @property
    def target_tokens(self) -> float:
        """Tokens that the target has read; those of writing its own texts only where `texts.charged` adds them."""
        return sum(self.tokens.get(phase, 0.0) for phase in ("prefill", "verify", "replay", "paid"))

    def metrics(self) -> dict[str, float]:
        """Costs by phase, tokens per second where both are known, and FLOPs of writing texts in this process."""
        rates = {name: self.tokens[name] / t for name, t in self.seconds.items() if t and name in self.tokens}
        phases = {"flops": self.flops, "tokens": self.tokens, "seconds": self.seconds, "tokens_per_second": rates}
        out = {f"ledger/{kind}/{phase}": v for kind, values in phases.items() for phase, v in values.items()}
        return {**out, "ledger/flops/texts": sum(ledger.training_flops for ledger in self._texts)}

    def watch(self, texts: "Ledger") -> None:
        """Reports the ledger of a set of texts beside this one."""
        self._texts.append(texts)

    def state_dict(self) -> dict[str, dict[str, float]]:
        return {"flops": dict(self.flops), "tokens": dict(self.tokens), "seconds": dict(self.seconds)}

    def load_state_dict(self, state: dict[str, dict[str, float]]) -> None:
        for name, values in state.items():
            getattr(self, name).clear()
            getattr(self, name).update(values)
        self._shared = self._counts()

    def _counts(self) -> Tensor:
        """[2, phases] FLOPs and tokens."""
        counts = [[kind.get(p, 0.0) for p in PHASES] for kind in (self.flops, self.tokens)]
        return torch.tensor(counts, dtype=torch.float64)

    def share(self, add: Callable[[Tensor], Tensor]) -> None:
        """Adds the other processes' counts since the last call: every process calls it and has the same sums after it.

        Args:
            add: sums a tensor over processes.
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
        shape = target.shape
        attention = 4 * shape.num_layers * shape.num_attention_heads * shape.head_dim * pairs
        head = 2 * target.head().weight.numel() * heads
        self.flops[phase] += 2 * target.linear_weights * tokens + attention + head
        self.tokens[phase] += tokens

    def _draft(self, target: Target, drafter: Drafter, context: float, blocks: float, length: float) -> None:
        """Taking in `context` committed tokens, and drafting `blocks` after texts of this mean length."""
        drafts = blocks * drafter.num_draft_tokens
        self.flops["draft"] += drafter.context_flops(context) + drafter.block_flops(blocks, length)
        self.flops["draft"] += 2 * drafter.head_weights(target.vocab_size) * drafts
        self.tokens["draft"] += drafts

    def prefill(self, target: Target, rows: int, width: int, length: int) -> None:
        """Reading `width` prompt tokens in each of `rows` rows, up to position `length`."""
        self._target("prefill", target, rows * width, _causal(rows, width, length), 0)

    def join(self, target: Target, drafter: Drafter | None, rows: int, width: int) -> None:
        """The first tokens of `rows` responses; the drafter takes in their prompts of `width` tokens."""
        self._target("prefill", target, 0, 0, rows)
        if drafter is not None:
            self.flops["draft"] += drafter.context_flops(rows * width)

    def verify(self, target: Target, drafter: Drafter | None, rows: int, width: int, length: float) -> None:
        """`width` tokens in each of `rows` rows after texts of a mean length, and the drafter's part of that step."""
        self._target("verify", target, rows * width, _causal(rows, width, length + width), 0)
        if drafter is not None:
            self._draft(target, drafter, rows * width, rows, length)

    def redraft(self, target: Target, drafter: Drafter, trace: Trace) -> None:
        """Taking in a text and drafting the blocks of its new trace."""
        length = float(trace.anchors.double().mean()) if len(trace.anchors) else 0.0
        self._draft(target, drafter, len(trace.tokens), len(trace.anchors), length)
        self.tokens["redraft"] += trace.response_length - 1

    def read(self, target: Target, length: int) -> None:
        """Reading a text for its features."""
        self._target("replay", target, length, _causal(1, length, length), 0)

    def write(self, target: Target, text: Trace, shared: int) -> None:
        """Pays for writing a text by plain decoding, by the formula: another run may have written it.

        Args:
            shared: tokens with which all prompts begin; they are read once for all.
        """
        first, rest = text.prompt_length - shared, text.response_length - 1
        self._target("paid", target, first, _causal(1, first, text.prompt_length), 1)
        self._target("paid", target, rest, _causal(1, rest, text.prompt_length + rest), rest)

    def verify_head(self, target: Target, rows: int) -> None:
        """The target's head over the rows of a verification."""
        self.flops["verify"] += 2 * target.head().weight.numel() * rows

    def replay(self, target: Target, batch: ReplayBatch) -> None:
        tails = (batch.drafted - batch.accepted - 1).clamp(min=0).double()
        lengths = batch.lengths.double()
        seen = tails * (batch.anchors + batch.accepted + 1 + (tails + 1) / 2)
        pairs = float((lengths * (lengths + 1) / 2).sum() + seen.sum())
        self._target("replay", target, float(lengths.sum() + tails.sum()), pairs, 0)

    def train(
        self, target: Target, drafter: Drafter, batch: ReplayBatch, target_rows: bool, whole_head: bool = False
    ) -> None:
        """One forward and backward of the drafter over a batch.

        Args:
            target_rows: the target's logits are computed too.
            whole_head: so are those of its whole vocabulary, beside those of a reduced draft vocabulary.
        """
        blocks = float((batch.drafted > 0).sum())
        rows = float(batch.valid.sum())
        mean_length = float(batch.anchors[batch.drafted > 0].double().mean()) if blocks else 0.0
        head = 2 * drafter.head_weights(target.vocab_size) * rows
        tokens = float(batch.lengths.sum())
        forward = drafter.context_flops(tokens) + drafter.block_flops(blocks, mean_length)
        own = 2 * drafter.own_head_weights(target.vocab_size) * rows
        self.flops["train"] += 3 * forward - 2 * drafter.fc.weight.numel() * tokens
        # what is lent of a head is frozen: backward goes through it only once, to the hidden states
        self.flops["train"] += 2 * head + own
        self.flops["train"] += 2 * 2 * drafter.confidence_weights * rows  # its gradient ends at its weights
        if target_rows:
            self.flops["train"] += 2 * drafter.hidden_size * drafter.head_rows(target.vocab_size) * rows
        self.flops["train"] += 2 * target.head().weight.numel() * rows if whole_head else 0
        self.tokens["train"] += rows
