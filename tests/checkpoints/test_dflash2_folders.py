"""DFlash2 in z-lab's layout: what is written is what is read, and one line for every way in which it can be wrong."""

from pathlib import Path

import pytest
import torch

from draftopd.checkpoints.findings import Findings
from draftopd.checkpoints.layouts.zlab import DFLASH2
from draftopd.checkpoints.published import default_layout, drafter_config, published, read, write
from draftopd.checkpoints.spec import DrafterSpec
from draftopd.decoding.rollout import rollout
from draftopd.decoding.settings import Decoding
from draftopd.errors import DraftError
from draftopd.publishing.base import Base
from draftopd.publishing.engines import draft_vocabulary, recipes
from draftopd.target import load
from pair import FAMILIES, PROMPTS
from published_folders import changed, config_of, drop, files, make, not_finite, put, refused, tensor, tensors_of

CONV, CODES = "layers.0.mlp_conv.base_kernel", "candidate_selector.predecessor_codebook"
NESTED = "dflash_config"


@pytest.fixture(scope="module")
def folder(target, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("published") / "dflash2"
    write(make("dflash2", target), path, "zlab", target, "org/target")
    return path


def test_a_round_trip_changes_no_bit_and_no_draft(target, folder, tmp_path):
    drafter, found = make("dflash2", target), read(folder, target)
    assert (found.layout, found.warnings, default_layout(drafter)) == ("zlab", [], "zlab")
    group = drafter_config(folder, target)
    assert group.pop("_partial_")
    assert group == {"_target_": "draftopd.drafters.dflash2.DFlash2", **found.spec.options()}
    assert found.drafter.state_dict().keys() == drafter.state_dict().keys()
    assert all(torch.equal(value, found.drafter.state_dict()[name]) for name, value in drafter.state_dict().items())
    write(found.drafter, tmp_path / "again", "zlab", target, "org/target")
    assert files(tmp_path / "again") == files(folder)
    both = [rollout(target, d, PROMPTS[:2], Decoding(8)) for d in (drafter, published(folder, target))]
    assert all(torch.equal(a.trace.drafts, b.trace.drafts) for a, b in zip(*both, strict=True))


def test_one_layout_becomes_the_other_and_back(target, folder, tmp_path):
    write(read(folder, target).drafter, tmp_path / "there", "speculators", target, "org/target")
    config, found = config_of(tmp_path / "there"), read(tmp_path / "there", target)
    assert (config["speculators_model_type"], config["architectures"]) == ("dflash2", ["DFlash2DraftModel"])
    assert (config["selector_rank"], config["selector_top_k"], config["conv_group_size"]) == (6, 16, 8)
    assert (found.layout, found.warnings) == ("speculators", [])
    write(found.drafter, tmp_path / "back", "zlab", target, "org/target")
    assert files(tmp_path / "back") == files(folder)
    refused(changed(tmp_path / "there", tmp_path, put("conv_group_size")), target, "no conv_group_size")


def test_its_file_has_the_names_that_engines_look_for(target, folder):
    config, tensors = config_of(folder), tensors_of(folder)
    assert config["architectures"] == ["DFlash2DraftModel"]
    assert config["is_causal"] is False
    own = {"selector_rank": 6, "selector_top_k": 16, "conv_kernel_size": 2, "conv_group_size": 8}
    assert config[NESTED] == {
        "block_size": 5,
        "mask_token_id": target.shape.mask_token_id,
        "target_layer_ids": [0, 2],
        **own,
    }
    assert tensors[CODES].shape == (100, 6)
    assert tensors["layers.1.attention_conv.kernel_projection.weight"].shape == (2 * 2 * 4, 32)
    assert not {"embed_tokens.weight", "lm_head.weight"} & tensors.keys()


FAULTS = {
    "no codes": (drop(CODES), f"missing {CODES}"),
    "rank": (put(NESTED, "selector_rank", value=8), "[100, 6] instead of [100, 8]"),
    "groups": (put(NESTED, "conv_group_size", value=16), "write conv_kernel_size and conv_group_size"),
    "taps": (put(NESTED, "conv_kernel_size", value=3), "attention_conv.base_kernel [2, 2, 32] instead of [2, 3, 32]"),
    "nan": (tensor(CONV, not_finite), f"{CONV} not finite"),
    "no taps": (put(NESTED, "conv_kernel_size"), "no conv_kernel_size"),
    "no candidates": (put(NESTED, "selector_top_k"), "no selector_top_k"),
    "groups that do not divide": (
        put(NESTED, "conv_group_size", value=5),
        "a conv_group_size that divides hidden_size",
    ),
    "scaled embedding": (put(NESTED, "input_embedding_scale", value=2.0), "input_embedding_scale is 2.0"),
    "another family": (put(NESTED, "projector_type", value="domino"), "projector_type is set: Domino"),
    "nothing nested": (put(NESTED), "no dflash_config"),
    "plain DFlash": (put("architectures", value=["DFlashDraftModel"]), "selector_rank is set: DFlash2"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_folder_is_refused_by_name(target, folder, tmp_path, fault):
    change, expected = FAULTS[fault]
    refused(changed(folder, tmp_path, change), target, expected)


def test_a_window_comes_back_if_blocks_stay_in_both_directions(target, tmp_path):
    path = tmp_path / "windowed"
    (warning,) = write(make("dflash2", target, None, 8), path, "zlab", target)
    assert "whether SGLang does" in warning.effect
    assert read(path, target).drafter.window == 8
    refused(changed(path, tmp_path, put("is_causal")), target, "is_causal is None beside sliding layers")


def test_a_reduced_vocabulary_has_no_layout(target, tmp_path):
    with pytest.raises(DraftError, match="no layout has a DFlash2 with a reduced draft vocabulary"):
        write(make("dflash2", target, 40), tmp_path / "reduced", "zlab", target)
    assert list(tmp_path.iterdir()) == []


def test_a_targets_factor_of_its_logits_is_written_because_the_selector_adds_to_them(tmp_path):
    target = load.tiny({"model_type": "granite", **FAMILIES["granite"]})
    write(make("dflash2", target), tmp_path / "granite", "zlab", target)
    assert config_of(tmp_path / "granite")[NESTED]["output_multiplier"] == pytest.approx(1 / 3)
    with pytest.raises(DraftError, match="take layout=zlab"):
        write(make("dflash2", target), tmp_path / "other", "speculators", target)


def test_engines_that_serve_it_are_named(target):
    spec = DrafterSpec.of(make("dflash2", target), target, "org/target")
    vllm, sglang, transformers = recipes(spec, "zlab", Base("org/target", "org/target", "", "bfloat16"), "mine")
    assert '"method": "dflash"' in str(vllm.command)
    assert "--speculative-algorithm DFLASH" in str(sglang.command)
    assert transformers.note == "`generate` of transformers has no DFlash2."
    assert list(draft_vocabulary(spec, "zlab")) == ["every engine"]


def test_the_config_of_a_published_drafter_is_read():
    """Keys and sizes of z-lab's Qwen3.8-27B-DFlash2, with full attention."""
    config = {
        "architectures": ["DFlash2DraftModel"],
        "attention_bias": False,
        "block_size": 8,
        "dflash_config": {
            "block_size": 8,
            "conv_group_size": 16,
            "conv_kernel_size": 2,
            "mask_token_id": 248070,
            "selector_rank": 256,
            "selector_top_k": 16,
            "target_layer_ids": [5, 19, 33, 47, 61],
        },
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 5120,
        "intermediate_size": 17408,
        "is_causal": False,
        "model_type": "qwen3",
        "num_attention_heads": 32,
        "num_hidden_layers": 5,
        "num_key_value_heads": 8,
        "num_target_layers": 64,
        "rms_norm_eps": 1e-06,
        "rope_parameters": {"rope_theta": 500000, "rope_type": "default"},
        "vocab_size": 248320,
    }
    findings = Findings()
    spec = DFLASH2.parse(config, findings, None)
    assert not findings.errors
    assert spec is not None
    drafter = spec.build("meta")
    assert drafter.layers[0].attention_conv.kernel_projection.weight.shape == (2 * 2 * 320, 5120)
    assert drafter.candidate_selector.successor_codebook.shape == (248320, 256)
