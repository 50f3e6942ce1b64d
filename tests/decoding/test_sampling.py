"""Lossless at any temperature: exact enumeration, a chi-square test, and the reference filters of transformers."""

from dataclasses import replace

import pytest
import torch
from scipy import stats
from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from draftopd.decoding.acceptance import accept, cut_at_stop, match, reject
from draftopd.decoding.sampling import ACCEPT, CHOICE, DRAFT, Places, Proposal, draw, probabilities, uniforms
from draftopd.decoding.settings import Decoding
from draftopd.errors import DraftError

T = torch.tensor


def test_match_keeps_the_leading_matches_and_adds_the_targets_token():
    drafts = T([[1, 2, 3], [1, 9, 3], [9, 2, 3]])
    choices = T([[1, 2, 3, 4], [1, 2, 3, 4], [1, 2, 3, 4]])
    accepted, bonus = match(drafts, choices)
    assert accepted.tolist() == [3, 1, 0]
    assert bonus.tolist() == [4, 2, 1]


def test_without_drafts_the_bonus_token_is_plain_decoding():
    places = Places(Decoding(), T([0, 1]), T([3, 4]))
    logits = torch.tensor([[[0.1, 3.0, 2.0]], [[5.0, 3.0, 2.0]]])
    accepted, bonus = accept(torch.zeros(2, 0, dtype=torch.long), logits, places)
    assert accepted.tolist() == [0, 0]
    assert bonus.tolist() == [1, 0]


def test_cut_at_stop_ends_where_plain_decoding_would():
    tokens = T([[1, 0, 3, 4], [1, 2, 3, 0], [1, 2, 3, 4], [1, 2, 0, 4], [1, 2, 3, 4]])
    counts, done = cut_at_stop(tokens, T([3, 3, 4, 2, 4]), T([0]), T([9, 9, 2, 9, 9]))
    assert counts.tolist() == [2, 3, 2, 2, 4]
    assert done.tolist() == [True, False, True, False, False]


@pytest.mark.parametrize(
    ("options", "warpers"),
    [
        ({"temperature": 0.6}, [TemperatureLogitsWarper(0.6)]),
        ({"temperature": 1.0, "top_k": 7}, [TopKLogitsWarper(7)]),
        ({"temperature": 1.0, "top_p": 0.8}, [TopPLogitsWarper(0.8)]),
        ({"temperature": 9.0, "top_p": 0.999}, [TemperatureLogitsWarper(9.0), TopPLogitsWarper(0.999)]),
        ({"temperature": 1.0, "min_p": 0.1}, [MinPLogitsWarper(0.1)]),
        (
            {"temperature": 0.7, "top_k": 40, "top_p": 0.9, "min_p": 0.02},
            [TemperatureLogitsWarper(0.7), TopKLogitsWarper(40), TopPLogitsWarper(0.9), MinPLogitsWarper(0.02)],
        ),
    ],
)
def test_filters_are_those_of_transformers(options, warpers):
    """1,000 tokens: more than the short list in which the nucleus is looked for first."""
    scores = logits = 2 * torch.randn(50, 1000, generator=torch.Generator().manual_seed(0))
    for warper in warpers:
        scores = warper(None, scores)
    torch.testing.assert_close(probabilities(logits, Decoding(**options)), scores.softmax(-1), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    "wrong", [{"temperature": -1}, {"top_k": 0}, {"top_p": 1.5}, {"min_p": 0}, {"rule": "x"}, {"max_new_tokens": 0}]
)
def test_wrong_settings_are_named(wrong):
    with pytest.raises(DraftError, match=next(iter(wrong))):
        Decoding(**wrong)


def test_random_numbers_are_uniform_and_belong_to_places():
    keys, positions = torch.arange(500), torch.arange(400).expand(500, -1)
    u = uniforms(3, keys, positions, CHOICE)
    assert torch.equal(u[[7]][:, [9]], uniforms(3, T([7]), T([[9]]), CHOICE))
    assert stats.kstest(u.flatten().numpy(), "uniform").pvalue > 1e-3
    others = (uniforms(4, keys, positions, CHOICE), uniforms(3, keys, positions, DRAFT), u.roll(1, 0), u.roll(1, 1))
    for other in others:
        pairs = torch.histogramdd(torch.stack([u.flatten(), other.flatten()], 1), bins=[8, 8]).hist
        assert stats.chisquare(pairs.flatten().numpy()).pvalue > 1e-3


def mixed(state: int) -> int:
    """One number of SplitMix64, in unsigned arithmetic."""
    whole = 2**64 - 1
    state = (state + 0x9E3779B97F4A7C15) & whole
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & whole
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB & whole
    return state ^ (state >> 31)


def test_random_numbers_are_those_of_split_mix():
    assert mixed(1234567) == 6457827717110365317  # as published
    for seed, key, position, use in ((0, 0, 0, CHOICE), (7, 5, 40, DRAFT), (2**31, 2**40, 3, ACCEPT)):
        expected = mixed((mixed((mixed(seed) + key) % 2**64) + position * 4 + use) % 2**64)
        got = uniforms(seed, T([key]), T([[position]]), use).item()
        assert got == ((expected >> 12) + 0.5) / 2**52


def sampled(drafts: torch.Tensor, target: torch.Tensor) -> tuple[Places, Proposal, torch.Tensor, torch.Tensor]:
    """Blocks of rejection sampling by 300 responses, from logits [K, V] and [K + 1, V]: drafts and what is accepted."""
    keys = torch.arange(300)
    places = Places(Decoding(temperature=1.0, rule="rejection", seed=2), keys, 3 * keys)
    proposal = Proposal(places)
    tokens = torch.cat([proposal(drafts[:1].expand(300, 1, -1)), proposal(drafts[1:].expand(300, 2, -1))], 1)
    accepted, bonus = accept(tokens, target.expand(300, -1, -1), places, proposal)
    return places, proposal, accepted, bonus


def test_rejection_sampling_reads_the_random_numbers_of_the_places_that_it_fills():
    """So a response is a function of its seed and key alone, and a token that no draft decides is plain sampling's."""
    drafts, target = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(0))
    places, proposal, accepted, bonus = sampled(drafts[:3], torch.cat([drafts[:3], target[:1]]))
    assert (accepted == 3).all()  # p = q: drafted and accepted by their own places, and then the target's own token
    at = places.positions[:, None] + torch.arange(1, 4)
    expected = draw(drafts[:3].softmax(-1).expand(300, -1, -1), uniforms(2, places.keys, at, DRAFT))
    assert torch.equal(torch.cat(proposal.index, 1), expected)
    assert torch.equal(bonus, places.choose(target[:1].expand(300, 4, -1))[:, 3])
    certain = torch.full((3, 6), -100.0).index_fill(1, T([2]), 100.0)
    places, _, accepted, bonus = sampled(certain, target.index_fill(1, T([2]), -200.0))
    assert not accepted.any()
    assert torch.equal(bonus, places.choose(target.index_fill(1, T([2]), -200.0).expand(300, -1, -1))[:, 0])
    half = torch.full((4, 6), -100.0).index_fill(1, T([2, 5]), 0.0)
    places, _, accepted, bonus = sampled(certain, half)
    held = (places.uniforms(1, 3, ACCEPT) < 0.5).long().cumprod(1).sum(1)
    assert torch.equal(accepted, held)
    assert (bonus[held < 3] == 5).all()


def test_where_p_is_q_up_to_rounding_a_rejection_falls_back_to_p():
    p = T([[[0.25, 0.75], [0.5, 0.5]]], dtype=torch.float64).expand(2, -1, -1)
    marks = (T([[1 - 1e-9]] * 2, dtype=torch.float64), T([[0.2, 0.9], [0.3, 0.9]], dtype=torch.float64))
    accepted, bonus = reject(T([[0], [0]]), p, T([[0], [0]]), p[:, :1] + 1e-7, uniforms=marks, vocabulary=None)
    assert accepted.tolist() == [0, 0]
    assert bonus.tolist() == [0, 1]


def test_filters_that_let_all_tokens_through_change_nothing():
    peaked, even = T([0.0, 20.0, -20.0, 3.0]), torch.zeros(300)
    for all_of_it in ({"top_p": 1.0}, {"top_k": 4}, {"top_k": 9}):
        got = probabilities(peaked, Decoding(temperature=1.0, **all_of_it))
        assert torch.equal(got, peaked.softmax(-1))
    for size in range(2, 300):  # the mass of all tokens may not reach top_p in float32
        got = probabilities(even[:size], Decoding(temperature=1.0, top_p=1 - 1e-9))
        assert (got > 0).all()
    assert (probabilities(T([0.0, 2.0]), Decoding(temperature=1.0, top_p=1 - 1e-9)) > 0).all()


def test_greedy_is_one_hot_and_a_wide_nucleus_is_whole_beside_a_narrow_one():
    assert probabilities(T([1.0, 3.0, 2.0]), Decoding()).tolist() == [0, 1, 0]
    narrow, wide = torch.zeros(300).index_fill(0, T([7]), 50.0), torch.linspace(0, -1, 300)
    kept = probabilities(torch.stack([narrow, wide]), Decoding(temperature=1.0, top_p=0.99)) > 0
    assert kept.sum(1).tolist() == [1, 1 + int((wide.double().softmax(-1).cumsum(-1) < 0.99).sum())]


def test_a_token_without_weight_is_never_drawn_and_a_light_one_is():
    for weights in ([0.0, 1.0, 0.0, 1.0, 0.0], [0.0, 1.0, 1.0]):
        drawn = draw(T(weights).expand(2, -1), T([0.0, 0.5]))
        assert drawn.tolist() == [1, weights.index(1.0, 2)]
    assert draw(T([[1.0, 2.0]]), T([1.0])).tolist() == [1]
    heavy, steps = T([1.0] + [1e-8] * 100), torch.arange(1, 101).double()  # float32 adds nothing, or a dozen at once
    assert torch.equal(draw(heavy.expand(100, -1), (1 + 1e-8 * (steps - 0.5)) / (1 + 100e-8)), steps.long())


def test_draw_inverts_the_cumulative_distribution():
    weights = T([0.0, 1.0, 0.0, 3.0])
    marks = (torch.arange(400) + 0.5) / 400
    assert torch.bincount(draw(weights.expand(400, -1), marks), minlength=4).tolist() == [0, 100, 0, 300]


def grid(n: int) -> torch.Tensor:
    return (torch.arange(n, dtype=torch.float64) + 0.5) / n


def test_rejection_sampling_gives_the_targets_distribution_by_exact_enumeration():
    """Every draft and a grid of uniform numbers fine enough that all counts are whole: no statistics."""
    p = T([[1, 2, 3, 6], [4, 4, 1, 3], [3, 3, 3, 3]]).double() / 12
    q = T([[6, 3, 3], [2, 4, 6]]).double() / 12  # the drafter knows only the tokens 0, 1 and 3
    vocabulary = T([0, 1, 3])
    drafts = torch.cartesian_prod(torch.arange(3), torch.arange(3))
    marks = torch.cartesian_prod(grid(12), grid(12))
    size = len(drafts), len(marks), 60
    index = drafts[:, None, None].expand(*size, 2).flatten(0, 2)
    accept_at = marks[None, :, None].expand(*size, 2).flatten(0, 2)
    choose_at = grid(60)[None, None, :, None].expand(*size, 3).flatten(0, 2)
    weight = q[0, index[:, 0]] * q[1, index[:, 1]] / (len(marks) * 60)
    many = len(index)
    accepted, bonus = reject(
        vocabulary[index],
        p.expand(many, -1, -1),
        index,
        q.expand(many, -1, -1),
        uniforms=(accept_at, choose_at),
        vocabulary=vocabulary,
    )
    first = torch.where(accepted > 0, vocabulary[index[:, 0]], bonus)
    law = torch.zeros(4, dtype=torch.float64).index_add(0, first, weight)
    torch.testing.assert_close(law, p[0], atol=1e-12, rtol=0)
    # the second token, given the first was an accepted draft: p's second row
    deep = accepted >= 1
    second = torch.where(accepted > 1, vocabulary[index[:, 1]], bonus)[deep]
    law = torch.zeros(4, dtype=torch.float64).index_add(0, second, weight[deep])
    torch.testing.assert_close(law / weight[deep].sum(), p[1], atol=1e-12, rtol=0)
    overlap = torch.minimum(p[0, vocabulary], q[0]).sum()
    torch.testing.assert_close(weight[deep].sum(), overlap, atol=1e-12, rtol=0)


DRAWS = 200_000
FILTERS = ({}, {"top_p": 0.8}, {"top_k": 5})


def committed(target_logits, draft_logits, decoding: Decoding, keys: torch.Tensor, rule=accept) -> torch.Tensor:
    """First two tokens [M, 2] that one block of two drafts commits, -1 where it ends after one.

    target_logits [V + 1, V]: the anchor's row, then the row after each possible first draft.
    """
    places = Places(decoding, keys, torch.full_like(keys, 5))
    proposal = Proposal(places)
    drafts = proposal(draft_logits.expand(len(keys), -1, -1))
    rows = torch.stack(
        [target_logits[0].expand(len(keys), -1), target_logits[1 + drafts[:, 0]], target_logits[1 + drafts[:, 1]]], 1
    )
    accepted, bonus = rule(drafts, rows, places, proposal)
    first = torch.where(accepted > 0, drafts[:, 0], bonus)
    second = torch.where(accepted > 1, drafts[:, 1], torch.where(accepted == 1, bonus, -1))
    return torch.stack([first, second], 1)


def p_value(counts: torch.Tensor, law: torch.Tensor) -> float:
    possible = law > 0
    if counts[~possible].any():
        return 0.0
    expected = law[possible].double()
    return float(stats.chisquare(counts[possible].numpy(), (expected / expected.sum() * counts.sum()).numpy()).pvalue)


def law_of(decoding: Decoding, rule=accept, draws: int = DRAWS) -> tuple[float, float, torch.Tensor]:
    """p-values of the first token's and the second token's law over so many blocks, and the mean acceptance."""
    draw_logits = torch.Generator().manual_seed(1)
    target_logits = torch.randn(9, 8, generator=draw_logits)
    draft_logits = target_logits[:2] + 0.7 * torch.randn(2, 8, generator=draw_logits)
    tokens = committed(target_logits, draft_logits, decoding, torch.arange(draws), rule)
    p = probabilities(target_logits, decoding)
    first = p_value(torch.bincount(tokens[:, 0], minlength=8), p[0])
    went_on = tokens[tokens[:, 1] >= 0]
    common = int(went_on[:, 0].mode().values)
    second = p_value(torch.bincount(went_on[went_on[:, 0] == common, 1], minlength=8), p[1 + common])
    return first, second, (tokens[:, 1] >= 0).double().mean()


@pytest.mark.parametrize("rule", ["token_matching", "rejection"])
@pytest.mark.parametrize("temperature", [pytest.param(0.6, marks=pytest.mark.slow), 1.0])
@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_what_is_committed_follows_the_target(rule, temperature, filters):
    first, second, _ = law_of(Decoding(temperature=temperature, rule=rule, **filters))
    assert first > 1e-3
    assert second > 1e-3


def always_keeps(drafts, logits, places, proposal=None, vocabulary=None):
    return torch.full((len(drafts),), drafts.shape[1]), places.choose(logits)[:, -1]


def without_residual(drafts, logits, places, proposal, vocabulary=None):
    accepted, _ = accept(drafts, logits, places, proposal, vocabulary)
    return accepted, places.choose(logits).gather(1, accepted[:, None])[:, 0]


def one_too_many(drafts, logits, places, proposal, vocabulary=None):
    """Keeps the first rejected draft as well."""
    accepted, _ = accept(drafts, logits, places, proposal, vocabulary)
    accepted = (accepted + 1).clamp(max=drafts.shape[1])
    return accepted, places.choose(logits).gather(1, accepted[:, None])[:, 0]


def commits_the_draft(drafts, logits, places, proposal, vocabulary=None):
    """In the place of the target's own token."""
    accepted, bonus = accept(drafts, logits, places, proposal, vocabulary)
    rejected = drafts.gather(1, accepted.clamp(max=drafts.shape[1] - 1)[:, None])[:, 0]
    return accepted, torch.where(accepted < drafts.shape[1], rejected, bonus)


BROKEN = [always_keeps, one_too_many, commits_the_draft]


@pytest.mark.parametrize(
    ("rule", "broken"),
    [*(("token_matching", broken) for broken in BROKEN), *(("rejection", b) for b in [*BROKEN, without_residual])],
)
@pytest.mark.parametrize("temperature", [0.6, 1.0])
def test_a_broken_rule_is_caught(rule, broken, temperature):
    """A twentieth of the draws is enough."""
    first, _, _ = law_of(Decoding(temperature=temperature, rule=rule), broken, DRAWS // 20)
    assert first < 1e-6


@pytest.mark.parametrize("temperature", [0.6, 1.0])
def test_the_rate_of_acceptance_is_the_overlap(temperature):
    """P(first draft accepted) = sum_v min(p, q) for both rules; token matching's q is one-hot."""
    generator = torch.Generator().manual_seed(1)
    target_logits = torch.randn(9, 8, generator=generator)
    draft_logits = target_logits[:2] + 0.7 * torch.randn(2, 8, generator=generator)
    for rule in ("token_matching", "rejection"):
        decoding = Decoding(temperature=temperature, rule=rule)
        q = probabilities(draft_logits, decoding if rule == "rejection" else replace(decoding, temperature=0.0))
        overlap = float(torch.minimum(probabilities(target_logits, decoding)[0], q[0]).sum())
        _, _, rate = law_of(decoding)
        error = (overlap * (1 - overlap) / DRAWS) ** 0.5
        assert abs(float(rate) - overlap) < 4 * error
