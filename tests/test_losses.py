"""Losses against values computed by hand."""

import math

import pytest
import torch

from draftopd.losses import CrossEntropy, DraftOPD, Rows, kl

P, Q = torch.tensor([[0.5, 0.25, 0.25]]), torch.tensor([[0.25, 0.5, 0.25]])


def forward_kl(target_logits, draft_logits):
    return kl(target_logits.log_softmax(-1), draft_logits.log_softmax(-1))


def reverse_kl(target_logits, draft_logits):
    return kl(draft_logits.log_softmax(-1), target_logits.log_softmax(-1))


def rows(labels, slot, accepted) -> Rows:
    return Rows(torch.tensor(labels), torch.tensor(slot), torch.tensor(accepted))


def mean(objective, draft, target, at: Rows) -> dict[str, float]:
    weights, losses = objective.weights(at), objective.losses(draft, target, at)
    return {name: float((w * losses[name]).sum() / w.sum()) for name, w in weights.items()}


def test_divergences_by_hand():
    assert forward_kl((P * 7).log(), Q.log()).item() == pytest.approx(0.25 * math.log(2))
    assert reverse_kl(P.log(), Q.log()).item() == pytest.approx(0.25 * math.log(2))
    sharp = torch.tensor([[0.8, 0.1, 0.1]])
    expected = 0.8 * math.log(0.8 / 0.25) + 0.1 * math.log(0.1 / 0.5) + 0.1 * math.log(0.1 / 0.25)
    assert forward_kl(sharp.log(), Q.log()).item() == pytest.approx(expected)
    assert reverse_kl(Q.log(), sharp.log()).item() == pytest.approx(expected)


def test_cross_entropy_decays_with_the_slot_and_skips_labels_outside_the_vocabulary():
    at = rows([0, 1, -1], [1, 3, 2], [True, True, True])
    logits = torch.cat([P, Q, P]).log()
    weight = math.exp(-2 / 4.0)
    expected = (-math.log(0.5) - weight * math.log(0.5)) / (1 + weight)
    assert mean(CrossEntropy(decay=4.0), logits, None, at)["cross_entropy"] == pytest.approx(expected)


def test_draft_opd_is_forward_kl_on_accepted_and_decayed_reverse_kl_on_rejected():
    sharp = torch.tensor([[0.8, 0.1, 0.1]])
    at = rows([0, 0, 0, 0], [1, 2, 3, 4], [True, True, False, False])
    target = torch.cat([sharp, P, sharp, P]).log()
    draft = torch.cat([Q, Q, Q, sharp]).log()
    got = mean(DraftOPD(position_decay=0.8), draft, target, at)
    forward = (forward_kl(target[:1], draft[:1]) + forward_kl(target[1:2], draft[1:2])) / 2
    backward = (0.64 * reverse_kl(target[2:3], draft[2:3]) + 0.512 * reverse_kl(target[3:], draft[3:])) / 1.152
    assert got["accepted"] == pytest.approx(forward.item(), rel=1e-5)
    assert got["rejected"] == pytest.approx(backward.item(), rel=1e-5)


def test_draft_opd_gradients_in_float64():
    torch.manual_seed(0)
    draft = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    target = torch.randn(4, 6, dtype=torch.float64)
    at = rows([0] * 4, [1, 2, 3, 4], [True, False, True, False])

    def loss(logits):
        losses = DraftOPD().losses(logits, target, at)
        return sum((w * losses[name]).sum() for name, w in DraftOPD().weights(at).items())

    assert torch.autograd.gradcheck(loss, draft)


def test_a_draft_vocabulary_leaves_the_gradient_of_reverse_kl_unchanged():
    torch.manual_seed(0)
    target, kept = torch.randn(3, 9), torch.tensor([0, 2, 5, 6])
    draft = torch.randn(3, 4, requires_grad=True)
    log_p, log_q = target.log_softmax(-1)[:, kept], draft.log_softmax(-1)
    (full,) = torch.autograd.grad((log_q.exp() * (log_q - log_p)).sum(), draft)
    (restricted,) = torch.autograd.grad(reverse_kl(target[:, kept], draft).sum(), draft)
    torch.testing.assert_close(full, restricted)
