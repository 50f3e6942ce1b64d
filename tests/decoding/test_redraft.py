"""A text drafted again gives the traces of a fresh rollout with the same weights."""

from dataclasses import replace

import pytest
import torch

from draftopd.decoding.ledger import Ledger
from draftopd.decoding.redraft import affordable_rows, redraft
from draftopd.decoding.rollout import rollout
from draftopd.decoding.settings import Decoding
from draftopd.drafters.base import Drafter
from draftopd.drafters.dflash import DFlash
from draftopd.drafters.eagle3 import Eagle3
from draftopd.errors import DraftError
from draftopd.target import load
from draftopd.target.model import Target
from draftopd.trace import Rollout, Trace, collate_rollouts
from pair import EAGLE_LAYERS, EVERY_FAMILY, FAMILIES, PROMPTS, overfit, overfit_eagle

KINDS = ["dflash", "eagle3"]


@pytest.fixture(params=KINDS)
def trained(request, eager_drafter: DFlash, eager_eagle: Eagle3) -> Drafter:
    return {"dflash": eager_drafter, "eagle3": eager_eagle}[request.param]


def compare(target: Target, drafter: Drafter, decoding: Decoding, prompts: list[list[int]] = PROMPTS) -> list[Trace]:
    """Asserts that both ways give the same traces."""
    texts = rollout(target, None, prompts, decoding, keep_states=True, layer_ids=drafter.layer_ids)
    wanted = rollout(target, drafter, prompts, decoding, drafter_step=7)
    assert_same(redraft(target, drafter, texts, decoding, drafter_step=7), wanted)
    return [r.trace for r in wanted]


def accepted(traces: list[Trace]) -> set[int]:
    return set(torch.cat([t.accepted for t in traces]).tolist())


def assert_same(found: list[Rollout], wanted: list[Rollout]) -> None:
    for a, b in zip(found, wanted, strict=True):
        for name, value in vars(b.trace.check()).items():
            other = getattr(a.trace, name)
            assert torch.equal(other, value) if isinstance(value, torch.Tensor) else other == value, name
        assert torch.equal(a.trace.drafted, b.trace.drafted)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_the_traces_are_those_of_a_rollout_in_every_family(family: str, kind: str):
    target, decoding = load.tiny({"model_type": family, **FAMILIES[family]}), Decoding(20, 3)
    if kind == "dflash":
        drafter: Drafter = overfit(target, PROMPTS[:2], decoding, steps=40)
    else:
        drafter = overfit_eagle(target, PROMPTS[:2], decoding, steps=30)
    assert len(accepted(compare(target, drafter, decoding))) >= 2


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 24])
def test_the_length_limit_cuts_the_last_block_alike(target: Target, trained: Drafter, limit: int):
    compare(target, trained, Decoding(limit))


def test_every_length_of_acceptance_occurs(target: Target, trained: Drafter):
    assert {0, 4} <= accepted(compare(target, trained, Decoding(24)))


def test_stop_tokens_cut_blocks_alike_wherever_they_stand(target: Target, eager_drafter: DFlash, monkeypatch):
    plain, decoding = rollout(target, None, PROMPTS[:1], Decoding(24))[0].trace, Decoding(24)
    ends = set()
    for stop in plain.tokens[plain.prompt_length :].unique():
        monkeypatch.setitem(target.__dict__, "stop_tokens", stop[None])
        (trace,) = compare(target, eager_drafter, decoding, PROMPTS[:1])
        if len(trace.anchors):
            ends.add("draft" if trace.anchors[-1] + trace.accepted[-1] + 1 == len(trace.tokens) else "bonus")
    assert ends == {"draft", "bonus"}  # texts that end with an accepted draft, and with the target's own token


def test_sampled_texts_are_drafted_along_alike_under_token_matching(target: Target, trained: Drafter):
    """Greedy drafts against texts that the target has sampled, each token from its place's own random number."""
    decoding = Decoding(24, temperature=0.3, seed=5)
    assert len(accepted(compare(target, trained, decoding))) > 1
    compare(target, trained, replace(decoding, temperature=1.0, top_p=0.9))
    compare(target, trained, replace(decoding, temperature=1.0), PROMPTS * 3)


def test_sampled_drafts_are_refused(target: Target, drafter: DFlash):
    with pytest.raises(DraftError, match=r"decoding\.rule=rejection.*traces=rollouts"):
        redraft(target, drafter, [], Decoding(8, temperature=1.0, rule="rejection"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_reduced_vocabulary_drafts_its_own_tokens(target: Target, kind: str):
    torch.manual_seed(3)
    make = {"dflash": lambda: DFlash(target.shape, 1, 4, draft_vocab_size=30)}
    make["eagle3"] = lambda: Eagle3(target.shape, 4, EAGLE_LAYERS, draft_vocab_size=30)
    drafter = make[kind]()
    drafter.set_vocabulary(torch.arange(20, 80, 2))
    drafter.initialise(target.head)
    compare(target, drafter, Decoding(16))


def test_texts_of_an_older_drafter_are_drafted_along_by_a_newer_one(target: Target, trained: Drafter):
    torch.manual_seed(9)
    older = DFlash(target.shape, 1, 3, layer_ids=list(trained.layer_ids))
    texts = rollout(target, older, PROMPTS, Decoding(24), keep_states=True)
    assert_same(redraft(target, trained, texts, Decoding(24)), rollout(target, trained, PROMPTS, Decoding(24)))


def test_texts_drafted_along_together_change_no_trace(target: Target, trained: Drafter):
    decoding = Decoding(24, temperature=1.0)
    alone = [replace(decoding, memory_gib=1e-5), replace(decoding, batch_size=1)]
    assert [affordable_rows(target, trained, 30, 100, d) for d in (decoding, *alone)] == [16, 1, 1]
    texts = rollout(target, None, PROMPTS * 2, decoding, keep_states=True, layer_ids=trained.layer_ids)
    done: list[int] = []
    found = redraft(target, trained, texts, decoding, on_done=done.append)
    assert sum(done) == len(texts)
    for other in (*alone, replace(decoding, batch_size=4)):
        assert_same(redraft(target, trained, texts, other), found)


def test_a_block_does_not_see_the_text_from_its_anchor_on(target: Target, trained: Drafter):
    """One text and the same with other features after an anchor: the block at that anchor is the same."""
    (text,) = rollout(target, None, PROMPTS[:1], Decoding(24), keep_states=True, layer_ids=trained.layer_ids)
    assert text.features is not None
    drafts = {}
    for anchor in range(text.trace.prompt_length, len(text.trace.tokens) - 1):
        cut, features = replace(text.trace, prompt_length=anchor), text.features.clone()
        features[anchor:] = 1e3
        both = redraft(target, trained, [Rollout(cut, f) for f in (text.features, features)], Decoding(24))
        first, second = (r.trace.drafts[0] for r in both)
        assert torch.equal(first, second)
        drafts[anchor] = first.tolist()
    assert len({tuple(d) for d in drafts.values()}) > 1


def test_texts_without_features_are_read_and_counted(target: Target, trained: Drafter):
    wanted = rollout(target, trained, PROMPTS, Decoding(24))
    bare = [Rollout(r.trace) for r in rollout(target, None, PROMPTS, Decoding(24))]
    ledger = Ledger()
    found = redraft(target, trained, bare, Decoding(24), ledger=ledger)
    assert_same(found, wanted)
    assert ledger.target_tokens == sum(len(r.trace.tokens) for r in wanted)
    texts = [replace(text, features=r.features) for text, r in zip(bare, found, strict=True)]
    ledger = Ledger()
    redraft(target, trained, texts, Decoding(24), ledger=ledger)
    assert ledger.target_tokens == 0
    assert ledger.tokens["draft"] == 4 * sum(len(r.trace.anchors) for r in wanted)


def test_replay_adds_what_the_verifications_of_a_rollout_saw(target: Target, trained: Drafter):
    texts = rollout(target, None, PROMPTS, Decoding(24), keep_states=True, layer_ids=trained.layer_ids)
    rolled, ledger = Ledger(), Ledger()
    # one by one: prompts of one rollout share the reading of their common prefix
    results = [rollout(target, trained, [p], Decoding(24), keep_states=True, ledger=rolled)[0] for p in PROMPTS]
    rolled_out = collate_rollouts(results)
    again = collate_rollouts(redraft(target, trained, texts, Decoding(24)))
    assert again.target_hidden is None
    ledger.replay(target, again)
    again = target.replay(again, trained.layer_ids)
    torch.testing.assert_close(
        again.target_hidden[rolled_out.valid], rolled_out.target_hidden[rolled_out.valid], atol=1e-4, rtol=1e-3
    )
    # verifications read one token more for each rejection, and what the end of a text cut off; never its last token
    more = [torch.where(t.accepted < t.drafted, 1, 5 - t.committed).sum() - 1 for t in (r.trace for r in results)]
    assert rolled.target_tokens - ledger.target_tokens == sum(more)


def test_modes_are_restored(target: Target, drafter: DFlash):
    texts = rollout(target, None, PROMPTS[:1], Decoding(4), keep_states=True, layer_ids=drafter.layer_ids)
    drafter.train()
    redraft(target, drafter, texts, Decoding(4))
    assert drafter.training
    assert torch.is_grad_enabled()
