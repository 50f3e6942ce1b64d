"""How blocks lie in rows changes neither what a drafter computes nor its gradients."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from draftopd.blocks import packed
from draftopd.decoding.redraft import redraft
from draftopd.decoding.rollout import rollout
from draftopd.decoding.settings import Decoding
from draftopd.drafters.base import Drafter
from draftopd.target.model import Target
from draftopd.trace import ReplayBatch, collate_rollouts
from pair import PROMPTS


@pytest.fixture(params=["drafter", "dspark", "dflash2", "eagle"])
def drafter(request) -> Drafter:
    found: Drafter = request.getfixturevalue(f"eager_{request.param}")
    return found


@pytest.fixture
def own(target: Target, drafter: Drafter) -> ReplayBatch:
    """Blocks that it drafted, of texts with unlike numbers of them."""
    decoding = Decoding(max_new_tokens=24)
    texts = rollout(target, None, PROMPTS, decoding, keep_states=True, layer_ids=drafter.layer_ids)
    batch = collate_rollouts(redraft(target, drafter, texts, decoding))
    some = torch.arange(batch.anchors.shape[1]) < torch.tensor([[2], [9], [1], [0], [4]])
    return replace(batch, drafted=batch.drafted * some)


def test_packed_blocks_have_the_same_states_and_gradients(target: Target, drafter: Drafter, own: ReplayBatch):
    folded = packed(own)
    assert folded.rows is not None
    states, gradients = trained(target, drafter, own)
    packed_states, packed_gradients = trained(target, drafter, folded)
    torch.testing.assert_close(packed_states, states, atol=1e-5, rtol=1e-5)
    for one, other in zip(packed_gradients, gradients, strict=True):
        torch.testing.assert_close(one, other, atol=3e-5, rtol=1e-4)


@torch.no_grad()
def test_packed_blocks_have_the_same_states_with_block_masks(
    target: Target, drafter: Drafter, own: ReplayBatch, monkeypatch: pytest.MonkeyPatch
):
    states = drafter(own, target.embed)[own.valid]
    monkeypatch.setattr(drafter, "attention", "flex_attention")
    torch.testing.assert_close(drafter(packed(own), target.embed)[own.valid], states, atol=1e-5, rtol=1e-5)


def trained(target: Target, drafter: Drafter, batch: ReplayBatch) -> tuple[Tensor, list[Tensor]]:
    """States of the supervised slots, and gradients of a sum of them that weighs each otherwise."""
    states = drafter(batch, target.embed)[batch.valid]
    weights = [w for w in drafter.parameters() if w.requires_grad]
    gradients = torch.autograd.grad(
        (states * torch.linspace(-1, 1, states.numel()).view_as(states)).sum(), weights, allow_unused=True
    )
    found = [gradient for gradient in gradients if gradient is not None]
    assert any(gradient.abs().max() > 1e-3 for gradient in found)
    return states.detach(), found
