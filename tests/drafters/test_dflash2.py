"""DFlash2: published names, the convolutions and the selector by hand, decoding as for DSpark."""

import pytest
import torch
from torch import Tensor

from draftopd.decoding.redraft import redraft
from draftopd.decoding.rollout import rollout
from draftopd.decoding.settings import Decoding
from draftopd.drafters.dflash import DFlash
from draftopd.drafters.dflash2 import BlockConv, DFlash2
from draftopd.errors import DraftError
from draftopd.target.model import Target
from draftopd.trace import collate
from pair import PROMPTS


def test_parameter_names_and_shapes_are_those_of_the_published_checkpoints(target: Target):
    sizes = {"num_layers": 1, "block_size": 5, "draft_vocab_size": 10}
    state, backbone = (
        drafter.state_dict()
        for drafter in (
            DFlash2(target.shape, **sizes, selector_rank=6, conv_kernel_size=3, conv_group_size=8),
            DFlash(target.shape, **sizes),
        )
    )
    assert state.keys() >= backbone.keys()
    assert {name: tuple(state[name].shape) for name in state.keys() - backbone.keys()} == {
        "layers.0.attention_conv.base_kernel": (2, 3, 32),
        "layers.0.attention_conv.kernel_projection.weight": (2 * 3 * 4, 32),
        "layers.0.mlp_conv.base_kernel": (2, 3, 32),
        "layers.0.mlp_conv.kernel_projection.weight": (2 * 3 * 4, 32),
        "candidate_selector.hidden_projection.weight": (6, 32),
        "candidate_selector.predecessor_codebook": (target.vocab_size, 6),
        "candidate_selector.successor_codebook": (10, 6),
    }


def test_groups_must_divide_the_channels(target: Target):
    with pytest.raises(DraftError, match="conv_group_size 5 must divide the target's hidden size 32"):
        DFlash2(target.shape, 1, 5, selector_rank=6, conv_group_size=5)


def test_a_convolution_by_hand():
    """Row w, channel c: the sum over taps t of (base + what row w makes for c's group) times row w - t of its block."""
    torch.manual_seed(0)
    conv = BlockConv(size=6, taps=2, group_size=3)
    conv.base_kernel.data.normal_()
    conv.kernel_projection.weight.data.normal_()
    x, later = torch.randn(2, 1, 2, 3, 4, 6)[:, 0]  # two texts, three blocks of four rows
    first, after = conv(x)
    made = (x @ conv.kernel_projection.weight.T).reshape(2, 3, 4, 2, 2, 2)  # side, tap, group

    def by_hand(rows: Tensor, side: int) -> Tensor:
        out = torch.zeros_like(rows)
        for text, block, row, channel in torch.cartesian_prod(*map(torch.arange, rows.shape)).tolist():
            for tap in range(min(2, row + 1)):
                kernel = conv.base_kernel[side, tap, channel] + made[text, block, row, side, tap, channel // 3]
                out[text, block, row, channel] += kernel * rows[text, block, row - tap, channel]
        return out

    with torch.no_grad():
        torch.testing.assert_close(first, by_hand(x, 0))
        torch.testing.assert_close(after(later), by_hand(later, 1))


def test_without_what_it_learns_it_is_dflash(target: Target):
    """New convolutions are the identity, and a selector of zeros is none."""
    torch.manual_seed(1)
    drafter = DFlash2(target.shape, 2, 5, selector_rank=6)
    drafter.markov.data.zero_()
    backbone = DFlash(target.shape, 2, 5)
    backbone.load_state_dict({n: w for n, w in drafter.state_dict().items() if n in backbone.state_dict()})
    ours, theirs = (rollout(target, d, PROMPTS, Decoding(16)) for d in (drafter, backbone))
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one.trace.drafts, other.trace.drafts)


def test_the_selector_by_hand(target: Target, eager_dflash2: DFlash2):
    results = rollout(target, eager_dflash2, PROMPTS, Decoding(24), keep_states=True)
    batch = collate([r.trace for r in results], [r.features for r in results], [r.target_hidden for r in results])
    with torch.no_grad():
        rows = eager_dflash2(batch, target.embed)[batch.valid]
        logits = eager_dflash2.head(target.head)(rows)
    before = torch.cat([batch.tokens.gather(1, batch.anchors)[..., None], batch.drafts[..., :-1]], -1)[batch.valid]
    hidden, selector = rows[:, :32], eager_dflash2.candidate_selector
    codes = selector.predecessor_codebook[before] * (hidden @ selector.hidden_projection.weight.T)
    expected = target.head()(hidden) + codes @ selector.successor_codebook.T
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


def test_half_of_the_training_blocks_are_without_the_selector(target: Target, eager_dflash2: DFlash2):
    torch.manual_seed(1)
    drafter = DFlash2(target.shape, 1, 5, selector_rank=8)
    results = rollout(target, eager_dflash2, PROMPTS, Decoding(24), keep_states=True)
    batch = collate([r.trace for r in results], [r.features for r in results])
    training = drafter.train()(batch, target.embed)[..., 32:]
    decoding = drafter.eval()(batch, target.embed)[..., 32:]
    odd = batch.anchors % 2 == 1
    assert 0 < odd.sum() < odd.numel()
    assert not training[odd].any()
    assert torch.equal(training[~odd], decoding[~odd])
    assert decoding[odd].any()


def test_every_parameter_learns(target: Target, eager_dflash2: DFlash2):
    texts = rollout(target, None, PROMPTS, Decoding(16), keep_states=True, layer_ids=eager_dflash2.layer_ids)
    own = redraft(target, eager_dflash2, texts, Decoding(16))
    batch = collate([r.trace for r in own], [r.features for r in own])
    eager_dflash2.zero_grad()
    eager_dflash2.head(target.head)(eager_dflash2(batch, target.embed)[batch.valid]).logsumexp(-1).sum().backward()
    grads = {name: p.grad for name, p in eager_dflash2.named_parameters()}
    eager_dflash2.zero_grad()
    assert [name for name, grad in grads.items() if grad is None or not grad.abs().sum()] == []
