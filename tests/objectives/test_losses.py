"""Divergences and objectives against values computed by hand or by literal loops."""

import math
from dataclasses import replace

import pytest
import torch

from draftopd.errors import DraftError
from draftopd.objectives.base import CrossEntropy, Distillation, Mix, Objective, position_weight, shares
from draftopd.objectives.block import AcceptUntilFail, DPace, ExpectedLength
from draftopd.objectives.divergences import (
    acceptance,
    at_temperature,
    forward_kl,
    jsd,
    lk_hybrid,
    neg_log_acceptance,
    reverse_kl,
    total_variation,
)
from draftopd.objectives.draft_opd import DraftOPD, OneTokenOPD, bernoulli_kl, k3
from draftopd.objectives.rounds import DecodingRounds
from draftopd.objectives.rows import Rows

P, Q = torch.tensor([[0.5, 0.25, 0.25]]), torch.tensor([[0.25, 0.5, 0.25]])
SHARP = torch.tensor([[0.8, 0.1, 0.1]])


def rows(slot, accepted, draft=None, text=None) -> Rows:
    draft = draft or [0] * len(slot)
    block = [sum(k == 1 for k in slot[: i + 1]) for i in range(len(slot))]
    last, zeros = [len(slot) - b for b in block], [0] * len(slot)
    return Rows(*(torch.tensor(values) for values in (draft, text or draft, slot, accepted, block, zeros, last)))


def mean(objective, draft, target, at: Rows) -> dict[str, float]:
    """Each term's value, from probabilities [M, V]."""
    log_p = None if target is None else target.log()
    numerators, denominators = objective.numerators(draft.log(), log_p, at), objective.denominators(at)
    assert numerators.keys() == denominators.keys() == objective.coefficients.keys()
    return {name: float(value.sum() / denominators[name].sum()) for name, value in numerators.items()}


def test_divergences_by_hand():
    log_p, log_q, sharp = P.log(), Q.log(), SHARP.log()
    assert forward_kl(log_p, log_q).item() == pytest.approx(0.25 * math.log(2))
    expected = 0.8 * math.log(0.8 / 0.25) + 0.1 * math.log(0.1 / 0.5) + 0.1 * math.log(0.1 / 0.25)
    assert forward_kl(sharp, log_q).item() == reverse_kl(log_q, sharp).item() == pytest.approx(expected)
    assert acceptance(log_p, log_q).item() == pytest.approx(0.75)
    assert total_variation(log_p, log_q).item() == pytest.approx(0.25)
    assert neg_log_acceptance(sharp, log_q).item() == pytest.approx(-math.log(0.45))
    share = math.exp(-3 * 0.45)
    assert lk_hybrid(sharp, log_q, 3.0).item() == pytest.approx(share * expected + (1 - share) * 0.55)


def test_jsd_by_hand_and_at_its_ends():
    m = [0.25 * p + 0.75 * q for p, q in zip(P[0].tolist(), Q[0].tolist(), strict=True)]
    expected = sum(
        0.25 * p * math.log(p / x) + 0.75 * q * math.log(q / x)
        for p, q, x in zip(P[0].tolist(), Q[0].tolist(), m, strict=True)
    )
    assert jsd(P.log(), Q.log(), 0.25).item() == pytest.approx(expected)
    log_p, log_q = SHARP.double().log(), Q.double().log()
    assert jsd(log_p, log_q, 1e-5).item() / 1e-5 == pytest.approx(forward_kl(log_p, log_q).item(), rel=1e-3)
    assert jsd(log_p, log_q, 1 - 1e-5).item() / 1e-5 == pytest.approx(reverse_kl(log_p, log_q).item(), rel=1e-3)
    with pytest.raises(DraftError, match="above 0 and below 1"):
        jsd(log_p, log_q, 1.0)


def test_jsd_has_the_gradient_of_its_value_also_where_p_lacks_mass():
    draft, target = torch.randn(2, 3, 7, dtype=torch.double, generator=torch.Generator().manual_seed(0))

    def value(target: torch.Tensor, draft: torch.Tensor) -> torch.Tensor:
        return jsd(target.log_softmax(-1) - 0.1, draft.log_softmax(-1), 0.3)

    assert torch.autograd.gradcheck(value, (target.requires_grad_(), draft.requires_grad_()))


def test_neg_log_acceptance_is_cross_entropy_for_a_one_hot_target():
    one_hot = torch.tensor([[0.0, 1.0, 0.0]])
    assert neg_log_acceptance(one_hot.log(), Q.log()).item() == pytest.approx(-math.log(0.5))


def test_cross_entropy_decays_with_the_slot_and_skips_labels_outside_the_vocabulary():
    at = rows([1, 2, 3], [3, 3, 3], draft=[0, -1, 1])
    weight = math.exp(-2 / 4.0)
    expected = (-math.log(0.5) - weight * math.log(0.5)) / (1 + weight)
    got = mean(CrossEntropy(decay=4.0), torch.cat([P, Q, Q]), None, at)
    assert got["cross_entropy"] == pytest.approx(expected)


def test_cross_entropy_learns_the_text_and_not_the_rejected_draft():
    at = rows([1, 2], [1, 1], draft=[0, 1], text=[0, 0])
    got = mean(CrossEntropy(decay=None), torch.cat([SHARP, SHARP]), None, at)
    assert got["cross_entropy"] == pytest.approx(-math.log(0.8))


def test_distillation_weighs_slots_as_cross_entropy_does():
    weight = math.exp(-1 / 4.0)
    got = mean(Distillation(total_variation, decay=4.0), torch.cat([Q, SHARP]), torch.cat([P, P]), rows([1, 2], [2, 2]))
    assert got["divergence"] == pytest.approx((0.25 + weight * 0.3) / (1 + weight))


SOME = rows([1, 2, 3], [1, 1, 1], draft=[0, 1, 2], text=[0, 2, 1])  # one accepted, one corrected, one never reached


def test_reached_only_ends_at_the_correction():
    draft = torch.cat([SHARP, Q, SHARP])
    assert SOME.reached.tolist() == [True, True, False]
    cross_entropy = mean(CrossEntropy(decay=None, reached_only=True), draft, None, SOME)["cross_entropy"]
    assert cross_entropy == pytest.approx(-(math.log(0.8) + math.log(0.25)) / 2)
    pace = mean(DPace(smoothing=0.5, reached_only=True), draft, None, SOME)["d_pace"]
    first, second = 0.9, 0.9 * 0.625
    assert pace == pytest.approx(-(first + second) * math.log(0.8) - second * math.log(0.25))
    until_fail = AcceptUntilFail(reached_only=True).numerators(torch.eye(3)[[0, 2, 1]].log(), None, SOME)
    assert until_fail["accept_until_fail"].tolist() == [0, 0, 0]
    soft = Distillation(total_variation, decay=None, reached_only=True)
    assert mean(soft, draft, torch.cat([P, P, SHARP]), SOME)["divergence"] == pytest.approx((0.3 + 0.25) / 2)
    assert not any(o.needs_tails for o in (soft, CrossEntropy(None, True), DPace(0.5, True), AcceptUntilFail(True)))


def test_distillation_at_another_target_temperature_and_clamped():
    one = rows([1], [1])
    half = [p**2 / (0.5**2 + 2 * 0.25**2) for p in (0.5, 0.25, 0.25)]
    expected = sum(p * math.log(p / q) for p, q in zip(half, (0.25, 0.5, 0.25), strict=True))
    got = mean(Distillation(forward_kl, None, target_temperature=0.5), Q, P, one)["divergence"]
    assert got == pytest.approx(expected)
    both = torch.cat([P, P.flip(-1)]).log()
    assert torch.equal(at_temperature(both - 1, 1), both - 1)  # p of a part of the tokens does not add up to one
    assert at_temperature(both, 2)[1].tolist() == pytest.approx((P.flip(-1).sqrt() / P.sqrt().sum()).log()[0].tolist())
    assert at_temperature(both, 0).exp().tolist() == [[1, 0, 0], [0, 0, 1]]
    hard = Distillation(forward_kl, None, target_temperature=0.0)
    assert mean(hard, Q, P, one)["divergence"] == pytest.approx(-math.log(0.25))
    logits = Q.log().requires_grad_()
    clamped = Distillation(forward_kl, None, clamp=0.1).numerators(logits, P.log(), one)["divergence"]
    assert clamped.tolist() == [pytest.approx(0.1)]
    assert torch.autograd.grad(clamped.sum(), logits)[0].tolist() == [[0, 0, 0]]
    for wrong in ({"target_temperature": -1.0}, {"clamp": 0.0}, {"target_temperature": 0.3, "whole_vocabulary": True}):
        with pytest.raises(DraftError, match=f"{next(iter(wrong))}="):
            Distillation(forward_kl, None, **wrong)  # type: ignore[arg-type]


def test_skip_unknown_looks_at_the_text_up_to_the_correction_and_at_the_target_after_it():
    at = replace(rows([1, 2, 3], [0, 0, 0], text=[-1, -1, -1]), argmax=torch.tensor([0, -1, 0]))
    objective = Distillation(total_variation, None, skip_unknown=True)
    assert objective.needs_argmax
    assert objective.denominators(at)["divergence"].tolist() == [0, 1, 1]
    terms = objective.numerators(torch.cat([Q] * 3).log(), torch.cat([P] * 3).log(), at)["divergence"]
    assert terms.tolist() == [0, 0, pytest.approx(0.25)]
    all_rows = Distillation(total_variation, None).numerators(torch.cat([Q] * 3).log(), torch.cat([P] * 3).log(), at)
    assert all_rows["divergence"].tolist() == pytest.approx([0.25] * 3)  # in a mix, another objective may need argmax
    first_token = rows([1, 2], [0, 0], text=[0, -1])
    assert objective.denominators(first_token)["divergence"].tolist() == [1, 1]


TARGET, DRAFT = torch.cat([SHARP, P, SHARP, P]), torch.cat([Q, Q, Q, SHARP])
REPLAYED = rows([1, 2, 3, 4], [2, 2, 2, 2])


def each(divergence) -> list[float]:
    return divergence(TARGET.log(), DRAFT.log()).tolist()


def test_draft_opd_is_forward_kl_on_accepted_and_decayed_reverse_kl_on_rejected():
    got = mean(DraftOPD(position_decay=0.8), DRAFT, TARGET, REPLAYED)
    forward, backward = each(forward_kl), each(reverse_kl)
    assert got["accepted"] == pytest.approx((forward[0] + forward[1]) / 2)
    assert got["rejected"] == pytest.approx((0.64 * backward[2] + 0.512 * backward[3]) / 1.152)
    weights = DraftOPD(position_decay=0.8).denominators(REPLAYED)
    assert weights["accepted"].tolist() == [1, 1, 0, 0]
    assert weights["rejected"].tolist() == pytest.approx([0, 0, 0.64, 0.512])


def test_draft_opd_on_the_first_rejected_slot_with_other_divergences_and_the_correction():
    objective = DraftOPD(
        accepted_divergence=reverse_kl, rejected_divergence=forward_kl, rejected_slots="first", correction=True
    )
    got = mean(objective, DRAFT, TARGET, REPLAYED)
    forward, backward = each(forward_kl), each(reverse_kl)
    assert got["accepted"] == pytest.approx(sum(backward[:3]) / 3)
    assert got["rejected"] == pytest.approx(forward[2])
    with pytest.raises(DraftError, match="must be all or first"):
        DraftOPD(rejected_slots="some")  # type: ignore[arg-type]


def test_one_token_estimates_by_hand_and_their_clamps():
    p, q = 0.8, 0.25
    expected = p * math.log(p / q) + 0.2 * math.log(0.2 / 0.75)
    assert bernoulli_kl(torch.tensor(p).log(), torch.tensor(q).log()).item() == pytest.approx(expected)
    assert k3(torch.tensor(p).log(), torch.tensor(q).log()).item() == pytest.approx(p / q - math.log(p / q) - 1)
    for loss, log_q in ((bernoulli_kl, -11.0), (k3, -4.0), (k3, -200.0)):  # k3 of d = 4 is 49.6, and e^200 infinite
        x = torch.tensor(log_q, requires_grad=True)
        value = loss(torch.tensor(-0.01), x)
        value.backward()
        assert x.grad == 0
        assert 0 < value.item() <= 10
    with torch.no_grad():
        assert math.isfinite(bernoulli_kl(torch.tensor(0.0), torch.tensor(0.0)))


def test_one_token_opd_pools_both_streams_and_counts_the_first_rejected_slot_twice():
    at = rows([1, 2, 3], [1, 1, 1], draft=[0, 1, 2], text=[0, 2, -1])
    target, draft = torch.cat([SHARP, P, P]), torch.cat([Q, Q, SHARP])
    response = [bernoulli_kl(torch.tensor(p).log(), torch.tensor(q).log()) for p, q in ((0.8, 0.25), (0.25, 0.25))]
    rejected = [0.8 * k3(torch.tensor(0.25).log(), torch.tensor(0.5).log())]
    rejected += [0.64 * k3(torch.tensor(0.25).log(), torch.tensor(0.1).log())]
    expected = (2 * sum(response) + 3 * sum(rejected)) / (2 * 2 + 3 * (0.8 + 0.64))
    got = mean(OneTokenOPD(0.8, response=2.0, rejected=3.0), draft, target, at)
    assert got["one_token"] == pytest.approx(float(expected), rel=1e-5)


def test_one_token_opd_leaves_out_what_the_head_lacks_and_text_that_no_draft_reached():
    at = rows([1, 2, 3, 4], [1, 1, 1, 1], draft=[0, 1, -1, 0], text=[-1, 0, 1, 2])
    assert OneTokenOPD(0.5).denominators(at)["one_token"].tolist() == [0, 1.5, 0, 0.125]


BLOCKS = rows([1, 2, 3, 1, 2], [3, 3, 3, 0, 0], draft=[0, 1, 2, 0, 2], text=[0, 1, 2, 1, 2])


def by_block(values: torch.Tensor) -> list[list[float]]:
    return [values[:3].tolist(), values[3:].tolist()]


def test_d_pace_against_a_literal_loop():
    torch.manual_seed(0)
    draft = torch.randn(5, 4).softmax(-1)
    total = 0.0
    for q in by_block(draft.gather(1, BLOCKS.text[:, None])[:, 0]):
        for k in range(len(q)):
            weight = 0.0
            for m in range(k, len(q)):
                product = 1.0
                for i in range(m + 1):
                    product *= 0.7 * q[i] + 0.3
                weight += product
            total -= weight * math.log(q[k])
    assert mean(DPace(smoothing=0.3), draft, None, BLOCKS)["d_pace"] == pytest.approx(total / 2, rel=1e-5)
    with pytest.raises(DraftError, match="at least 0 and at most 1"):
        DPace(smoothing=1.5)


def test_d_pace_without_smoothing_has_the_gradient_of_the_accepted_length():
    torch.manual_seed(0)
    logits = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    (got,) = torch.autograd.grad(DPace(smoothing=0.0).numerators(logits, None, BLOCKS)["d_pace"].sum(), logits)
    q = logits.softmax(-1).gather(1, BLOCKS.text[:, None])[:, 0]
    length = q[0] + q[0] * q[1] + q[0] * q[1] * q[2] + q[3] + q[3] * q[4]
    (expected,) = torch.autograd.grad(-length, logits)
    torch.testing.assert_close(got, expected)


def test_d_pace_takes_a_token_that_the_head_lacks_for_a_failure():
    at = rows([1, 2, 3], [3, 3, 3], draft=[0, -1, 2])
    got = mean(DPace(smoothing=0.5), torch.cat([P, P, P]), None, at)["d_pace"]
    first, third = 0.75, 0.75 * 0.5 * 0.625
    assert got == pytest.approx(-(first + third) * math.log(0.5) - third * math.log(0.25))


def test_accept_until_fail_stops_after_the_first_wrong_slot_of_each_block():
    draft = torch.cat([SHARP, SHARP, SHARP, Q, SHARP])  # argmax 0 0 0 | 1 0 against 0 1 2 | 1 2
    got = mean(AcceptUntilFail(), draft, None, BLOCKS)["accept_until_fail"]
    expected = -math.log(0.8) - math.log(0.1) - math.log(0.5) - math.log(0.1)
    assert got == pytest.approx(expected / 2)


def test_accept_until_fail_stops_at_a_token_that_the_head_lacks():
    got = mean(AcceptUntilFail(), torch.cat([SHARP] * 3), None, rows([1, 2, 3], [3, 3, 3], draft=[0, -1, 0]))
    assert got["accept_until_fail"] == pytest.approx(-math.log(0.8))


def test_expected_length_against_a_literal_loop():
    torch.manual_seed(0)
    draft, target = torch.randn(5, 4).softmax(-1), torch.randn(5, 4).softmax(-1)
    length = 0.0
    for alpha in by_block(torch.minimum(draft, target).sum(-1)):
        product = 1.0
        for a in alpha:
            product *= a
            length += product
    assert mean(ExpectedLength(), draft, target, BLOCKS)["expected_length"] == pytest.approx(1 - length / 5)


def test_a_mix_is_the_convex_sum_of_its_objectives():
    parts = {"ce": CrossEntropy(decay=4.0), "opd": DraftOPD(accepted=3.0)}
    mix = Mix(parts, {"ce": 1.0, "opd": 2.0})
    assert mix.needs_target
    assert not mix.whole_vocabulary
    terms = mean(mix, DRAFT, TARGET, REPLAYED)
    ce, opd = (mean(o, DRAFT, TARGET, REPLAYED) for o in parts.values())
    expected = ce["cross_entropy"] / 3 + 2 / 3 * (0.75 * opd["accepted"] + 0.25 * opd["rejected"])
    assert sum(share * terms[name] for name, share in shares(mix.coefficients).items()) == pytest.approx(expected)
    with pytest.raises(DraftError, match="must name the objectives"):
        Mix(parts, {"ce": 1.0})
    with pytest.raises(DraftError, match="more than 0"):
        shares(DraftOPD(accepted=0.0, rejected=0.0).coefficients)


NEEDS = ("needs_target", "needs_tails", "needs_argmax", "whole_vocabulary", "whole_texts")
SOFT = {"divergence": forward_kl, "decay": None}


@pytest.mark.parametrize(
    ("made", "settings", "needs"),
    [
        (CrossEntropy, {"decay": None}, {"needs_tails"}),
        (CrossEntropy, {"decay": None, "reached_only": True}, set()),
        (AcceptUntilFail, {}, {"needs_tails"}),
        (AcceptUntilFail, {"reached_only": True}, set()),
        (DPace, {}, {"needs_tails"}),
        (DPace, {"reached_only": True}, set()),
        (DecodingRounds, {}, {"needs_tails", "whole_texts"}),
        (DecodingRounds, {"reached_only": True}, {"whole_texts"}),
        (ExpectedLength, {}, {"needs_target", "needs_tails", "whole_vocabulary"}),
        (Distillation, SOFT, {"needs_target", "needs_tails"}),
        (Distillation, SOFT | {"skip_unknown": True}, {"needs_target", "needs_tails", "needs_argmax"}),
        (Distillation, SOFT | {"skip_unknown": True, "reached_only": True}, {"needs_target"}),
        (Distillation, SOFT | {"whole_vocabulary": True}, {"needs_target", "needs_tails", "whole_vocabulary"}),
        (DraftOPD, {}, {"needs_target", "needs_tails"}),
        (DraftOPD, {"rejected_slots": "first"}, {"needs_target"}),
        (OneTokenOPD, {}, {"needs_target", "needs_tails", "whole_vocabulary"}),
    ],
)
def test_what_an_objective_needs_it_needs_in_a_mix_too(made: type[Objective], settings: dict, needs: set[str]):
    """Each need costs a forward, a head or memory that others do without."""
    objective, least = made(**settings), CrossEntropy(None, reached_only=True)
    assert {name for name in NEEDS if getattr(objective, name)} == needs
    assert set(objective.coefficients.values()) == {1.0}
    mix = Mix({"least": least, "this": objective}, {"least": 1.0, "this": 1.0})
    assert {name for name in NEEDS if getattr(mix, name)} == needs


def test_no_rows_have_no_loss():
    for objective in (DPace(), AcceptUntilFail(), ExpectedLength()):
        (got,) = objective.numerators(torch.zeros(0, 3), torch.zeros(0, 3), SOME[:0]).values()
        assert got.shape == (0,)


def test_shares_add_up_to_one_and_defaults_are_the_sources():
    assert shares({"a": 0.25, "b": 0.25}) == {"a": 0.5, "b": 0.5}
    log_p, log_q = SHARP.log(), Q.log()
    assert lk_hybrid(log_p, log_q) == lk_hybrid(log_p, log_q, 3.0)
    assert jsd(log_p, log_q) == jsd(log_p, log_q, 0.5)
    assert position_weight(torch.tensor([1, 2]), 4.0).tolist() == pytest.approx([1, math.exp(-1 / 4)])
    assert DPace().smoothing == 0.5
    assert DraftOPD().coefficients == {"accepted": 1, "rejected": 1}
    assert (OneTokenOPD().response, OneTokenOPD().rejected) == (1, 1)
    assert OneTokenOPD().position_decay == DraftOPD().position_decay == 0.8


def test_a_draft_vocabulary_leaves_the_gradient_of_reverse_kl_unchanged():
    torch.manual_seed(0)
    target, part = torch.randn(3, 9), torch.tensor([0, 2, 5, 6])
    draft = torch.randn(3, 4, requires_grad=True)
    log_p, log_q = target.log_softmax(-1)[:, part], draft.log_softmax(-1)
    (full,) = torch.autograd.grad(reverse_kl(log_p, log_q).sum(), draft, retain_graph=True)
    (restricted,) = torch.autograd.grad(reverse_kl(target[:, part].log_softmax(-1), log_q).sum(), draft)
    torch.testing.assert_close(full, restricted)


def test_acceptance_over_a_draft_vocabulary_is_exact_when_p_keeps_its_mass():
    """A drafter without a token has q = 0 there, so the minimum over its own tokens is that over all."""
    torch.manual_seed(0)
    target, part = torch.randn(3, 9).softmax(-1), torch.tensor([0, 2, 5, 6])
    q = torch.randn(3, 4).softmax(-1)
    everywhere = torch.zeros(3, 9).index_copy(1, part, q)
    exact = torch.minimum(target, everywhere).sum(-1)
    torch.testing.assert_close(acceptance(target[:, part].log(), q.log()), exact)
    renormalised = target[:, part] / target[:, part].sum(-1, keepdim=True)
    assert (acceptance(renormalised.log(), q.log()) > exact).all()
