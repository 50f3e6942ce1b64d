"""transformers' own DFlash model, filled with our weights, drafts what ours drafts."""

import pytest
import torch
from benchmarks.serve_engines import by_transformers, full_head, ours
from torch import nn

from draftopd.checkpoints.to_transformers import to_transformers
from draftopd.drafters.base import Propose
from draftopd.drafters.dflash import DFlash
from draftopd.errors import DraftError
from draftopd.target import load
from draftopd.target.model import Target
from pair import FAMILIES, PROMPTS

LIMIT = 24


@pytest.mark.parametrize("tokens", [2, 7, LIMIT])
def test_transformers_own_model_drafts_what_ours_drafts(target: Target, eager_drafter: DFlash, tokens: int):
    plain = ours(target, None, PROMPTS, tokens)
    mine = ours(target, eager_drafter, PROMPTS, tokens)
    theirs = by_transformers(target, eager_drafter, PROMPTS, tokens)
    assert theirs.texts == mine.texts == plain.texts
    assert theirs.committed == mine.committed
    if tokens == LIMIT:
        assert {1, 2, 3, 4, 5} == {count for counts in mine.committed for count in counts}


def test_another_family_with_a_reduced_vocabulary_drafts_as_ours_with_the_full_head():
    target = load.tiny({"model_type": "qwen3", **FAMILIES["qwen3"]})
    torch.manual_seed(4)
    drafter = DFlash(target.shape, num_layers=2, block_size=4, layer_ids=[0, 2], draft_vocab_size=30, rope_theta=500.0)
    drafter.set_vocabulary(torch.arange(10, 40))
    with torch.no_grad():
        for parameter in drafter.parameters():  # norms of one would hide a swap of layers
            parameter.mul_(1 + 0.3 * torch.randn_like(parameter))
    theirs = by_transformers(target, drafter, PROMPTS, LIMIT)
    assert theirs == ours(target, full_head(drafter), PROMPTS, LIMIT)
    assert torch.allclose(*hidden_states(target, drafter), atol=1e-5)


def hidden_states(target: Target, drafter: DFlash) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the drafts of one block after a prompt [1, K, D]: transformers' model, and ours."""
    ids = torch.tensor([PROMPTS[0]])
    _, features = target.read(ids[:, :-1], drafter.layer_ids)
    block = torch.full((1, drafter.block_size), drafter.mask_token_id)
    block[:, 0] = ids[:, -1]
    state = drafter.start(1, 32, torch.device("cpu"))
    drafter.extend(state, features, ids[:, 1:], target.embed)
    state.lengths += ids.shape[1] - 1
    seen: list[torch.Tensor] = []
    handle = drafter.norm.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    with torch.no_grad():
        drafter.draft(state, ids[:, -1], target.embed, target.head(), Propose())
        theirs = to_transformers(drafter, target)(
            noise_embeds=target.embed(block),
            context_hidden_states=features,
            position_ids=torch.arange(features.shape[1] + drafter.block_size)[None],
        )
    handle.remove()
    return theirs.last_hidden_state[:, 1:], seen[0]


def test_a_drafter_that_transformers_would_feed_otherwise_is_refused(target: Target):
    last = target.shape.num_layers - 1
    with pytest.raises(DraftError, match=f"reads the output of the target's last layer \\({last}\\)"):
        to_transformers(DFlash(target.shape, num_layers=1, block_size=4, layer_ids=[1, last]), target)
    with pytest.raises(DraftError, match="no published layout for Identity"):
        to_transformers(nn.Identity(), target)  # type: ignore[arg-type]
