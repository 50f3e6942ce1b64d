"""Responses that are decoded together: the state of a rollout, and one step of it."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from draftopd.decoding.acceptance import accept, cut_at_stop
from draftopd.decoding.compiled import compiled, untimed
from draftopd.decoding.cuts import Cuts, Cutter
from draftopd.decoding.ledger import Ledger
from draftopd.decoding.sampling import Places, Proposal
from draftopd.decoding.settings import Decoding
from draftopd.drafters.base import Drafter
from draftopd.target.cache import RaggedCache
from draftopd.target.model import Target
from draftopd.trace import Rollout, Trace


@dataclass(frozen=True)
class RolloutOptions:
    """The keyword arguments of `rollout.rollout`."""

    keep_states: bool
    layer_ids: tuple[int, ...]
    keys: Sequence[int] | None
    drafter_step: int
    ledger: Ledger
    on_done: Callable[[int], None]
    store: Callable[[Tensor], Tensor]
    cuts: Cuts | None = None


@dataclass
class Response:
    """One response so far: only its prompt at first."""

    index: int
    prompt: Sequence[int]
    key: int
    """of its random numbers"""
    tokens: list[int] = field(default_factory=list)
    """prompt and committed tokens"""
    anchors: list[int] = field(default_factory=list)
    drafts: list[Tensor] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)
    hidden: list[Tensor] = field(default_factory=list)


class DecodingBatch:
    """Responses that are decoded together; `cache.lengths` are the positions of their anchors.

    A row whose response is complete stays in every forward, and costs what it costs, until a waiting prompt takes it or
    the batch is made smaller.

    Args:
        rows, capacity: how many rows, and positions of each.
        prefix: tokens with which every prompt begins, with at least one more after them; they are read once.
    """

    def __init__(
        self,
        target: Target,
        drafter: Drafter | None,
        decoding: Decoding,
        options: RolloutOptions,
        *,
        rows: int,
        capacity: int,
        prefix: Sequence[int],
    ) -> None:
        self.target, self.drafter, self.decoding, self.options = target, drafter, decoding, options
        self.ledger = options.ledger
        self.num_draft_tokens = 0 if drafter is None else drafter.num_draft_tokens
        self.capacity, self.prefix = capacity, list(prefix)
        device = target.device
        self.head = target.head()
        self.draft_head = None if drafter is None else drafter.head(target.head)
        self.stop = target.stop_tokens.to(device)
        self.rows: list[Response | None] = [None] * rows
        fixed = bool(decoding.compile)
        self.cache = RaggedCache(rows, self.capacity, device, fixed=fixed)
        self.state = None if drafter is None else drafter.start(rows, self.capacity, device, fixed=fixed)
        if self.state is not None:  # the same tensor in every step: a compiled one would note the difference
            self.state.lengths = self.cache.lengths
        self.compute = compiled(type(self)._compute, decoding.compile) if fixed else type(self)._compute
        self.opening: tuple[RaggedCache, Tensor, Tensor] | None = None  # the prefix, read
        self.features: Tensor | None = None  # [rows, capacity, F]
        self.keys = torch.zeros(rows, dtype=torch.long, device=device)  # of the responses' random numbers
        self.tokens = torch.zeros(rows, dtype=torch.long, device=device)  # the anchors
        self.room = torch.zeros(rows, dtype=torch.long, device=device)  # tokens still allowed
        self.done = torch.ones(rows, dtype=torch.bool, device=device)

    def free(self) -> list[int]:
        return [i for i, row in enumerate(self.rows) if row is None]

    def join(self, new: Sequence[Response]) -> None:
        """Reads new prompts into free rows and commits each response's first token, which is the target's own."""
        device = self.target.device
        lengths = torch.tensor([len(r.prompt) for r in new], device=device)
        keys = torch.tensor([r.key for r in new], device=device)
        padded = torch.nn.utils.rnn.pad_sequence([torch.tensor(r.prompt) for r in new], batch_first=True).to(device)
        cache, hidden, features = self._prefill(padded)
        last = hidden.gather(1, (lengths - 1)[:, None, None].expand(-1, 1, hidden.shape[-1]))
        tokens = Places(self.decoding, keys, lengths - 1).choose(self.head(last))[:, 0]
        taken = self.free()[: len(new)]
        rows = torch.tensor(taken, device=device)
        cache.lengths = lengths
        self.cache.put(rows, cache)
        if self.drafter is not None and self.state is not None:
            state = self.drafter.start(len(new), padded.shape[1], device)
            following = padded.roll(-1, 1).scatter(1, (lengths - 1)[:, None], tokens[:, None])
            self.drafter.extend(state, features, following, self.target.embed)
            state.lengths = lengths
            self.state.put(rows, state)
        self.ledger.join(self.target, self.drafter, *padded.shape)
        if self.options.keep_states:
            if self.features is None:
                self.features = features.new_zeros(len(self.rows), self.capacity, features.shape[-1])
            self.features[rows, : features.shape[1]] = features
        limit = self.decoding.max_new_tokens
        self.keys[rows], self.tokens[rows], self.room[rows] = keys, tokens, limit - 1
        self.done[rows] = torch.isin(tokens, self.stop) | (limit <= 1)
        for row, response, token in zip(taken, new, tokens.tolist(), strict=True):
            response.tokens = [*response.prompt, token]
            self.rows[row] = response

    def _prefill(self, tokens: Tensor) -> tuple[RaggedCache, Tensor, Tensor]:
        """Cache of P positions, hidden states [B, P, D] and features [B, P, F] of prompts [B, P]."""
        cache = RaggedCache(len(tokens), tokens.shape[1], tokens.device)
        if not self.prefix:
            return cache, *self._read(tokens, cache)
        if self.opening is None:
            first = RaggedCache(1, len(self.prefix), tokens.device)
            self.opening = (first, *self._read(tokens[:1, : len(self.prefix)], first))
            first.lengths += len(self.prefix)
        first, *opening = self.opening
        cache.put(slice(None), first)
        parts = zip(opening, self._read(tokens[:, len(self.prefix) :], cache), strict=True)
        hidden, features = (torch.cat([shared.expand(len(tokens), -1, -1), own], 1) for shared, own in parts)
        return cache, hidden, features

    def _read(self, tokens: Tensor, cache: RaggedCache) -> tuple[Tensor, Tensor]:
        result = self.target.step(tokens, cache, self.options.layer_ids)
        self.ledger.prefill(self.target, tokens.shape[0], tokens.shape[1], cache.end)
        return result

    def step(self) -> None:
        """One block for every row, complete ones included: draft, verify, accept, commit."""
        mean_length = float(self.cache.lengths.double().mean())
        timed = untimed if self.cache.fixed else self.ledger.timed
        drafts, accepted, bonus, committed, hidden, features = self.compute(self, timed)
        self.ledger.verify(self.target, self.drafter, len(drafts), drafts.shape[1] + 1, mean_length)
        self.ledger.verify_head(self.target, self.verified(hidden))
        if self.features is not None:
            self.features[self.cache.where] = features
        counts, ended = cut_at_stop(committed, accepted + 1, self.stop, self.room)
        self._record(drafts, torch.minimum(accepted, counts), committed, counts, hidden[:, :-1])
        self.room = self.room - counts
        self.tokens = bonus
        self.done = self.done | ended
        self.cache.lengths = torch.where(self.done, self.cache.lengths, self.cache.lengths + accepted + 1)
        if self.state is not None:
            self.state.lengths = self.cache.lengths

    def _compute(self, timed: Callable[[str], AbstractContextManager[None]]) -> tuple[Tensor, ...]:
        """What a step computes: drafts [B, K], the number accepted [B], the bonus token [B], all of them as they are
        committed [B, W], and the verification's hidden states and features.
        """
        places = Places(self.decoding, self.keys, self.cache.lengths)
        cutter = None if self.options.cuts is None else Cutter(self.options.cuts, ~self.done)
        proposal = Proposal(places, cutter)
        drafts = self.tokens[:, None][:, :0]
        if self.drafter is not None:
            assert self.state is not None
            assert self.draft_head is not None
            with timed("draft"):
                drafts = self.drafter.draft(self.state, self.tokens, self.target.embed, self.draft_head, proposal)
                drafts = drafts if cutter is None else drafts[:, : cutter.length]
        block = torch.cat([self.tokens[:, None], drafts], 1)
        with timed("verify"):
            hidden, features = self.target.step(block, self.cache, self.options.layer_ids)
            accepted, bonus = self._accept(drafts, hidden, places, proposal)
        committed = torch.cat([drafts, bonus[:, None]], 1).scatter(1, accepted[:, None], bonus[:, None])
        if self.drafter is not None and self.state is not None:
            self.drafter.extend(self.state, features, committed, self.target.embed)
        return drafts, accepted, bonus, committed, hidden, features

    def verified(self, hidden: Tensor) -> int:
        """Rows of a verification [B, W, D] that the target's head reads."""
        return hidden.shape[0] * hidden.shape[1]

    def _accept(self, drafts: Tensor, hidden: Tensor, places: Places, proposal: Proposal) -> tuple[Tensor, Tensor]:
        """The number of leading drafts to commit [B], and the token [B] to commit after them."""
        vocabulary = None if self.draft_head is None else self.draft_head.vocabulary
        return accept(drafts, self.head(hidden), places, proposal, vocabulary)

    def _record(self, drafts: Tensor, accepted: Tensor, committed: Tensor, counts: Tensor, hidden: Tensor) -> None:
        """Adds a step's ids, of which `counts` [B] are committed, and its hidden states to the rows."""
        values = (drafts.cpu(), accepted.tolist(), hidden, committed.tolist(), counts.tolist())
        for row, proposed, num_accepted, states, tokens, count in zip(self.rows, *values, strict=True):
            if row is None:
                continue
            if self.num_draft_tokens:
                row.anchors.append(len(row.tokens) - 1)
                row.drafts.append(proposed)
                row.accepted.append(num_accepted)
                if self.options.keep_states:
                    row.hidden.append(states.clone())
            row.tokens += tokens[:count]
            self.ledger.tokens["decode"] += count

    def finished(self) -> dict[int, Rollout]:
        """The complete responses by the index of their prompts; frees their rows."""
        results = {}
        for i, (row, done) in enumerate(zip(self.rows, self.done.tolist(), strict=True)):
            if done and row is not None:
                results[row.index] = self._result(i, row)
                self.rows[i] = None
        return results

    def compact(self) -> None:
        """Drops the free rows, which no prompt waits for."""
        stay = (~self.done).nonzero()[:, 0]
        self.rows = [row for row in self.rows if row is not None]
        self.keys, self.tokens, self.room = self.keys[stay], self.tokens[stay], self.room[stay]
        self.done = self.done[stay]
        self.cache.select(stay)
        self.features = None if self.features is None else self.features[stay]
        if self.state is not None:
            self.state.select(stay)
            self.state.lengths = self.cache.lengths

    def _padded(self, drafts: Tensor) -> Tensor:
        return F.pad(drafts, (0, self.num_draft_tokens - len(drafts)))

    def _result(self, index: int, row: Response) -> Rollout:
        empty = torch.zeros(0, self.num_draft_tokens, dtype=torch.long)
        whole = all(len(drafts) == self.num_draft_tokens for drafts in row.drafts)
        trace = Trace(
            tokens=torch.tensor(row.tokens),
            prompt_length=len(row.prompt),
            anchors=torch.tensor(row.anchors, dtype=torch.long),
            drafts=torch.stack([self._padded(drafts) for drafts in row.drafts]) if row.drafts else empty,
            accepted=torch.tensor(row.accepted, dtype=torch.long),
            drafter_step=self.options.drafter_step,
            verified=None if whole else torch.tensor([len(drafts) for drafts in row.drafts]),
        )
        if self.features is None:
            return Rollout(trace)
        features = self.features[index, : len(row.tokens)].clone()
        features[-1] = 0
        nothing = features.new_zeros(0, self.num_draft_tokens, self.target.config.hidden_size)
        hidden = torch.stack(row.hidden) if row.hidden else nothing
        return Rollout(trace, self.options.store(features), self.options.store(hidden))
