"""What a rollout phase is explained by: shares, divergences by group, distances between anchors."""

import pytest
import torch

from draftopd.decoding.rollout import rollout
from draftopd.decoding.settings import Decoding
from draftopd.drafters.dflash import DFlash
from draftopd.evaluation.diagnosis import diagnose
from draftopd.objectives.divergences import forward_kl, reverse_kl
from draftopd.objectives.rows import flatten
from draftopd.target.model import Target
from draftopd.trace import Rollout, Trace, collate
from pair import PROMPTS

SIZES = {"texts": 8, "rows": 10_000, "step": 3}


@pytest.fixture(scope="module")
def results(target: Target, eager_drafter: DFlash) -> list[Rollout]:
    return rollout(target, eager_drafter, PROMPTS, Decoding(max_new_tokens=24), keep_states=True)


def trace(accepted: list[int], tail: int = 0) -> Trace:
    """K = 3; `tail` tokens behind the last block's accepted drafts."""
    anchors, at = [], 2
    for kept in accepted:
        anchors.append(at)
        at += kept + 1
    tokens = torch.arange(at + tail)
    drafts = torch.stack(
        [torch.where(torch.arange(3) < k, a + 1 + torch.arange(3), 50) for a, k in zip(anchors, accepted, strict=True)]
    )
    return Trace(tokens, 2, torch.tensor(anchors), drafts, torch.tensor(accepted)).check()


def test_shares_and_distances_by_hand(target: Target):
    """Blocks of 3 drafts that kept 3, 1, 0 and, before the end, 2 of 2: 6 accepted, 2 first rejected, 3 behind."""
    drafter = DFlash(target.shape, num_layers=1, block_size=4)
    seen = diagnose(target, drafter, [Rollout(trace([3, 1, 0, 2]))], **SIZES)
    assert seen.share == pytest.approx({"accepted": 6 / 11, "first_rejected": 2 / 11, "suffix": 3 / 11})
    assert seen.anchor_offset == pytest.approx({"1": 0.25, "2": 0.5, "3": 0.0, "4": 0.25})
    assert seen.acceptance_length == pytest.approx((4 + 2 + 1 + 2) / 4)
    assert (seen.step, seen.forward_kl.keys()) == (3, seen.share.keys())


def test_divergences_by_group_are_means_over_all_rows(target: Target, eager_drafter: DFlash, results: list[Rollout]):
    seen = diagnose(target, eager_drafter, results, **SIZES)
    batch = target.replay(collate([r.trace for r in results]), eager_drafter.layer_ids)
    rows, head = flatten(batch, None), target.head()
    assert batch.target_hidden is not None
    log_p = head(batch.target_hidden[batch.valid]).log_softmax(-1)
    log_q = head(eager_drafter(batch, target.embed)[batch.valid]).log_softmax(-1).detach()
    groups = {"accepted": rows.slot <= rows.num_accepted, "first_rejected": rows.first_rejected}
    groups["suffix"] = ~(groups["accepted"] | groups["first_rejected"])
    for values, kl in ((seen.forward_kl, forward_kl(log_p, log_q)), (seen.reverse_kl, reverse_kl(log_p, log_q))):
        wanted = {name: float(kl[mask].mean()) for name, mask in groups.items()}
        assert values == pytest.approx(wanted, rel=1e-3)
    forgotten = [Rollout(r.trace) for r in results]
    assert diagnose(target, eager_drafter, forgotten, **SIZES).forward_kl == pytest.approx(seen.forward_kl, rel=1e-3)


def test_it_is_bounded_and_leaves_training_as_it_was(
    target: Target, eager_drafter: DFlash, results: list[Rollout], monkeypatch
):
    sizes, forward = [], DFlash.forward
    monkeypatch.setattr(
        DFlash, "forward", lambda self, batch, embed: sizes.append(batch.valid.sum()) or forward(self, batch, embed)
    )
    eager_drafter.train()
    state = torch.get_rng_state()
    diagnose(target, eager_drafter, results, texts=3, rows=30, step=0)
    assert torch.equal(torch.get_rng_state(), state)
    assert eager_drafter.training
    assert 0 < int(sizes[0]) <= 30


def test_groups_without_a_draft_are_left_out(target: Target):
    drafter = DFlash(target.shape, num_layers=1, block_size=4)
    seen = diagnose(target, drafter, [Rollout(trace([3, 3]))], **SIZES)
    assert seen.forward_kl.keys() == {"accepted"}
    assert "forward_kl/suffix" not in seen.metrics()
