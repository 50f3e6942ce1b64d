"""transformers' own DFlash decoding with our drafter: a second opinion on every convention of ours."""

import pytest
import torch
from benchmarks.decode_systems import greedy, systems, theirs
from benchmarks.transformers_dflash import DFlashAssistant

from conftest import FAMILIES, PROMPTS
from draftopd import load
from draftopd.drafters.dflash import DFlash
from draftopd.errors import DraftError
from draftopd.rollout import Decoding, rollout
from draftopd.target import Target

LIMIT = 24


@pytest.mark.parametrize("limit", [2, 7, LIMIT])
def test_texts_and_every_verification_are_those_of_our_rollouts(target: Target, eager_drafter: DFlash, limit: int):
    ways = systems(target, eager_drafter, limit)
    plain, ours, assisted = (ways[name](PROMPTS) for name in ("plain", "ours_batch1_full_head", "transformers_dflash"))
    assert assisted.texts == ours.texts == plain.texts
    assert assisted.committed == ours.committed
    assert assisted.acceptance_length == ours.acceptance_length


def test_transformers_gets_the_drafts_that_ours_made(target: Target, eager_drafter: DFlash):
    """Rejected drafts as well; where one token is left to write transformers does not draft."""
    config = greedy(target, LIMIT)
    config.speculation_type = "dflash"
    assistant = DFlashAssistant(eager_drafter)
    drafts: list[torch.Tensor] = []

    def keep(_module, _inputs, output) -> None:
        drafts.append(target.head()(output.last_hidden_state[0, 1:]).argmax(-1))

    with torch.no_grad(), assistant.register_forward_hook(keep):
        for prompt in PROMPTS:
            drafts.clear()
            theirs(target, config, assistant)([prompt])
            trace = rollout(target, eager_drafter, [prompt], Decoding(LIMIT))[0].trace
            assert 0 <= len(trace.drafts) - len(drafts) <= 1
            assert torch.equal(torch.stack(drafts), trace.drafts[: len(drafts)])


def test_another_family_with_two_layers_and_two_features():
    target = load.tiny({"model_type": "qwen3", **FAMILIES["qwen3"]})
    torch.manual_seed(4)
    drafter = DFlash(target.shape, num_layers=2, block_size=4, layer_ids=[0, 2], draft_vocab_size=30)
    drafter.set_vocabulary(torch.arange(10, 40))
    ways = systems(target, drafter, LIMIT)
    passes = {name: way(PROMPTS) for name, way in ways.items()}
    assert all(done.texts == passes["plain"].texts for done in passes.values())
    assert passes["transformers_dflash"].committed == passes["ours_batch1_full_head"].committed


def test_a_drafter_that_transformers_does_not_know_is_refused(target: Target):
    with pytest.raises(DraftError, match="no counterpart of Identity"):
        systems(target, torch.nn.Identity(), LIMIT)
