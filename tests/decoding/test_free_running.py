"""Text that the drafter writes by itself, and the measures of how it degenerates."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from draftopd.decoding.free_running import free_running
from draftopd.decoding.ledger import Ledger
from draftopd.decoding.rollout import rollout
from draftopd.decoding.settings import Decoding
from draftopd.drafters.dflash import DFlash
from draftopd.evaluation.text_quality import quality, repeated_ngrams
from draftopd.target.model import Target
from draftopd.trace import Rollout, Trace, collate
from pair import PROMPTS

DECODING = Decoding(max_new_tokens=18, batch_size=3)


@pytest.fixture(scope="module")
def written(target: Target, eager_drafter: DFlash) -> list[Rollout]:
    return free_running(target, eager_drafter, PROMPTS, DECODING, keep_states=True, drafter_step=7)


def test_every_token_after_the_first_is_the_drafters(target: Target, eager_drafter: DFlash, written: list[Rollout]):
    """Drafting again along the finished text, in one masked forward, gives the same blocks."""
    for result, prompt in zip(written, PROMPTS, strict=True):
        trace, width = result.trace, eager_drafter.num_draft_tokens
        assert trace.tokens[: len(prompt)].tolist() == prompt
        assert trace.drafter_step == 7
        assert trace.anchors.tolist() == list(range(len(prompt), len(trace.tokens) - 1, width))
        assert torch.equal(
            trace.tokens[len(prompt) + 1 :],
            torch.cat([d[:n] for d, n in zip(trace.drafts, trace.accepted, strict=True)]),
        )
        assert torch.equal(trace.drafted, trace.accepted)
        batch = target.replay(collate([trace]), eager_drafter.layer_ids)
        drafts = target.head()(eager_drafter(batch, target.embed)).argmax(-1)
        assert torch.equal(drafts[batch.valid], batch.drafts[batch.valid])
    assert {r.trace.response_length for r in written} == {DECODING.max_new_tokens}


def test_it_is_not_the_targets_text(target: Target, eager_drafter: DFlash, written: list[Rollout]):
    own = rollout(target, eager_drafter, PROMPTS, DECODING)
    assert any(a.trace.tokens.tolist() != b.trace.tokens.tolist() for a, b in zip(own, written, strict=True))
    for a, b in zip(own, written, strict=True):  # the first token is the target's
        assert a.trace.tokens[a.trace.prompt_length] == b.trace.tokens[b.trace.prompt_length]


def test_recorded_states_are_those_of_replay(target: Target, eager_drafter: DFlash, written: list[Rollout]):
    for result in written:
        batch = target.replay(collate([result.trace]), eager_drafter.layer_ids)
        assert batch.features is not None
        assert batch.target_hidden is not None
        valid = batch.valid[0]
        torch.testing.assert_close(result.target_hidden[valid], batch.target_hidden[0][valid], atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(result.features[:-1], batch.features[0, :-1], atol=1e-4, rtol=1e-3)


def test_a_stop_token_ends_the_text(target: Target, eager_drafter: DFlash, written: list[Rollout], monkeypatch):
    text = written[0].trace
    stop = int(text.tokens[text.prompt_length + 6])
    monkeypatch.setitem(target.__dict__, "stop_tokens", torch.tensor([stop]))
    (result,) = free_running(target, eager_drafter, PROMPTS[:1], DECODING)
    first = text.tokens[text.prompt_length :].tolist().index(stop)
    assert result.trace.response_length == first + 1
    assert int(result.trace.accepted.sum()) == first


def test_the_ledger_has_no_head_of_the_target(target: Target, eager_drafter: DFlash):
    unverified, verified = Ledger(), Ledger()
    one_block = Decoding(max_new_tokens=2)
    free_running(target, eager_drafter, PROMPTS[:1], one_block, ledger=unverified)
    rollout(target, eager_drafter, PROMPTS[:1], one_block, ledger=verified)
    head = 2 * target.head().weight.numel() * eager_drafter.block_size
    assert verified.flops["verify"] - unverified.flops["verify"] == head
    assert verified.tokens["verify"] == unverified.tokens["verify"] == eager_drafter.block_size


def test_repeated_ngrams_by_hand():
    found = repeated_ngrams(torch.tensor([1, 2, 1, 2, 1, 2, 3]), n=2)
    assert found.tolist() == [False, False, False, True, True, True, False]
    assert repeated_ngrams(torch.full((6,), 5)).tolist() == [False] * 4 + [True, True]
    assert not repeated_ngrams(torch.tensor([1, 1, 1])).any()


def test_quality_is_the_targets_loss_and_repetition_by_position(target: Target):
    nothing = torch.zeros(0, dtype=torch.long)
    texts = [
        Trace(torch.tensor(p + [9] * n), len(p), nothing, nothing.view(0, 0), nothing)
        for p, n in zip(PROMPTS, (8, 5, 8, 1, 8), strict=True)
    ]
    seen = quality(target, texts, longest=12, bins=3)
    assert (seen.width, seen.tokens) == (4, [17, 13, 0])
    assert math.isnan(seen.nll[2])
    losses, repeats = [], []
    for text in texts:
        tokens = text.tokens[None]
        logits = target.model(tokens).logits[0, text.prompt_length - 1 : -1]
        losses.append(cross_entropy(logits, tokens[0, text.prompt_length :], reduction="none"))
        repeats.append([i >= 4 for i in range(text.response_length)])
    first = torch.cat([loss[:4] for loss in losses])
    assert seen.nll[0] == pytest.approx(float(first.detach().mean()), rel=1e-4)
    assert seen.mean("nll") == pytest.approx(float(torch.cat(losses).detach().mean()), rel=1e-4)
    assert seen.repeated[:2] == [0.0, 1.0]
