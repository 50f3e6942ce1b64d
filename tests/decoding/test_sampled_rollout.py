"""Rollouts above temperature 0: what is committed follows the target, whatever the drafter and the batch."""

import copy

import pytest
import torch
from scipy import stats
from test_sampling import commits_the_draft, one_too_many

from draftopd.decoding import batch
from draftopd.decoding.cuts import Cuts
from draftopd.decoding.rollout import rollout
from draftopd.decoding.sampling import probabilities
from draftopd.decoding.settings import Decoding
from draftopd.drafters.base import Drafter
from draftopd.drafters.dflash import DFlash
from draftopd.errors import DraftError
from draftopd.evaluation.stats import ratio
from draftopd.target.model import Target
from draftopd.trace import collate
from pair import PROMPTS


def texts(results) -> list[list[int]]:
    return [r.trace.tokens.tolist() for r in results]


@pytest.mark.parametrize("filters", [{}, {"top_p": 0.9}, {"top_k": 20, "min_p": 0.01}], ids=str)
@pytest.mark.parametrize("limit", [1, 6, 24])
def test_token_matching_commits_what_plain_sampling_writes(target: Target, eager_drafter: DFlash, filters, limit):
    decoding = Decoding(limit, batch_size=2, temperature=0.8, seed=4, **filters)
    plain, fast = (rollout(target, d, PROMPTS, decoding) for d in (None, eager_drafter))
    assert texts(plain) == texts(fast)
    for result in fast:
        assert 1 <= result.trace.check().response_length <= limit


@pytest.mark.parametrize("rule", ["token_matching", "rejection"])
def test_the_batch_size_changes_neither_texts_nor_traces(target: Target, eager_drafter: DFlash, rule: str):
    # in float64, where no draw is so close to a boundary that the order of additions decides it
    target, eager_drafter = copy.deepcopy(target).double(), copy.deepcopy(eager_drafter).double()
    one, many = (
        rollout(target, eager_drafter, PROMPTS, Decoding(24, size, temperature=1.0, rule=rule)) for size in (1, 4)
    )
    for a, b in zip(one, many, strict=True):
        for name in ("tokens", "anchors", "drafts", "accepted"):
            assert torch.equal(getattr(a.trace, name), getattr(b.trace, name))
        a.trace.check()


def test_the_same_key_draws_the_same_text_and_another_draws_another(target: Target, eager_drafter: DFlash):
    decoding = Decoding(24, temperature=1.0)
    a, b, c = (r.trace.tokens for r in rollout(target, eager_drafter, [PROMPTS[0]] * 3, decoding, keys=[8, 9, 8]))
    assert torch.equal(a, c)
    assert not torch.equal(a, b)
    (again,) = rollout(target, eager_drafter, [PROMPTS[0]], decoding, keys=[9])
    assert torch.equal(again.trace.tokens, b)
    (other,) = rollout(target, eager_drafter, [PROMPTS[0]], Decoding(24, temperature=1.0, seed=1), keys=[9])
    assert not torch.equal(other.trace.tokens, b)


@pytest.mark.parametrize("rule", ["token_matching", "rejection"])
def test_the_measured_acceptance_agrees_with_the_overlap_of_the_distributions(
    target: Target, eager_drafter: DFlash, rule: str
):
    """A draft that is reached is accepted with probability sum_v min(p, q); token matching's q is one-hot."""
    decoding = Decoding(24, batch_size=100, temperature=0.2, rule=rule)
    traces = [r.trace for r in rollout(target, eager_drafter, PROMPTS * 40, decoding)]
    batch = target.replay(collate(traces), eager_drafter.layer_ids)
    slots = torch.arange(1, batch.drafts.shape[2] + 1)
    reached = batch.valid & (slots <= batch.accepted[..., None] + 1)
    accepted = (slots <= batch.accepted[..., None])[reached]
    with torch.no_grad():
        p = probabilities(target.head()(batch.target_hidden[reached]), decoding)
        logits = target.head()(eager_drafter(batch, target.embed)[reached])
    q = probabilities(logits, decoding if rule == "rejection" else Decoding())
    overlap = torch.minimum(p, q).sum(-1)
    error = (overlap * (1 - overlap)).sum().sqrt()
    assert abs(accepted.sum() - overlap.sum()) < 4 * error
    # the same as acceptance lengths: 1 + accepted drafts of a block, and its 95 % interval over responses
    blocks = [len(t.anchors) for t in traces]
    length = ratio([int(t.accepted.sum()) + len(t.anchors) for t in traces], blocks).estimate()
    assert length.low < 1 + float(overlap.sum()) / sum(blocks) < length.high
    assert 0.05 < accepted.float().mean() < 0.95


def test_the_memory_budget_bounds_the_batch(target: Target, eager_drafter: DFlash):
    decoding = Decoding(16, batch_size=5)
    tight = Decoding(16, batch_size=5, memory_gib=5e-5)
    assert texts(rollout(target, eager_drafter, PROMPTS, tight)) == texts(
        rollout(target, eager_drafter, PROMPTS, decoding)
    )
    with pytest.raises(DraftError, match="memory_gib"):
        rollout(target, eager_drafter, PROMPTS, Decoding(16, memory_gib=1e-6))


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["token_matching", "rejection"])
@pytest.mark.parametrize(
    ("temperature", "filters"),
    [(0.6, {"top_k": 3}), (1.0, {"top_k": 3}), (0.6, {"top_p": 0.85}), (1.0, {"top_p": 0.5})],
)
def test_whole_rollouts_follow_the_target(target: Target, eager_drafter: DFlash, rule, temperature, filters):
    decoding = Decoding(3, batch_size=4096, temperature=temperature, rule=rule, seed=7, **filters)
    assert p_value(target, eager_drafter, decoding, 200_000) > 1e-3


@pytest.mark.parametrize(
    ("rule", "temperature"),
    [
        ("token_matching", 1.0),
        pytest.param("token_matching", 0.6, marks=pytest.mark.slow),
        pytest.param("rejection", 1.0, marks=pytest.mark.slow),
        pytest.param("rejection", 0.6, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("broken", [one_too_many, commits_the_draft])
def test_whole_rollouts_with_a_broken_rule_do_not(
    target: Target, eager_drafter: DFlash, monkeypatch, rule, temperature, broken
):
    decoding = Decoding(3, batch_size=4096, temperature=temperature, rule=rule, seed=7, top_k=3)
    assert p_value(target, eager_drafter, decoding, 2_000) > 1e-3
    monkeypatch.setattr(batch, "accept", broken)
    assert p_value(target, eager_drafter, decoding, 2_000) < 1e-6


def p_value(target: Target, drafter: Drafter, decoding: Decoding, draws: int, cuts: Cuts | None = None) -> float:
    """Chi-square of so many responses of three tokens against the law by enumeration."""
    prompt = PROMPTS[1]
    results = rollout(target, drafter, [prompt] * draws, decoding, cuts=cuts)
    law: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(3):
        ended = {head: mass for head, mass in law.items() if head and head[-1] in target.stop_tokens.tolist()}
        law = ended | {
            (*head, v): mass * float(p[v])
            for head, mass in law.items()
            if head not in ended
            for p in [next_token(target, [*prompt, *head], decoding)]
            for v in p.nonzero()[:, 0].tolist()
        }
    assert len(law) > 3
    counts = dict.fromkeys(law, 0)
    for result in results:
        text = tuple(result.trace.tokens[len(prompt) :].tolist())
        if text not in law:  # impossible under the target
            return 0.0
        counts[text] += 1
    likely = [key for key, mass in law.items() if mass * draws >= 5]
    rest = draws - sum(counts[key] for key in likely)
    observed = [counts[key] for key in likely] + ([rest] if len(likely) < len(law) else [])
    expected = [law[key] * draws for key in likely]
    expected += [draws - sum(expected)] if len(likely) < len(law) else []
    scale = sum(observed) / sum(expected)
    return float(stats.chisquare(observed, [e * scale for e in expected]).pvalue)


def next_token(target: Target, tokens: list[int], decoding: Decoding) -> torch.Tensor:
    hidden, _ = target.read(torch.tensor([tokens]))
    return probabilities(target.head()(hidden[0, -1:]), decoding)[0]
