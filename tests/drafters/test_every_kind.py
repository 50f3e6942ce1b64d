"""Of every kind of drafter: lossless in every family, replayed and redrafted as it drafted, trained by commands."""

import copy

import pytest
import torch

from draftopd.decoding.redraft import redraft
from draftopd.decoding.rollout import rollout
from draftopd.decoding.settings import Decoding
from draftopd.drafters.base import Drafter
from draftopd.drafters.dflash import DFlash
from draftopd.drafters.dflash2 import DFlash2
from draftopd.drafters.dspark import DSpark
from draftopd.drafters.eagle3 import Eagle3
from draftopd.target import load
from draftopd.target.model import Target
from draftopd.trace import collate
from pair import EAGLE_LAYERS, EVERY_FAMILY, FAMILIES, PROMPTS, overfit, overfit_dflash2, overfit_dspark, overfit_eagle
from runs import outputs

EAGER = {"dflash": "eager_drafter", "eagle3": "eager_eagle", "dspark": "eager_dspark", "dflash2": "eager_dflash2"}
OVERFIT = {"dflash": overfit, "eagle3": overfit_eagle, "dspark": overfit_dspark, "dflash2": overfit_dflash2}
SAMPLED = Decoding(24, temperature=1.0, rule="rejection")


@pytest.fixture(params=EAGER)
def eager(request: pytest.FixtureRequest) -> Drafter:
    drafter: Drafter = request.getfixturevalue(EAGER[request.param])
    return drafter


def texts(results) -> list[list[int]]:
    return [r.trace.tokens.tolist() for r in results]


@pytest.mark.parametrize("kind", ["eagle3", "dspark", "dflash2"])  # DFlash: target/test_model.py
@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_greedy_text_is_the_targets_whatever_the_family(family: str, kind: str):
    target = load.tiny({"model_type": family, **FAMILIES[family]})
    decoding = Decoding(max_new_tokens=16, batch_size=2)
    drafter = OVERFIT[kind](target, PROMPTS[:2], decoding, steps=40)
    plain, speculative = (rollout(target, d, PROMPTS, decoding) for d in (None, drafter))
    assert texts(speculative) == texts(plain)
    assert sum(int(r.trace.check().accepted.sum()) for r in speculative) > 5


@pytest.mark.slow
@pytest.mark.parametrize("decoding", [Decoding(24), SAMPLED], ids=["greedy", "sampled drafts"])
def test_the_batch_size_changes_neither_texts_nor_traces(target: Target, eager: Drafter, decoding: Decoding):
    # in float64, where no draw lies so near to a boundary that the order of additions decides it
    target, eager = copy.deepcopy(target).double(), copy.deepcopy(eager).double()
    prompts = PROMPTS * 2  # waiting prompts join rows that others have left
    first, *others = (
        rollout(target, eager, prompts, Decoding(**{**vars(decoding), "batch_size": size})) for size in (1, 2, 5)
    )
    for other in others:
        for a, b in zip(first, other, strict=True):
            for name in ("tokens", "anchors", "drafts", "accepted"):
                assert torch.equal(getattr(a.trace, name), getattr(b.trace.check(), name))


def test_a_trained_drafter_exercises_every_length_of_acceptance(target: Target, eager: Drafter):
    accepted = torch.cat([r.trace.accepted for r in rollout(target, eager, PROMPTS, Decoding(24))])
    assert set(accepted.tolist()) >= {0, 4}


def test_replay_of_unchanged_weights_gives_back_the_drafts(target: Target, eager: Drafter):
    """The best single check of every index convention."""
    results = rollout(target, eager, PROMPTS, Decoding(24, 2), keep_states=True)
    stored = collate([r.trace for r in results], [r.features for r in results], [r.target_hidden for r in results])
    head = eager.head(target.head)
    for batch in (stored, target.replay(stored, eager.layer_ids)):
        with torch.no_grad():
            drafted = head.tokens(head(eager(batch, target.embed)).argmax(-1))
        assert torch.equal(drafted[batch.valid], batch.drafts[batch.valid])
    assert (stored.valid & (torch.arange(4) > stored.accepted[..., None])).any()  # tails after a first rejection


def test_redrafting_gives_the_traces_of_a_rollout(target: Target, eager: Drafter):
    decoding = Decoding(24)
    written = rollout(target, None, PROMPTS, decoding, keep_states=True, layer_ids=eager.layer_ids)
    rolled = rollout(target, eager, PROMPTS, decoding)
    for a, b in zip(rolled, redraft(target, eager, written, decoding), strict=True):
        for name in ("tokens", "anchors", "drafts", "accepted"):
            assert torch.equal(getattr(a.trace, name), getattr(b.trace, name))


@pytest.mark.parametrize("kind", OVERFIT)
def test_a_reduced_vocabulary_drafts_its_own_tokens_and_stays_lossless(target: Target, kind: str):
    torch.manual_seed(3)
    drafter: Drafter = {
        "dflash": lambda: DFlash(target.shape, 1, 4, draft_vocab_size=10),
        "eagle3": lambda: Eagle3(target.shape, 4, EAGLE_LAYERS, draft_vocab_size=10),
        "dspark": lambda: DSpark(target.shape, 1, 4, 6, draft_vocab_size=10),
        "dflash2": lambda: DFlash2(target.shape, 1, 4, selector_rank=6, draft_vocab_size=10),
    }[kind]()
    drafter.set_vocabulary(torch.arange(20, 40, 2))
    drafter.initialise(target.head)
    for decoding in (Decoding(16), SAMPLED):
        results = rollout(target, drafter, PROMPTS, decoding)
        drafted = torch.cat([r.trace.check().drafts.flatten() for r in results])
        assert set(drafted.tolist()) <= set(range(20, 40, 2))
    assert texts(rollout(target, drafter, PROMPTS, Decoding(16))) == texts(rollout(target, None, PROMPTS, Decoding(16)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["eagle3", "dspark", "dflash2"])
def test_sft_and_then_draft_opd_run_through_the_command(command, tmp_path, kind: str):
    assert command(f"experiment=smoke/{kind}", "logger=none") == 0
    folder = outputs(tmp_path)
    sft, opd = (
        torch.load(folder / stage / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for stage in ("sft", "draft_opd")
    )
    assert torch.equal(sft["drafter.d2t"], opd["drafter.d2t"])
    assert all(not torch.equal(sft[name], opd[name]) for name in sft if name != "drafter.d2t")
