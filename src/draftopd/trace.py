"""The record of one rollout, and the batch for its replay.

Shape legend of the whole package: B batch, T committed tokens, N blocks, K drafts of a block, W = K + 1 (anchor and
drafts), F features, D hidden, V vocabulary, M rows (flattened valid draft positions).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from rich.text import Text
from torch import Tensor


@dataclass(frozen=True)
class Outcome:
    """What became of one block: token ids, each [n]."""

    accepted: Tensor
    rejected: Tensor
    """verified drafts after the accepted ones"""
    own: Tensor
    """the target's token after the accepted drafts: a correction, or the bonus where all held; none at a text's end"""


@dataclass(frozen=True)
class Trace:
    """One response and the blocks that were drafted for it, as token ids.

    A text that was decoded without a drafter is a trace with N = 0.
    """

    tokens: Tensor
    """[T] prompt and committed tokens"""
    prompt_length: int
    anchors: Tensor
    """[N] index into tokens of each block's anchor: the last token committed when the block was drafted"""
    drafts: Tensor
    """[N, K] what the drafter proposed for the positions after the anchor"""
    accepted: Tensor
    """[N] how many leading drafts were accepted, 0..K"""
    drafter_step: int = 0
    """optimizer step of the weights that drafted; -1 = there was no drafter"""
    verified: Tensor | None = None
    """[N] drafts of each block that were verified, where blocks were cut (`decoding/cuts.py`), the others being zeros;
    None = all K"""

    @property
    def response_length(self) -> int:
        return len(self.tokens) - self.prompt_length

    @property
    def sent(self) -> Tensor:
        """[N] drafts that the target verified: K, or fewer in blocks that were cut."""
        return torch.full_like(self.accepted, self.drafts.shape[1]) if self.verified is None else self.verified

    @property
    def drafted(self) -> Tensor:
        """[N] the same, but only the accepted ones of a last block that a stop token or the length limit has ended."""
        drafted = self.sent.clone()
        if len(drafted) and int(self.anchors[-1] + self.accepted[-1]) + 1 == len(self.tokens):
            drafted[-1] = self.accepted[-1]
        return drafted

    @property
    def committed(self) -> Tensor:
        """[N] tokens that each block added, bonus token included."""
        end = torch.cat([self.anchors[1:], torch.tensor([len(self.tokens) - 1])])[: len(self.anchors)]
        return end - self.anchors

    @property
    def acceptance_length(self) -> float:
        """Tokens committed / verifications, bonus included (NaN when nothing was drafted)."""
        return float(self.committed.double().mean())

    def check(self) -> "Trace":
        """Asserts the two invariants: blocks form a chain, and accepted drafts are the text after their anchor."""
        assert len(self.anchors) == len(self.drafts) == len(self.accepted), "one row per block"
        if len(self.anchors):
            steps = self.anchors[:-1] + self.accepted[:-1] + 1
            assert torch.equal(self.anchors[1:], steps), "the next anchor is the bonus token"
            end = int(self.anchors[-1] + self.accepted[-1])
            assert end < len(self.tokens) <= end + 2, "the last block ends the text"
        for anchor, drafts, accepted in zip(self.anchors.tolist(), self.drafts, self.accepted.tolist(), strict=True):
            text = self.tokens[anchor + 1 : anchor + 1 + accepted]
            assert torch.equal(text, drafts[:accepted]), f"accepted drafts after {anchor} are the text"
        return self

    @property
    def opening(self) -> Tensor:
        """[n] what the response begins with before its first block: the target's own tokens."""
        first = int(self.anchors[0]) if len(self.anchors) else len(self.tokens) - 1
        return self.tokens[self.prompt_length : first + 1]

    @property
    def outcomes(self) -> list[Outcome]:
        """Of each block, in order."""
        blocks = zip(self.anchors.tolist(), self.drafts, self.accepted.tolist(), self.drafted.tolist(), strict=True)
        return [
            Outcome(drafts[:held], drafts[held:end], self.tokens[anchor + held + 1 : anchor + held + 2])
            for anchor, drafts, held, end in blocks
        ]

    def render(self, tokenizer: Any, prompt: bool = False) -> Text:
        """The response: accepted drafts green, rejected ones red and struck out, the target's own tokens bold blue."""

        def words(ids: Tensor) -> str:
            return str(tokenizer.decode(ids.tolist()))

        out = Text(words(self.tokens[: self.prompt_length]), style="dim") if prompt else Text()
        out.append(words(self.opening), style="bold blue")
        for block in self.outcomes:
            out.append(words(block.accepted), style="green")
            out.append(words(block.rejected), style="red strike")
            out.append(words(block.own), style="bold blue")
        return out


@dataclass(frozen=True)
class Rollout:
    """A trace and, if asked for, the states that its verifications computed."""

    trace: Trace
    features: Tensor | None = None
    """[T, F] features of the committed tokens; those of the last token are never computed and are zero"""
    target_hidden: Tensor | None = None
    """[N, K, D] the target's last hidden state for each draft, the same that `Target.replay` computes"""


@dataclass  # not frozen: Lightning converts its tensors where trainer.precision asks for it
class ReplayBatch:
    """Texts with blocks at given anchors, padded. SFT is the case where every draft is accepted."""

    tokens: Tensor
    """[B, T] prompt and committed tokens"""
    anchors: Tensor
    """[B, N]"""
    drafts: Tensor
    """[B, N, K]"""
    accepted: Tensor
    """[B, N]"""
    drafted: Tensor
    """[B, N] end of a block's supervised drafts, 0..K; 0 marks a padding block"""
    lengths: Tensor
    """[B] committed tokens"""
    drafter_step: Tensor
    """[B] optimizer step of the weights that drafted"""
    features: Tensor | None = None
    """[B, T, F] the target's features of the committed tokens, if known"""
    target_hidden: Tensor | None = None
    """[B, N, K, D] the target's last hidden state for each draft, if known"""
    skipped: Tensor | None = None
    """[B, N] leading drafts of a block that are not supervised; None = all are supervised"""
    rows: Tensor | None = None
    """[R, n] the blocks of all texts, b N + n each, as the drafter computes them, B N where there is none (`packed`);
    None = as they lie here"""

    @property
    def valid(self) -> Tensor:
        """[B, N, K] the draft slots that are supervised."""
        slots = torch.arange(self.drafts.shape[2], device=self.drafts.device)
        valid = slots < self.drafted[..., None]
        return valid if self.skipped is None else valid & (slots >= self.skipped[..., None])

    def without_tails(self) -> "ReplayBatch":
        """Supervised up to the first rejected draft of every block: for these drafts the prefix is the text."""
        return replace(self, drafted=torch.minimum(self.drafted, self.accepted + 1))

    def parts(self, size: int) -> "list[ReplayBatch]":
        """Batches of at most `size` of its texts."""
        whole = replace(self, rows=None)
        tensors = {name: value for name, value in vars(whole).items() if isinstance(value, Tensor)}
        starts = range(0, len(self.tokens), size)
        return [replace(whole, **{name: value[at : at + size] for name, value in tensors.items()}) for at in starts]

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "ReplayBatch":
        return self._each(lambda value: value.to(device, non_blocking=non_blocking))

    def pinned(self) -> "ReplayBatch":
        """In memory from which a GPU can copy by itself."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> "ReplayBatch":
        changed = {name: change(value) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **changed)


def collate(
    traces: Sequence[Trace], features: Sequence[Tensor | None] = (), target_hidden: Sequence[Tensor | None] = ()
) -> ReplayBatch:
    """Pads traces to one batch, and the target's states where all traces have them."""

    def pad(rows: list[Tensor]) -> Tensor:
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)

    def pad_states(rows: Sequence[Tensor | None]) -> Tensor | None:
        states = [row for row in rows if row is not None]
        return pad(states) if len(states) == len(traces) else None

    return ReplayBatch(
        tokens=pad([t.tokens for t in traces]),
        anchors=pad([t.anchors for t in traces]),
        drafts=pad([t.drafts for t in traces]),
        accepted=pad([t.accepted for t in traces]),
        drafted=pad([t.drafted for t in traces]),
        lengths=torch.tensor([len(t.tokens) for t in traces]),
        drafter_step=torch.tensor([t.drafter_step for t in traces]),
        features=pad_states(features),
        target_hidden=pad_states(target_hidden),
    )


def no_blocks(num_draft_tokens: int, feature_size: int, hidden_size: int) -> ReplayBatch:
    """A batch without supervised drafts, for a process whose share is empty: its gradients are zeros."""
    zero = torch.zeros(1, dtype=torch.long)
    trace = Trace(zero, 1, anchors=zero, drafts=zero.expand(1, num_draft_tokens), accepted=zero, drafter_step=-1)
    batch = collate([trace], [torch.zeros(1, feature_size)], [torch.zeros(1, num_draft_tokens, hidden_size)])
    return replace(batch, lengths=torch.zeros_like(batch.lengths))  # it is no text: neither counted nor charged


def collate_rollouts(rollouts: Sequence[Rollout]) -> ReplayBatch:
    return collate([r.trace for r in rollouts], [r.features for r in rollouts], [r.target_hidden for r in rollouts])


def text_blocks(
    texts: Sequence[Trace],
    anchors: Sequence[Tensor],
    num_draft_tokens: int,
    features: Sequence[Tensor | None] = (),
    hidden: Sequence[Tensor | None] = (),
) -> ReplayBatch:
    """SFT's batch: at each anchor the drafts are the tokens that follow in the text, all accepted.

    Args:
        anchors: for each text, [N] indices with at least one token after them.
        hidden: for each text, [T, D] the target's last hidden states; the row before a token verifies it.
    """
    traces, verifying = [], list[Tensor | None]()
    for text, at, states in zip(texts, anchors, hidden or [None] * len(texts), strict=True):
        last = len(text.tokens) - 1
        index = at[:, None] + torch.arange(1, num_draft_tokens + 1)
        accepted = (last - at).clamp(max=num_draft_tokens)
        traces.append(
            replace(text, anchors=at, drafts=text.tokens[index.clamp(max=last)], accepted=accepted, verified=None)
        )
        verifying.append(None if states is None else states[(index - 1).clamp(max=last)])
    batch = collate(traces, features, verifying)
    return replace(batch, drafted=batch.accepted)
