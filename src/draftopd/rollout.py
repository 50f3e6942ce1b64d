"""Target-assisted rollouts: draft, verify, accept, repeat. With no drafter it is plain decoding."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from draftopd.cache import RaggedCache, write
from draftopd.drafters.base import Drafter
from draftopd.ledger import Ledger
from draftopd.sampling import accept, choose, cut_at_stop
from draftopd.target import Target
from draftopd.trace import Trace


@dataclass(frozen=True)
class Decoding:
    """How text is made; part of every cache key. Greedy."""

    max_new_tokens: int = 128
    batch_size: int = 16


@dataclass(frozen=True)
class Rollout:
    """A trace and what the verifications computed on the way, when it was asked for."""

    trace: Trace
    features: Tensor | None = None
    """[T, F] features of the committed tokens; the last token's were never computed and are zero"""
    target_hidden: Tensor | None = None
    """[N, K, D] the hidden state that judged each draft: what `Target.replay` would compute again"""


@torch.no_grad()
def rollout(
    target: Target,
    drafter: Drafter | None,
    prompts: Sequence[Sequence[int]],
    decoding: Decoding,
    *,
    keep: bool = False,
    layer_ids: Sequence[int] = (),
    drafter_step: int = 0,
    ledger: Ledger | None = None,
    on_done: Callable[[int], None] = lambda finished: None,
) -> list[Rollout]:
    """Writes one response per prompt, in batches; results stand in the order of the prompts.

    The text is the target's greedy text whatever the drafter is. Gradients are off and the drafter is in eval mode
    while it runs, and both are restored.

    Args:
        drafter: None decodes plainly (K = 0, traces without blocks).
        prompts: token ids, at least one each.
        keep: also return features and target hidden states of the verifications.
        layer_ids: features to keep where there is no drafter.
        drafter_step: recorded in the traces.
        ledger: counts tokens and FLOPs of `prefill`, `verify` and `draft`.
        on_done: called with the number of responses just finished.
    """
    was_training = drafter is not None and drafter.training
    if drafter is not None:
        drafter.eval()
        layer_ids = drafter.layer_ids
    results: dict[int, Rollout] = {}
    # prompts of like length share a batch: less padding
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    try:
        for at in range(0, len(order), decoding.batch_size):
            chosen = order[at : at + decoding.batch_size]
            batch = _Batch(target, drafter, layer_ids, decoding.max_new_tokens, keep, drafter_step, ledger)
            batch.prefill({i: prompts[i] for i in chosen})
            while batch.rows:
                finished = batch.finish()
                results |= finished
                on_done(len(finished))
                if batch.rows:
                    batch.step()
    finally:
        if drafter is not None:
            drafter.train(was_training)
    return [results[i] for i in range(len(prompts))]


@dataclass
class _Row:
    """What one response has gathered so far."""

    prompt: int
    prompt_length: int
    tokens: list[int]
    anchors: list[int] = field(default_factory=list)
    drafts: list[Tensor] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)
    hidden: list[Tensor] = field(default_factory=list)


@dataclass
class _Batch:
    """Responses that are decoded together; `cache.lengths` are the positions of their anchors."""

    target: Target
    drafter: Drafter | None
    layer_ids: Sequence[int]
    limit: int
    keep: bool
    drafter_step: int
    ledger: Ledger | None

    def prefill(self, prompts: dict[int, Sequence[int]]) -> None:
        """Reads the prompts and commits each response's first token, which the target writes alone."""
        device = self.target.device
        self.num_draft_tokens = 0 if self.drafter is None else self.drafter.num_draft_tokens
        self.head = self.target.head()
        self.draft_head = None if self.drafter is None else self.target.head(self.drafter.vocabulary)
        self.stop = self.target.stop_tokens.to(device)
        lengths = torch.tensor([len(p) for p in prompts.values()], device=device)
        padded = torch.nn.utils.rnn.pad_sequence([torch.tensor(p) for p in prompts.values()], batch_first=True)
        capacity = padded.shape[1] + self.limit + self.num_draft_tokens + 1
        self.cache = RaggedCache(len(prompts), capacity, device)
        self.state = None if self.drafter is None else self.drafter.start(len(prompts), capacity, device)
        hidden, features = self.target.step(padded.to(device), self.cache, self.layer_ids)
        self.kept = features.new_zeros(len(prompts), capacity, features.shape[-1]) if self.keep else None
        self._remember(features)
        last = hidden.gather(1, (lengths - 1)[:, None, None].expand(-1, 1, hidden.shape[-1]))
        self.tokens = choose(self.head(last))[:, 0]
        self.done = torch.isin(self.tokens, self.stop) | (self.limit <= 1)
        self.room = torch.full_like(lengths, self.limit - 1)
        self._advance(lengths)
        firsts = self.tokens.tolist()
        self.rows = [_Row(i, len(p), [*p, t]) for (i, p), t in zip(prompts.items(), firsts, strict=True)]
        if self.ledger:
            self.ledger.prefill(self.target, self.drafter, padded.numel(), padded.shape[1], len(prompts))

    def step(self) -> None:
        """One block for every row: draft, verify, accept, commit."""
        drafts = self.tokens[:, None][:, :0]
        if self.drafter is not None:
            assert self.state is not None and self.draft_head is not None
            drafts = self.drafter.draft(self.state, self.tokens, self.target.embed, self.draft_head)
        block = torch.cat([self.tokens[:, None], drafts], 1)
        hidden, features = self.target.step(block, self.cache, self.layer_ids)
        if self.ledger:
            self.ledger.verify(self.target, self.drafter, len(block), block.shape[1], self.cache.end)
        self._remember(features)
        kept, bonus = accept(drafts, choose(self.head(hidden)))
        committed = torch.cat([drafts, bonus[:, None]], 1).scatter(1, kept[:, None], bonus[:, None])
        counts, self.done = cut_at_stop(committed, kept + 1, self.stop, self.room)
        self.room = self.room - counts
        self._record(drafts, torch.minimum(kept, counts), committed, counts, hidden[:, :-1])
        self.tokens = bonus
        self._advance(kept + 1)

    def _remember(self, features: Tensor) -> None:
        """Features of the tokens just read go to the drafter and, if wanted, to the results."""
        if self.drafter is not None and self.state is not None:
            self.drafter.extend(self.state, features)
        if self.kept is not None:
            write(self.kept, features, self.cache.lengths)

    def _advance(self, counts: Tensor) -> None:
        self.cache.lengths = self.cache.lengths + counts
        if self.state is not None:
            self.state.lengths = self.cache.lengths

    def _record(self, drafts: Tensor, kept: Tensor, committed: Tensor, counts: Tensor, hidden: Tensor) -> None:
        """Bookkeeping in ids only; no model runs here."""
        drafts, committed = drafts.cpu(), committed.cpu()
        for i, (row, accepted, count) in enumerate(zip(self.rows, kept.tolist(), counts.tolist(), strict=True)):
            if self.num_draft_tokens:
                row.anchors.append(len(row.tokens) - 1)
                row.drafts.append(drafts[i])
                row.accepted.append(accepted)
            if self.keep and self.num_draft_tokens:
                row.hidden.append(hidden[i])
            row.tokens += committed[i, :count].tolist()

    def finish(self) -> dict[int, Rollout]:
        """Takes the finished rows out of the batch."""
        if not bool(self.done.any()):
            return {}
        done = self.done.tolist()
        results = {row.prompt: self._result(i, row) for i, row in enumerate(self.rows) if done[i]}
        stay = (~self.done).nonzero()[:, 0]
        self.rows = [row for i, row in enumerate(self.rows) if not done[i]]
        self.tokens, self.room, self.done = self.tokens[stay], self.room[stay], self.done[stay]
        self.cache.select(stay)
        if self.kept is not None:
            self.kept = self.kept[stay]
        if self.state is not None:
            self.state.select(stay)
            self.state.lengths = self.cache.lengths
        return results

    def _result(self, index: int, row: _Row) -> Rollout:
        empty = torch.zeros(0, self.num_draft_tokens, dtype=torch.long)
        trace = Trace(
            tokens=torch.tensor(row.tokens),
            prompt_length=row.prompt_length,
            anchors=torch.tensor(row.anchors, dtype=torch.long),
            drafts=torch.stack(row.drafts) if row.drafts else empty,
            accepted=torch.tensor(row.accepted, dtype=torch.long),
            drafter_step=self.drafter_step,
        )
        if self.kept is None:
            return Rollout(trace)
        features = self.kept[index, : len(row.tokens)].clone()
        features[-1] = 0
        hidden = torch.stack(row.hidden) if row.hidden else features.new_zeros(0, self.num_draft_tokens, 0)
        return Rollout(trace, features.cpu(), hidden.cpu())
