"""Blocks that end early: where, and that texts and the law of texts do not change."""

import pytest
import torch
from test_sampled_rollout import p_value, texts

from draftopd.decoding.cuts import Chance, Cuts, log_odds
from draftopd.decoding.ledger import Ledger
from draftopd.decoding.rollout import rollout
from draftopd.decoding.settings import Decoding
from draftopd.drafters.base import Drafter
from draftopd.drafters.dspark import DSpark
from draftopd.drafters.eagle3 import Eagle3
from draftopd.evaluation import speed
from draftopd.target.model import Target
from draftopd.trace import Trace
from pair import PROMPTS

KINDS = ["eager_drafter", "eager_eagle", "eager_dspark", "eager_dflash2"]
EVEN = Chance(1.0, (0.0,) * 4, (0.6,) * 4)


def steep(rate: float = 0.3, chance: Chance = EVEN) -> Cuts:
    """A draft costs a tenth of a step to make and a fifth to verify."""
    return Cuts(chance, tuple(1 + 0.2 * k for k in range(5)), tuple(0.1 * k for k in range(5)), rate)


def verified(traces: list[Trace]) -> set[int]:
    return {int(n) for trace in traces for n in (trace.drafted if trace.verified is None else trace.verified)}


def test_the_length_by_hand():
    """lambda = 1: draft k is worth it while R_k > 0.2, and a slot that is drafted costs nothing more to draft."""
    cuts = steep(rate=1.0)
    assert cuts.choose([0.9, 0.5, 0.3, 0.1], 1) == 3
    assert cuts.choose([0.1, 0.1, 0.1, 0.1], 1) == 1
    assert cuts.choose([0.9, 0.6], 1) == 3  # draft on: 0.6 * 0.6 is more than the 0.3 that the next takes
    assert cuts.choose([0.9, 0.1], 1) == 1  # slot 2 is dropped
    assert cuts.choose([0.9, 0.4], 1) == 2  # kept, and nothing more


def test_a_dear_row_before_cheap_ones_is_not_the_end():
    cuts = Cuts(EVEN, (1.0, 1.6, 1.1, 1.1, 1.1), (0.0,) * 5, 0.5)
    assert cuts.choose([0.1], 1) > 1
    assert cuts.choose([0.1, 0.05, 0.05, 0.05], 1) == 4


def test_the_fit_finds_slope_and_offsets_and_reads_only_what_was_reached():
    draw = torch.Generator().manual_seed(0)
    evidence = 3 * torch.randn(20_000, 2, generator=draw)
    true = Chance(0.5, (0.3, -1.0), (0.0, 0.0))
    good = torch.rand(evidence.shape, generator=draw) < true(evidence, 0)
    held = good.long().cumprod(1).bool()
    reached = torch.cat([torch.ones_like(held[:, :1]), held[:, :1]], 1)
    found = Chance.fit(evidence, held, reached)
    assert found.slope == pytest.approx(0.5, abs=0.03)
    assert found.offsets == pytest.approx((0.3, -1.0), abs=0.1)
    assert found.mean[1] == pytest.approx(float(good[held[:, 0], 1].double().mean()), abs=1e-3)
    all_held = Chance.fit(evidence[:9], torch.ones(9, 2).bool(), torch.ones(9, 2).bool())
    assert 0.9 < all_held.mean[0] < 1  # finite where nothing was rejected


def test_log_odds_of_sure_and_unsure_drafts():
    logits = torch.tensor([[0.0, 0.0], [200.0, 0.0]])
    found = log_odds(logits)
    assert found[0] == pytest.approx(0.0, abs=1e-6)
    assert 10 < float(found[1]) < 20


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_greedy_texts_equal_plain_text(target: Target, kind: str, batch_size: int, request: pytest.FixtureRequest):
    drafter: Drafter = request.getfixturevalue(kind)
    decoding, ledger = Decoding(24, batch_size), Ledger()
    plain = rollout(target, None, PROMPTS, decoding)
    cut = rollout(target, drafter, PROMPTS, decoding, cuts=steep(), ledger=ledger)
    assert texts(cut) == texts(plain)
    lengths = verified([r.trace.check() for r in cut])
    assert 1 <= min(lengths) < 4
    assert batch_size > 1 or len(lengths) > 1
    whole = sum(len(r.trace.anchors) for r in cut) * drafter.block_size
    assert batch_size > 1 or ledger.tokens["verify"] < whole
    for trace in (r.trace for r in cut):
        assert (trace.accepted <= trace.drafted).all()
        if trace.verified is not None:
            assert not trace.drafts[torch.arange(4) >= trace.verified[:, None]].any()


@pytest.mark.parametrize("rule", ["rejection", pytest.param("token_matching", marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["eager_eagle", pytest.param("eager_drafter", marks=pytest.mark.slow)])
def test_above_temperature_0_the_law_is_the_targets(target: Target, kind: str, rule: str, request):
    drafter: Drafter = request.getfixturevalue(kind)
    decoding = Decoding(3, batch_size=4096, temperature=1.0, rule=rule, seed=7, top_k=3)
    assert p_value(target, drafter, decoding, 4_000, cuts=steep(0.6)) > 1e-3


def test_a_sequential_drafter_stops_drafting(target: Target, eager_eagle: Eagle3):
    calls = list[int]()
    handle = eager_eagle.midlayer.mlp.register_forward_hook(lambda *_: calls.append(1))
    each = []
    for cuts in (None, steep()):
        calls.clear()
        (result,) = rollout(target, eager_eagle, PROMPTS[:1], Decoding(24), cuts=cuts)
        each.append(len(calls) / len(result.trace.anchors))
    handle.remove()
    assert each[0] == 4
    assert each[1] < 4


def test_dsparks_confidence_head_decides_where_there_is_one(target: Target, eager_dspark: DSpark):
    head = eager_dspark.confidence_head
    before = head.proj.bias.detach().clone()
    try:
        ends = []
        for sure in (-50.0, 50.0):
            head.proj.bias.data.fill_(sure)
            results = rollout(target, eager_dspark, PROMPTS, Decoding(24), cuts=steep())
            ends.append(verified([r.trace for r in results]))
    finally:
        head.proj.bias.data.copy_(before)
    assert ends[0] == {1}
    assert max(ends[1]) == 4


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_fitted_on_validation_prompts_cuts_where_drafts_fail(target: Target, kind: str, request):
    drafter: Drafter = request.getfixturevalue(kind)
    found = speed.fit_cuts(target, drafter, PROMPTS, Decoding(24), repeats=1)
    assert len(found.verify) == len(found.draft) == drafter.block_size
    assert found.rate > 0
    assert texts(rollout(target, drafter, PROMPTS, Decoding(24), cuts=found)) == texts(
        rollout(target, None, PROMPTS, Decoding(24))
    )
