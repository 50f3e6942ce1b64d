"""Compiled steps write the texts that eager ones write, and are compiled once."""

import copy

import pytest
import torch

from draftopd.decoding.redraft import redraft
from draftopd.decoding.rollout import rollout
from draftopd.decoding.settings import Decoding
from draftopd.drafters.base import Drafter
from draftopd.target.model import Target
from draftopd.trace import Rollout
from pair import PROMPTS

PLAIN, DFLASH, EAGLE = None, "eager_drafter", "eager_eagle"


@pytest.fixture(autouse=True)
def nothing_compiled():
    torch.compiler.reset()


def same(rolled: list[Rollout], others: list[Rollout]) -> bool:
    names = ("tokens", "anchors", "drafts", "accepted")
    pairs = zip(rolled, others, strict=True)
    return all(torch.equal(getattr(a.trace, n), getattr(b.trace, n)) for a, b in pairs for n in names)


@pytest.mark.parametrize(
    ("name", "batch_size", "backend"),
    [
        (PLAIN, 3, "eager"),
        (DFLASH, 1, "eager"),
        (EAGLE, 3, "eager"),
        *(pytest.param(name, 1, "eager", marks=pytest.mark.slow) for name in (PLAIN, EAGLE)),
        pytest.param(DFLASH, 3, "eager", marks=pytest.mark.slow),
        *(pytest.param(name, 3, "inductor", marks=pytest.mark.slow) for name in (PLAIN, DFLASH, EAGLE)),
    ],
)
def test_texts_are_the_eager_ones_and_nothing_is_compiled_again(
    target: Target, request: pytest.FixtureRequest, name: str | None, batch_size: int, backend: str
):
    """Rows end at different steps, and waiting prompts take their places; `keep_states` reads what a step wrote."""
    drafter: Drafter | None = name and request.getfixturevalue(name)
    eager = Decoding(max_new_tokens=16, batch_size=batch_size)
    compiled = Decoding(max_new_tokens=16, batch_size=batch_size, compile=backend)
    expected = rollout(target, drafter, PROMPTS, eager, keep_states=True)
    rolled = rollout(target, drafter, PROMPTS, compiled, keep_states=True)
    assert same(rolled, expected)
    for ours, theirs in zip(rolled, expected, strict=True):
        torch.testing.assert_close(ours.features, theirs.features, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(ours.target_hidden, theirs.target_hidden, rtol=1e-4, atol=1e-4)
    with torch.compiler.set_stance("fail_on_recompile"):
        assert same(rollout(target, drafter, PROMPTS, compiled), expected)


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["token_matching", "rejection"])
def test_sampled_texts_are_the_eager_ones(target: Target, eager_drafter: Drafter, rule: str):
    eager, compiled = (
        Decoding(16, temperature=0.8, top_p=0.9, rule=rule, compile=compile) for compile in (False, "eager")
    )
    assert same(rollout(target, eager_drafter, PROMPTS, compiled), rollout(target, eager_drafter, PROMPTS, eager))


def test_a_copied_target_taps_its_own_layers(target: Target, eager_drafter: Drafter):
    """Its hooks go with it."""
    other = copy.deepcopy(target)
    texts = rollout(target, None, PROMPTS[:2], Decoding(6), keep_states=True, layer_ids=eager_drafter.layer_ids)
    again = rollout(other, None, PROMPTS[:2], Decoding(6), keep_states=True, layer_ids=eager_drafter.layer_ids)
    for one, two in zip(texts, again, strict=True):
        torch.testing.assert_close(one.features, two.features)
    assert same(redraft(other, eager_drafter, again, Decoding(6)), redraft(target, eager_drafter, texts, Decoding(6)))
