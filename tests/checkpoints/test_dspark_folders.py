"""One line for every way in which a folder of DSpark can be wrong, in DeepSpec's layout and in speculators'."""

import pytest
import torch

from draftopd.checkpoints.findings import Findings
from draftopd.checkpoints.layouts.deepspec import DEEPSPEC
from draftopd.checkpoints.published import default_layout
from published_folders import changed, drop, make, not_finite, put, refused, tensor, together, warned

D, R, S = "dspark-deepspec-None", "dspark-deepspec-40", "dspark-speculators-40"
W1, W2, PROJ = "markov_head.markov_w1.weight", "markov_head.markov_w2.weight", "confidence_head.proj.weight"
FAULTS = {
    "no table": (D, drop(W1), f"missing {W1}"),
    "rank": (D, put("markov_rank", value=8), f"{W1} [100, 6] instead of [100, 8]"),
    "table of the draft vocabulary": (R, tensor(W1, lambda v: v[:40].contiguous()), "write markov_rank, vocab_size"),
    "rows of the target": (S, tensor(W2, lambda _: torch.ones(100, 6)), f"{W2} [100, 6] instead of [40, 6]"),
    "confidence without markov": (D, tensor(PROJ, lambda v: v[:, :32].contiguous()), f"{PROJ} [1, 32] instead of"),
    "nan": (S, tensor(W2, not_finite), f"{W2} not finite"),
    "own head": (D, tensor("lm_head.weight", lambda _: torch.ones(100, 32)), "lm_head.weight is not the target's"),
    "no rank": (D, put("markov_rank"), "no markov_rank"),
    "DFlash of DeepSpec": (D, put("markov_rank", value=0), "markov_rank is 0"),
    "recurrent": (S, put("markov_head_type", value="rnn"), "markov_head_type is 'rnn'"),
    "confidence of the row alone": (S, put("confidence_head_with_markov", value=False), "confidence_head_with_markov"),
    "confidence head left out": (D, put("enable_confidence_head", value=False), "unknown confidence_head.proj"),
    "no block size": (D, put("block_size"), "no block_size"),
    "anchor counted": (S, put("block_size", value=5), "speculative_tokens is 4 beside block_size 5"),
    "nothing drafted": (D, put("block_size", value=0), "block_size is 1"),
    "not from the anchor": (S, put("sample_from_anchor", value=False), "sample_from_anchor is false"),
    "from the anchor or not": (S, put("sample_from_anchor"), "no sample_from_anchor"),
    "no ids": (D, put("target_layer_ids"), "target_layer_ids is None"),
    "one too high": (D, put("target_layer_ids", value=[1, 3]), "trained to read"),
    "no mask": (D, put("mask_token_id"), "no mask_token_id"),
    "in z-lab's layout": (
        D,
        together(put("architectures", value=["DSparkDraftModel"]), put("dflash_config", value={"markov_rank": 6})),
        "DSpark in other layouts",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_folder_is_refused_by_name(target, folders, tmp_path, fault):
    name, change, expected = FAULTS[fault]
    refused(changed(folders[name], tmp_path, change), target, expected)


WARNINGS = {
    "no copies": (D, drop("embed_tokens.weight", "lm_head.weight"), "no embed_tokens.weight and no lm_head.weight"),
    "no head rows": (R, drop("lm_head.weight"), "draft_vocab_size 40 without lm_head.weight"),
}


@pytest.mark.parametrize("case", WARNINGS)
def test_what_only_some_engines_mind_is_a_warning(target, folders, tmp_path, case):
    name, change, expected = WARNINGS[case]
    warned(folders[name], changed(folders[name], tmp_path, change), target, expected)


def test_the_default_layout_is_deepspecs(target):
    assert default_layout(make("dspark", target)) == "deepspec"


def test_the_config_of_a_drafter_of_deepspecs_is_read():
    """The keys and values that DeepSpec writes for Qwen3-4B: its config's, and the target's."""
    config = {
        "architectures": ["Qwen3DSparkModel"],
        "attention_bias": False,
        "block_size": 7,
        "confidence_head_with_markov": True,
        "enable_confidence_head": True,
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "layer_types": ["full_attention"] * 5,
        "markov_head_type": "vanilla",
        "markov_rank": 256,
        "mask_token_id": 151669,
        "max_position_embeddings": 40960,
        "model_type": "qwen3",
        "num_anchors": 512,
        "num_attention_heads": 32,
        "num_hidden_layers": 5,
        "num_key_value_heads": 8,
        "num_target_layers": 36,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "target_layer_ids": [1, 9, 17, 25, 33],
        "tie_word_embeddings": False,
        "vocab_size": 151936,
    }
    findings = Findings()
    spec = DEEPSPEC.parse(config, findings, None)
    assert not findings.errors
    assert spec is not None
    drafter = spec.build("meta")
    assert (drafter.block_size, drafter.layer_ids, drafter.markov_rank) == (8, (1, 9, 17, 25, 33), 256)
    assert drafter.confidence_head.proj.weight.shape == (1, 2560 + 256)
