"""The speed model: its arithmetic, and that measuring costs changes nothing."""

import pytest
import torch

from draftopd.decoding.rollout import rollout
from draftopd.decoding.settings import Decoding
from draftopd.drafters.base import Drafter
from draftopd.evaluation import speed
from draftopd.evaluation.speed import Costs, predict
from draftopd.target.model import Target
from pair import PROMPTS


def test_prediction_by_hand():
    """Verifying is free up to 4 tokens and twice as dear at 8; drafting costs a tenth of a step."""
    costs = Costs(100, {1: 0.04, 2: 0.04, 4: 0.04, 8: 0.08}, {2: 0.004, 4: 0.004, 8: 0.004})
    speedups = predict(costs, [0.8, 0.6, 0.5, 0.2, 0.1, 0.0, 0.0])
    assert speedups[2] == pytest.approx(1.8 / 1.1)
    assert speedups[4] == pytest.approx(2.9 / 1.1)
    assert speedups[8] == pytest.approx(3.2 * 0.04 / 0.084)
    assert max(speedups, key=speedups.__getitem__) == 4


def test_no_prediction_beyond_the_measured_block():
    costs = Costs(9, {1: 1.0, 2: 1.0, 4: 1.0}, {2: 0.0, 4: 0.0})
    assert predict(costs, [0.5]) == {2: 1.5}


@pytest.mark.parametrize("kind", ["eager_drafter", pytest.param("eager_eagle", marks=pytest.mark.slow)])
def test_measuring_leaves_the_drafter_as_it_was(kind: str, target: Target, request: pytest.FixtureRequest):
    drafter: Drafter = request.getfixturevalue(kind)
    before = [r.trace for r in rollout(target, drafter, PROMPTS, Decoding(12))]
    known, rows = speed.table(target, drafter, PROMPTS[:2], Decoding(12), [2, 5])
    assert set(known.draft) == {2, 5}
    assert all(seconds > 0 for seconds in (*known.verify.values(), *known.draft.values()))
    for row in rows:
        assert 1 <= row.acceptance_length <= row.block_size
        assert row.model == pytest.approx(row.acceptance_length * known.verify[1] / known.step(row.block_size))
    after = [r.trace for r in rollout(target, drafter, PROMPTS, Decoding(12))]
    assert all(torch.equal(a.drafts, b.drafts) for a, b in zip(before, after, strict=True))
