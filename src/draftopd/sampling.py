"""How tokens are chosen, and the two rules that keep speculative decoding lossless.

Random numbers belong to places, not to calls: a uniform number is a function of (seed, response, position, use). So a
response does not depend on the batch that it was written in, and token matching commits, token for token, what plain
sampling would have written.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from draftopd.errors import DraftError

CHOICE, DRAFT, JUDGE = range(3)  # uses of random numbers: the target's token, the drafter's token, keep a draft or not
SHORT = 256  # most probable tokens that usually hold the nucleus


@dataclass(frozen=True)
class Decoding:
    """How text is made; for plain and speculative decoding alike.

    Args:
        max_new_tokens: longest response.
        batch_size: prompts decoded together; changes speed and memory, not texts.
        temperature: 0 = greedy.
        top_k, top_p, min_p: filters of the target's distribution, applied in this order after the temperature.
        rule: `token_matching`: greedy drafts, kept while the target's own sample agrees (arXiv 2605.29343);
            `rejection`: drafts sampled from the drafter, kept with probability min(1, p/q), else a sample of the
            residual distribution (arXiv 2211.17192, 2302.01318). The same thing at temperature 0.
        seed: of the sampling.
        memory_gib: bound on the memory of a batch's caches and kept states, in GiB; fewer prompts are decoded together
            where it would be passed. Results that are kept for the caller are not in it.
    """

    max_new_tokens: int = 128
    batch_size: int = 16
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    rule: str = "token_matching"
    seed: int = 0
    memory_gib: float = 4.0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or self.batch_size < 1:
            raise DraftError("decoding.max_new_tokens and decoding.batch_size must be at least 1")
        if self.temperature < 0:
            raise DraftError(f"decoding.temperature={self.temperature}: 0 is greedy, larger is more random")
        if self.top_k is not None and self.top_k < 1:
            raise DraftError(f"decoding.top_k={self.top_k} keeps no token: null keeps all")
        for name, value in (("top_p", self.top_p), ("min_p", self.min_p)):
            if value is not None and not 0 < value <= 1:
                raise DraftError(f"decoding.{name}={value} must lie in (0, 1]: null does not filter")
        if self.rule not in ("token_matching", "rejection"):
            raise DraftError(f"decoding.rule={self.rule} is not known: token_matching or rejection")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    @property
    def samples_drafts(self) -> bool:
        return not self.greedy and self.rule == "rejection"

    @property
    def recipe(self) -> dict[str, float | int | None]:
        """What the target's own texts depend on, besides their length; greedy text depends on nothing."""
        filters = {"top_k": self.top_k, "top_p": self.top_p, "min_p": self.min_p}
        return {} if self.greedy else {"temperature": self.temperature, "seed": self.seed, **filters}


def probabilities(logits: Tensor, decoding: Decoding) -> Tensor:
    """The distribution that tokens are drawn from: logits [..., V] -> [..., V]; greedy is one-hot."""
    if decoding.greedy:
        return torch.zeros_like(logits).scatter(-1, logits.argmax(-1, keepdim=True), 1.0)
    logits = logits / decoding.temperature
    if decoding.top_k is not None and decoding.top_k < logits.shape[-1]:
        logits = _keep(logits, logits.topk(decoding.top_k).values[..., -1:])
    if decoding.top_p is not None and decoding.top_p < 1:
        logits = _keep(logits, _nucleus_end(logits, decoding.top_p))
    if decoding.min_p is not None:
        logits = _keep(logits, logits.amax(-1, keepdim=True) + torch.log(logits.new_tensor(decoding.min_p)))
    return logits.softmax(-1)


def _keep(logits: Tensor, least: Tensor) -> Tensor:
    return logits.masked_fill(logits < least, -torch.inf)


def _nucleus_end(logits: Tensor, top_p: float) -> Tensor:
    """[..., 1] the least logit of the smallest set of tokens whose mass reaches top_p (arXiv 1904.09751)."""
    total = logits.logsumexp(-1, keepdim=True)
    size = min(SHORT, logits.shape[-1])
    while True:
        values = logits.topk(size).values
        mass = (values - total).exp().cumsum(-1)
        if size == logits.shape[-1] or bool((mass[..., -1] >= top_p).all()):
            break
        size = logits.shape[-1]
    return values.gather(-1, (mass < top_p).sum(-1, keepdim=True).clamp(max=size - 1))


def uniforms(seed: int, keys: Tensor, positions: Tensor, use: int) -> Tensor:
    """Uniform numbers in (0, 1) for places: keys [B] of responses, positions [B, n] -> float64 [B, n].

    A counter-based generator (the mixing steps of SplitMix64): the same places give the same numbers on any device.
    """
    state = _mix(torch.full_like(keys, seed))
    state = _mix(state + keys)[:, None]
    state = _mix(state + positions * 4 + use)
    return (_shift(state, 12).double() + 0.5) * 2.0**-52


def _mix(x: Tensor) -> Tensor:
    x = x + -0x61C8864680B583EB  # 0x9E3779B97F4A7C15 as a signed number
    x = (x ^ _shift(x, 30)) * -0x40A7B892E31B1A47
    x = (x ^ _shift(x, 27)) * -0x6B2FB644ECCEEE15
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical shift to the right of signed 64-bit numbers."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def draw(weights: Tensor, uniform: Tensor) -> Tensor:
    """Samples by inverting the cumulative distribution: weights [..., V] >= 0 of any sum, uniform [...] -> [...]."""
    cumulative = weights.double().cumsum(-1)
    mark = uniform[..., None] * cumulative[..., -1:]
    return torch.searchsorted(cumulative, mark, right=True)[..., 0].clamp(max=weights.shape[-1] - 1)


class Places:
    """Where the tokens of one step stand: responses `keys` [B], whose anchors are at `positions` [B]."""

    def __init__(self, decoding: Decoding, keys: Tensor, positions: Tensor) -> None:
        self.decoding, self.keys, self.positions = decoding, keys, positions

    def uniforms(self, first: int, count: int, use: int) -> Tensor:
        """[B, count] for the tokens that stand `first`, `first` + 1, ... behind the anchor."""
        slots = torch.arange(first, first + count, device=self.positions.device)
        return uniforms(self.decoding.seed, self.keys, self.positions[:, None] + slots, use)

    def choose(self, logits: Tensor) -> Tensor:
        """The target's own tokens: logits [B, W, V] of the rows at the anchor and behind it -> [B, W]."""
        if self.decoding.greedy:
            return logits.argmax(-1)
        return draw(probabilities(logits, self.decoding), self.uniforms(1, logits.shape[1], CHOICE))


class Proposal:
    """Turns draft logits into drafts, slot after slot; remembers the distribution that sampled drafts came from."""

    def __init__(self, places: Places) -> None:
        self.places = places
        self.index: list[Tensor] = []
        self.probabilities: list[Tensor] = []

    def __call__(self, logits: Tensor) -> Tensor:
        """Rows of the draft head [B, n] for the next n slots, from logits [B, n, V']."""
        decoding = self.places.decoding
        if not decoding.samples_drafts:
            return logits.argmax(-1)
        first = 1 + sum(index.shape[1] for index in self.index)
        q = probabilities(logits, decoding)
        self.index.append(draw(q, self.places.uniforms(first, logits.shape[1], DRAFT)))
        self.probabilities.append(q)
        return self.index[-1]


def accept(
    drafts: Tensor, logits: Tensor, places: Places, proposal: Proposal | None = None, vocabulary: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The lossless rule: which drafts stay, and the token that the target adds behind them.

    Args:
        drafts: [B, K] the proposed tokens.
        logits: [B, K + 1, V] the target's rows of the anchor and of each draft.
        proposal: what sampled the drafts, for rejection sampling.
        vocabulary: [V'] target ids of the proposal's rows; None = the same vocabulary.

    Returns:
        accepted [B], the number of leading drafts kept, and the bonus token [B] that follows them.
    """
    if proposal is None or not proposal.index:
        return match(drafts, places.choose(logits))
    p = probabilities(logits, places.decoding)
    uses = (places.uniforms(1, drafts.shape[1], JUDGE), places.uniforms(1, logits.shape[1], CHOICE))
    return reject(drafts, p, torch.cat(proposal.index, 1), torch.cat(proposal.probabilities, 1), *uses, vocabulary)


def match(drafts: Tensor, choices: Tensor) -> tuple[Tensor, Tensor]:
    """Token matching (arXiv 2605.29343): keep drafts [B, K] while they are the target's own choices [B, K + 1]."""
    accepted = (drafts == choices[:, :-1]).long().cumprod(1).sum(1)
    return accepted, choices.gather(1, accepted[:, None])[:, 0]


def reject(
    drafts: Tensor, p: Tensor, index: Tensor, q: Tensor, judge: Tensor, choice: Tensor, vocabulary: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Rejection sampling (arXiv 2211.17192, theorem 1): keep a draft x ~ q with probability min(1, p(x) / q(x)).

    The bonus token comes from the residual distribution max(p - q, 0) at the first rejection, or from p behind the
    last draft.

    Args:
        drafts [B, K], p [B, K + 1, V]. index [B, K] and q [B, K, V']: the drafts' rows in the draft vocabulary.
        judge [B, K], choice [B, K + 1]: uniform numbers.
    """
    of_draft = p[:, :-1].gather(2, drafts[..., None])[..., 0]
    kept = judge * q.gather(2, index[..., None])[..., 0] < of_draft
    accepted = kept.long().cumprod(1).sum(1)
    row = torch.arange(len(p), device=p.device)
    here = p[row, accepted]
    cut = accepted < drafts.shape[1]
    minus = q[row, accepted.clamp(max=q.shape[1] - 1)] * cut[:, None]
    residual = here.clone()
    if vocabulary is None:
        residual -= minus
    else:
        residual[:, vocabulary] -= minus
    residual = residual.clamp(min=0)
    # p = q up to rounding: nothing is left, and p itself is the limit
    residual = torch.where(residual.sum(1, keepdim=True) > 0, residual, here)
    return accepted, draw(residual, choice.gather(1, accepted[:, None])[:, 0])


def cut_at_stop(tokens: Tensor, counts: Tensor, stop: Tensor, room: Tensor) -> tuple[Tensor, Tensor]:
    """Cuts a block exactly where plain decoding would have ended.

    Args:
        tokens: [B, W] the block's committed tokens, of which the first `counts` [B] count.
        stop: [S] the stop tokens.
        room: [B] tokens still allowed by the length limit.

    Returns:
        counts [B] after the cut and done [B], whether the response ends here.
    """
    limited = torch.minimum(counts, room)
    slots = torch.arange(tokens.shape[1], device=tokens.device)
    stops = torch.isin(tokens, stop) & (slots < limited[:, None])
    first = torch.where(stops, slots, tokens.shape[1]).amin(1)
    return torch.minimum(limited, first + 1), (first < limited) | (limited == room)
