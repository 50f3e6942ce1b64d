"""The drafter: published names and shapes, what it may see, what a gradient reaches."""

import pytest
import torch

from draftopd.drafters.dflash import DFlash, default_layer_ids
from draftopd.drafters.eagle3 import Eagle3
from draftopd.errors import DraftError
from draftopd.target import load
from draftopd.target.model import Target
from draftopd.trace import Trace, text_blocks
from pair import EAGLE_LAYERS, FAMILIES, PROMPTS, SIZES
from runs import UNTIMED, outputs

LAYER = [
    "input_layernorm",
    "post_attention_layernorm",
    *(f"self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm")),
    *(f"mlp.{name}" for name in ("gate_proj", "up_proj", "down_proj")),
]


@pytest.fixture
def batch(target: Target, drafter: DFlash):
    tokens = torch.tensor([*PROMPTS[2], 20, 30, 40, 50, 60, 70])
    text = Trace(tokens, 5, torch.zeros(0).long(), torch.zeros(0, 0).long(), torch.zeros(0).long())
    features = target.read(tokens[None], drafter.layer_ids)[1]
    return text_blocks([text], [torch.tensor([6, 9])], drafter.num_draft_tokens, [features[0]])


def test_parameter_names_are_those_of_the_published_checkpoints(drafter: DFlash):
    expected = {f"layers.{i}.{name}.weight" for i in range(2) for name in LAYER}
    assert set(drafter.state_dict()) == expected | {"fc.weight", "hidden_norm.weight", "norm.weight"}


@pytest.mark.parametrize(
    ("taps", "layers", "expected"),
    [(5, 36, [1, 9, 17, 25, 33]), (1, 36, [18]), (5, 30, [1, 8, 14, 20, 27]), (2, 30, [1, 27])],
)
def test_default_layers_follow_the_published_rule(taps, layers, expected):
    assert default_layer_ids(taps, layers) == expected


def test_a_block_sees_features_strictly_before_its_anchor_and_no_other_block(target: Target, drafter: DFlash, batch):
    before = drafter(batch, target.embed)
    assert before.shape == (1, 2, 4, 32)
    batch.features[:, 9:] += 1.0  # at and after the second anchor
    torch.testing.assert_close(drafter(batch, target.embed), before)
    batch.features[:, 8] += 1.0  # strictly before the second anchor, after the first
    after = drafter(batch, target.embed)
    torch.testing.assert_close(after[:, 0], before[:, 0])
    assert not torch.allclose(after[:, 1], before[:, 1])


def test_the_anchor_token_matters_and_the_drafted_tokens_do_not(target: Target, drafter: DFlash, batch):
    before = drafter(batch, target.embed)
    batch.drafts[:] = 7
    torch.testing.assert_close(drafter(batch, target.embed), before)
    batch.tokens[0, 6] = 77
    after = drafter(batch, target.embed)
    assert not torch.allclose(after[:, 0], before[:, 0])
    torch.testing.assert_close(after[:, 1], before[:, 1])


def test_every_parameter_of_the_drafter_learns_and_none_of_the_target(target: Target, drafter: DFlash, batch):
    target.head()(drafter(batch, target.embed)).logsumexp(-1).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in drafter.parameters())
    assert all(p.grad is None for p in target.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block_size": 1}, "at least 2"),
        ({"block_size": 4, "layer_ids": [1, 4]}, r"must lie in 0\.\.3"),
        ({"block_size": 4, "draft_vocab_size": 1000}, "draft_vocab_size"),
        ({"block_size": 4, "num_attention_heads": 3}, "3 heads of head_dim 8 and 2 key-value heads"),
    ],
)
def test_impossible_sizes_are_refused(target: Target, options, message):
    with pytest.raises(DraftError, match=message):
        DFlash(target.shape, num_layers=1, **options)


@pytest.mark.parametrize("kind", ["sft", "eagle3_sft"])
def test_sizes_of_layers_are_keys_of_the_config(command, capsys, kind: str):
    assert command(f"experiment=smoke/{kind}", "drafter.head_dim=15", "logger=none") == 2
    assert "a drafter cannot have 4 heads of head_dim 15" in capsys.readouterr().err


def test_a_vocabulary_survives_its_offsets(target: Target):
    drafter = DFlash(target.shape, 1, 4, draft_vocab_size=3)
    drafter.set_vocabulary(torch.tensor([4, 9, 50]))
    assert drafter.d2t.tolist() == [4, 8, 48]
    assert drafter.vocabulary.tolist() == [4, 9, 50]


def test_a_drafter_can_start_from_the_targets_final_norm_and_last_layers():
    """What the target lacks, norms of heads, stays; so does everything whose shape differs."""
    target = load.tiny({"model_type": "llama", **SIZES}, cpu_layers=False)
    with torch.no_grad():
        target.body.norm.weight.copy_(torch.linspace(0.5, 2, 32))
    drafter = DFlash(target.shape, num_layers=2, block_size=4, intermediate_size=48, init="target")
    fc, gate = drafter.fc.weight.clone(), drafter.stack[0].mlp.gate_proj.weight.clone()
    drafter.copy_target(target.body)
    assert torch.equal(drafter.norm.weight, target.body.norm.weight)
    for own, theirs in zip(drafter.stack, target.body.layers[-2:], strict=True):
        assert torch.equal(own.self_attn.q_proj.weight, theirs.self_attn.q_proj.weight)
        assert torch.equal(own.input_layernorm.weight, theirs.input_layernorm.weight)
        assert (own.self_attn.q_norm.weight == 1).all()
    assert torch.equal(drafter.fc.weight, fc)
    assert torch.equal(drafter.stack[0].mlp.gate_proj.weight, gate)
    eagle = Eagle3(target.shape, 4, EAGLE_LAYERS, init="target")
    query = eagle.midlayer.self_attn.q_proj.weight.clone()
    eagle.copy_target(target.body)
    assert torch.equal(eagle.midlayer.mlp.up_proj.weight, target.body.layers[-1].mlp.up_proj.weight)
    assert torch.equal(eagle.midlayer.self_attn.q_proj.weight, query)  # it reads pairs


def test_norms_of_another_kind_are_not_copied():
    target = load.tiny({"model_type": "gemma3_text", **FAMILIES["gemma3_text"]})
    with pytest.raises(DraftError, match=r"drafter\.init=random"):
        DFlash(target.shape, num_layers=1, block_size=4).copy_target(target.body)
    with pytest.raises(DraftError, match="must be random or target"):
        DFlash(target.shape, num_layers=1, block_size=4, init="other")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sft", "eagle3_sft"])
def test_a_drafter_that_starts_from_the_target_trains(command, tmp_path, kind: str):
    assert command(f"experiment=smoke/{kind}", "drafter.init=target", "budget.epochs=1", *UNTIMED) == 0
    state = torch.load(outputs(tmp_path) / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert all(value.isfinite().all() for value in state.values())
