"""EAGLE-3 in decoding: lossless for every family, indifferent to the batch, replayed as it drafted."""

import copy

import pytest
import torch

from draftopd.decoding.rollout import rollout
from draftopd.decoding.settings import Decoding
from draftopd.drafters.eagle3 import Eagle3
from draftopd.target import load
from draftopd.target.model import Target
from draftopd.trace import collate
from pair import EAGLE_LAYERS, EVERY_FAMILY, FAMILIES, PROMPTS, overfit_eagle

SAMPLED = Decoding(24, temperature=1.0, rule="rejection")


def texts(results) -> list[list[int]]:
    return [r.trace.tokens.tolist() for r in results]


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_greedy_text_is_the_targets_whatever_the_family(family: str):
    target = load.tiny({"model_type": family, **FAMILIES[family]})
    decoding = Decoding(max_new_tokens=16, batch_size=2)
    drafter = overfit_eagle(target, PROMPTS[:2], decoding, block_size=4)
    plain, speculative = (rollout(target, d, PROMPTS, decoding) for d in (None, drafter))
    assert texts(speculative) == texts(plain)
    assert sum(int(r.trace.check().accepted.sum()) for r in speculative) > 5


@pytest.mark.slow
@pytest.mark.parametrize("decoding", [Decoding(24), SAMPLED], ids=["greedy", "sampled drafts"])
def test_the_batch_size_changes_neither_texts_nor_traces(target: Target, eager_eagle: Eagle3, decoding: Decoding):
    # in float64, where no draw lies so near to a boundary that the order of additions decides it
    target, eager_eagle = copy.deepcopy(target).double(), copy.deepcopy(eager_eagle).double()
    prompts = PROMPTS * 2  # waiting prompts join rows that others have left
    first, *others = (
        rollout(target, eager_eagle, prompts, Decoding(**{**vars(decoding), "batch_size": size})) for size in (1, 2, 5)
    )
    for other in others:
        for a, b in zip(first, other, strict=True):
            for name in ("tokens", "anchors", "drafts", "accepted"):
                assert torch.equal(getattr(a.trace, name), getattr(b.trace.check(), name))


def test_a_trained_drafter_exercises_every_length_of_acceptance(target: Target, eager_eagle: Eagle3):
    accepted = torch.cat([r.trace.accepted for r in rollout(target, eager_eagle, PROMPTS, Decoding(24))])
    assert set(accepted.tolist()) == {0, 1, 2, 3, 4}


def test_replay_of_unchanged_weights_gives_back_the_drafts(target: Target, eager_eagle: Eagle3):
    results = rollout(target, eager_eagle, PROMPTS, Decoding(24, 2), keep_states=True)
    stored = collate([r.trace for r in results], [r.features for r in results], [r.target_hidden for r in results])
    again = target.replay(stored, eager_eagle.layer_ids)
    head = eager_eagle.head(target.head)
    for batch in (stored, again):
        with torch.no_grad():
            drafted = head.tokens(head(eager_eagle(batch, target.embed)).argmax(-1))
        assert torch.equal(drafted[batch.valid], batch.drafts[batch.valid])
    rejected = stored.valid & (torch.arange(4) > stored.accepted[..., None])  # tails after a first rejection
    assert rejected.any()


def test_a_reduced_vocabulary_drafts_its_own_tokens_and_stays_lossless(target: Target):
    torch.manual_seed(3)
    drafter = Eagle3(target.shape, 4, EAGLE_LAYERS, draft_vocab_size=10)
    drafter.set_vocabulary(torch.arange(20, 40, 2))
    drafter.initialise(target.head)
    for decoding in (Decoding(16), SAMPLED):
        results = rollout(target, drafter, PROMPTS, decoding)
        drafted = torch.cat([r.trace.check().drafts.flatten() for r in results])
        assert set(drafted.tolist()) <= set(range(20, 40, 2))
    assert texts(rollout(target, drafter, PROMPTS, Decoding(16))) == texts(rollout(target, None, PROMPTS, Decoding(16)))
