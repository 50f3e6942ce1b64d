"""transformers' own DFlash decoding with our drafter: a second opinion on every convention of ours."""

import pytest
import torch
from benchmarks.decode_systems import greedy, systems, theirs
from benchmarks.transformers_dflash import DFlashAssistant

from draftopd.decoding.rollout import rollout
from draftopd.decoding.settings import Decoding
from draftopd.drafters.dflash import DFlash
from draftopd.errors import DraftError
from draftopd.target import load
from draftopd.target.model import Target
from pair import FAMILIES, PROMPTS

LIMIT = 24


@pytest.mark.parametrize("limit", [2, 7, LIMIT])
def test_texts_and_every_verification_are_those_of_our_rollouts(target: Target, eager_drafter: DFlash, limit: int):
    ways = systems(target, eager_drafter, limit)
    plain, ours, assisted = (ways[name](PROMPTS) for name in ("plain", "ours_batch1_full_head", "transformers_dflash"))
    assert assisted.texts == ours.texts == plain.texts
    assert assisted.committed == ours.committed
    assert assisted.acceptance_length == ours.acceptance_length


def two_layers() -> tuple[Target, DFlash]:
    """Another family; two layers, two features, a reduced draft vocabulary."""
    target = load.tiny({"model_type": "qwen3", **FAMILIES["qwen3"]})
    torch.manual_seed(4)
    drafter = DFlash(target.shape, num_layers=2, block_size=4, layer_ids=[0, 2], draft_vocab_size=30)
    drafter.set_vocabulary(torch.arange(10, 40))
    for parameter in drafter.parameters():
        if parameter.ndim == 2:  # large weights: drafts depend on all that the drafter sees
            torch.nn.init.normal_(parameter, std=0.3)
    return target, drafter


def their_drafts(target: Target, drafter: DFlash, prompt: list[int]) -> torch.Tensor:
    """[N, K] what transformers' loop drafted."""
    drafts: list[torch.Tensor] = []

    def keep(_module, _inputs, output) -> None:
        drafts.append(target.head()(output.last_hidden_state[0, 1:]).argmax(-1))

    config = greedy(target, LIMIT)
    config.speculation_type = "dflash"
    assistant = DFlashAssistant(drafter)
    with torch.no_grad(), assistant.register_forward_hook(keep):
        theirs(target.model, config, assistant)([prompt])
    return torch.stack(drafts)


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.slow
def test_transformers_makes_the_drafts_that_ours_makes(target: Target, eager_drafter: DFlash, trained: bool):
    """Rejected drafts as well. Where one token is left to write, transformers does not draft."""
    target, drafter = (target, eager_drafter) if trained else two_layers()
    drafter.d2t = None  # transformers drafts with the full head
    for prompt in PROMPTS:
        drafts = their_drafts(target, drafter, prompt)
        trace = rollout(target, drafter, [prompt], Decoding(LIMIT))[0].trace
        assert 0 <= len(trace.drafts) - len(drafts) <= 1
        assert torch.equal(drafts, trace.drafts[: len(drafts)])


@pytest.mark.slow
def test_a_reduced_vocabulary_changes_drafts_and_no_text():
    target, drafter = two_layers()
    ways = systems(target, drafter, LIMIT)
    passes = {name: way(PROMPTS) for name, way in ways.items()}
    assert all(done.texts == passes["plain"].texts for done in passes.values())
    drafted = {name: torch.cat([trace.drafts for trace in passes[name].traces]) for name in passes if "ours" in name}
    assert set(drafted["ours_batch1"].flatten().tolist()) <= set(range(10, 40))
    assert not set(drafted["ours_batch1_full_head"].flatten().tolist()) <= set(range(10, 40))


def test_a_drafter_that_transformers_does_not_know_is_refused(target: Target):
    with pytest.raises(DraftError, match="no counterpart of Identity"):
        systems(target, torch.nn.Identity(), LIMIT)
