"""EAGLE-3 as a module: published names and sizes, pairs and positions, its own head, gradients."""

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from torch import Tensor

from draftopd.command import CONFIG_DIR
from draftopd.drafters.eagle3 import Eagle3, default_layer_ids
from draftopd.errors import DraftError
from draftopd.target.head import TargetShape
from draftopd.target.model import Target
from draftopd.trace import ReplayBatch
from pair import EAGLE_LAYERS

LAYER = [
    *("input_layernorm", "hidden_norm", "post_attention_layernorm"),
    *(f"self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "o_proj")),
    *(f"mlp.{name}" for name in ("gate_proj", "up_proj", "down_proj")),
]


@pytest.fixture
def eagle(target: Target) -> Eagle3:
    torch.manual_seed(1)
    drafter = Eagle3(target.shape, block_size=5, layer_ids=EAGLE_LAYERS)
    drafter.initialise(target.head)
    return drafter


@pytest.fixture
def batch(target: Target, eagle: Eagle3) -> ReplayBatch:
    """Two texts of unlike lengths, two blocks and one, with drafts that are not the text."""
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randint(4, 90, (2, 16), generator=draw)
    return ReplayBatch(
        tokens=tokens,
        anchors=torch.tensor([[6, 9], [4, 0]]),
        drafts=torch.randint(4, 90, (2, 2, 4), generator=draw),
        accepted=torch.zeros(2, 2).long(),
        drafted=torch.tensor([[4, 4], [4, 0]]),
        lengths=torch.tensor([16, 10]),
        drafter_step=torch.zeros(2).long(),
        features=target.read(tokens, eagle.layer_ids)[1],
    )


def test_parameter_names_and_shapes_are_those_of_the_published_checkpoints(target: Target):
    drafter = Eagle3(target.shape, block_size=5, layer_ids=EAGLE_LAYERS, draft_vocab_size=10)
    state = drafter.state_dict()
    names = {f"midlayer.{name}.weight" for name in LAYER} | {"fc.weight", "norm.weight", "lm_head.weight", "d2t"}
    assert set(state) == names
    assert state["fc.weight"].shape == (32, 3 * 32)
    assert state["midlayer.self_attn.q_proj.weight"].shape == (32, 2 * 32)
    assert state["lm_head.weight"].shape == (10, 32)


@pytest.mark.parametrize(("layers", "expected"), [(36, [1, 17, 32]), (32, [1, 15, 28]), (30, [1, 14, 26])])
def test_default_layers_are_low_middle_and_high(layers, expected):
    assert default_layer_ids(layers) == expected


def test_the_shipped_drafter_has_the_default_targets_sizes():
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        config = compose("fit", overrides=["experiment=eagle3_sft"])
    smollm2 = TargetShape(576, 1536, 9, 3, 64, 1e-5, 1e5, 30, 49_152, 0)
    sizes = {name: value for name, value in config.drafter.items() if name != "path"}
    drafter = instantiate(sizes)(target=smollm2)
    assert drafter.layer_ids == (1, 14, 26)
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in drafter.named_children()}
    assert sizes == {"fc": 995_328, "midlayer": 4_093_632, "norm": 576, "lm_head": 4096 * 576}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block_size": 1, "layer_ids": [1]}, "at least 2"),
        ({"block_size": 4}, "set drafter.layer_ids"),
        ({"block_size": 4, "layer_ids": [1, 4]}, r"must lie in 0\.\.3"),
        ({"block_size": 4, "layer_ids": [1], "draft_vocab_size": 1000}, "draft_vocab_size"),
    ],
)
def test_impossible_sizes_are_refused(target: Target, options, message):
    with pytest.raises(DraftError, match=message):
        Eagle3(target.shape, **options)


def plain_pass(drafter: Eagle3, target: Target, batch: ReplayBatch, text: int, block: int) -> Tensor:
    """Hidden states [K, D] of one block as in the papers: rows one after the other, ordinary causal attention.

    Row p is (feature p, token p + 1) at position p; after the last known feature the outputs are fed back.
    """
    anchor, layer = int(batch.anchors[text, block]), drafter.midlayer
    tokens = [*batch.tokens[text, : anchor + 1].tolist(), *batch.drafts[text, block].tolist()]
    hidden = [*drafter.fc(batch.features[text, :anchor])]
    outputs = []
    for _ in range(drafter.num_draft_tokens):
        rows, count = torch.stack(hidden), len(hidden)
        embedded = target.embed(torch.tensor(tokens[1 : count + 1]))
        x = torch.cat([layer.input_layernorm(embedded), layer.hidden_norm(rows)], -1)
        query, key, value = (
            project(x).unflatten(-1, (-1, 8))
            for project in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj)
        )
        angle = torch.arange(count)[:, None] * target.shape.rope_theta ** -(torch.arange(4) / 4)
        turn = torch.polar(torch.ones_like(angle), angle)[:, None]
        query, key = (torch.view_as_complex(torch.stack(h.split(4, -1), -1)) * turn for h in (query, key))
        query, key = (torch.cat([h.real, h.imag], -1) for h in (query, key))
        key, value = (h.repeat_interleave(2, 1) for h in (key, value))
        scores = torch.einsum("qhd,khd->hqk", query, key) / 8**0.5
        scores = scores.masked_fill(torch.ones(count, count).triu(1).bool(), -torch.inf)
        mixed = torch.einsum("hqk,khd->qhd", scores.softmax(-1), value).flatten(1)
        rows = rows + layer.self_attn.o_proj(mixed)
        last = (rows + layer.mlp(layer.post_attention_layernorm(rows)))[-1]
        hidden.append(last)
        outputs.append(drafter.norm(last))
    return torch.stack(outputs)


def test_slots_are_those_of_a_plain_causal_pass_over_pairs(target: Target, eagle: Eagle3, batch: ReplayBatch):
    with torch.no_grad():
        for parameter in eagle.midlayer.parameters():
            parameter.mul_(4)
        hidden = eagle(batch, target.embed)
        assert hidden.shape == (2, 2, 4, 32)
        for text, block in [(0, 0), (0, 1), (1, 0)]:
            expected = plain_pass(eagle, target, batch, text, block)
            torch.testing.assert_close(hidden[text, block], expected, atol=1e-4, rtol=1e-4)


def test_a_slot_reads_the_drafts_before_it_and_no_other_block(target: Target, eagle: Eagle3, batch: ReplayBatch):
    before = eagle(batch, target.embed)
    batch.drafts[0, 1, 1] += 1
    after = eagle(batch, target.embed)
    torch.testing.assert_close(after[0, 0], before[0, 0])
    torch.testing.assert_close(after[0, 1, :2], before[0, 1, :2])
    assert not torch.allclose(after[0, 1, 2:], before[0, 1, 2:])


def test_the_anchors_own_feature_is_not_seen(target: Target, eagle: Eagle3, batch: ReplayBatch):
    before = eagle(batch, target.embed)
    batch.features[0, 9:] += 1.0  # at and after the second anchor
    torch.testing.assert_close(eagle(batch, target.embed), before)
    batch.features[0, 8] += 1.0
    after = eagle(batch, target.embed)
    torch.testing.assert_close(after[0, 0], before[0, 0])
    assert not torch.allclose(after[0, 1], before[0, 1])


def test_a_new_head_is_the_targets_and_a_trained_one_stays(target: Target):
    drafter = Eagle3(target.shape, block_size=4, layer_ids=EAGLE_LAYERS, draft_vocab_size=10)
    drafter.set_vocabulary(torch.arange(20, 40, 2))
    drafter.initialise(target.head)
    hidden, ids = torch.randn(3, 32), torch.arange(20, 40, 2)
    head = drafter.head(target.head)
    torch.testing.assert_close(head(hidden), target.head()(hidden)[:, ids])
    assert head.tokens(torch.tensor([3])).tolist() == [26]
    with torch.no_grad():
        drafter.lm_head.weight.add_(1.0)
    before = drafter.lm_head.weight.clone()
    drafter.initialise(target.head)
    assert torch.equal(drafter.lm_head.weight, before)


def test_every_parameter_learns_and_none_of_the_target(target: Target, eagle: Eagle3, batch: ReplayBatch):
    hidden = eagle(batch, target.embed)[batch.valid]
    eagle.head(target.head)(hidden).logsumexp(-1).sum().backward()
    for name, parameter in eagle.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    assert all(p.grad is None for p in target.parameters())


def test_gradients_of_a_late_slot_reach_back_through_the_unroll(target: Target, eagle: Eagle3, batch: ReplayBatch):
    """Through the hidden states that are fed back, and through the pairs of the text."""
    batch.features.requires_grad_(True)
    hidden = eagle(batch, target.embed)
    (gradient,) = torch.autograd.grad(hidden[0, 0, 3].sum(), batch.features)
    reached = gradient[0].abs().sum(-1) > 0
    assert reached.tolist() == [True] * 6 + [False] * 10
