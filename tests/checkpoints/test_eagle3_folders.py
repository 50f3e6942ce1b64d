"""One line for every way in which a folder of EAGLE-3 can be wrong, in SafeAI's layout and in speculators'."""

import pytest
import torch

from draftopd.checkpoints.findings import Findings
from draftopd.checkpoints.layouts.safeai import SAFEAI
from draftopd.checkpoints.published import read
from published_folders import changed, drop, not_finite, put, refused, rename, tensor, together, warned

AUX = "eagle_aux_hidden_state_layer_ids"
A, B, P = "eagle3-safeai-None", "eagle3-safeai-40", "eagle3-speculators-40"
FAULTS = {
    # tensors
    "no norm": (A, drop("midlayer.hidden_norm.weight"), "missing midlayer.hidden_norm.weight"),
    "vLLM's names": (B, rename("midlayer.", "layers.0."), "call the layer midlayer.*"),
    "SGLang's names": (P, rename("layers.0.", "midlayer."), "call the layer layers.0.*"),
    "prefix on eagle": (B, rename("", "model."), "strip the prefix model."),
    "no head": (B, drop("lm_head.weight"), "an EAGLE-3 drafter has a head of its own"),
    "new head": (B, tensor("lm_head.weight", torch.zeros_like), "lm_head.weight is all zero"),
    "norms of Qwen3": (
        A,
        tensor("midlayer.self_attn.q_norm.weight", lambda _: torch.ones(4)),
        "unknown midlayer",
    ),
    "P-EAGLE": (P, tensor("mask_hidden", lambda _: torch.ones(96)), "unknown mask_hidden"),
    "transposed eagle fc": (B, tensor("fc.weight", lambda v: v.T.contiguous()), "fc.weight is transposed"),
    "fc of two": (P, tensor("fc.weight", lambda v: v[:, :64].contiguous()), "reads 2 layers, config.json names 3"),
    "only features": (
        B,
        tensor("midlayer.self_attn.k_proj.weight", lambda v: v[:, :32].contiguous()),
        "k_proj.weight [8, 32] instead of [8, 64]",
    ),
    "other embedding": (P, tensor("embed_tokens.weight", lambda _: torch.ones(100, 32)), "embed_tokens.weight is not"),
    "nan": (P, tensor("layers.0.mlp.up_proj.weight", not_finite), "layers.0.mlp.up_proj.weight not finite"),
    # layers
    "ids alike": (A, put(AUX, value=[0, 1, 2]), "which is not [0, 1, 2] in eagle_config plus one"),
    "ids shifted twice": (A, put("eagle_config", AUX, value=[1, 2, 3]), "which is not [1, 2, 3] in eagle_config plus"),
    "ids of vLLM": (
        A,
        together(put(AUX), put("num_target_layers", value=12), put("eagle_config", AUX, value=[2, 6, 9])),
        "write [1, 5, 8] there and [2, 6, 9] at the top level",
    ),
    "ids of SGLang": (P, put(AUX, value=[0, 1, 2]), "one too low"),
    "no ids, no depth": (A, together(put(AUX), put("eagle_config"), put("num_target_layers")), f"no {AUX}"),
    "id of the depth": (
        A,
        together(put(AUX, value=[1, 2, 5]), put("eagle_config", AUX, value=[0, 1, 4])),
        "layer id 4 of a target of 4 layers",
    ),
    "falling": (P, put(AUX, value=[3, 2, 1]), "layer ids [2, 1, 0] do not rise"),
    "ids are text": (A, put("eagle_config", AUX, value="1,15,28"), f"eagle_config.{AUX} is '1,15,28'"),
    "ids are a number": (A, put("eagle_config", AUX, value=3), f"eagle_config.{AUX} is 3"),
    "block is text": (A, put("block_size", value="5"), "block_size is '5'"),
    "no eagle_config": (A, put("eagle_config", value=[1]), "eagle_config is [1]"),
    "features unused": (A, put("eagle_config", "use_aux_hidden_state", value=False), "use_aux_hidden_state is false"),
    "depth is text": (P, put("num_target_layers", value="4"), "num_target_layers is '4'"),
    "negative id": (A, together(put("eagle_config"), put(AUX, value=[-1, 2, 3])), "layer ids [-2, 1, 2] hold -2"),
    # config.json that nobody meant
    "no heads": (A, put("num_attention_heads", value=0), "integer modulo by zero"),
    "rope is a list": (A, put("rope_parameters", value=[1]), "rope_parameters is [1]"),
    "architecture is a number": (A, put("architectures", value=5), "architectures is 5"),
    "architecture is text": (A, put("architectures", value="LlamaForCausalLMEagle3"), "architectures is LlamaFor"),
    "list of lists": (A, put("architectures", value=[["a"]]), "architectures is [['a']]"),
    "target is a number": (A, put("target_architectures", value=5), "target_architectures is 5"),
    # the draft vocabulary
    "map of ids": (B, tensor("d2t", lambda v: v + torch.arange(40)), "it seems to hold ids instead of offsets"),
    "outside the table": (P, tensor("d2t", lambda v: v.index_fill(0, torch.tensor([39]), 61)), "token ids below 100"),
    "no offsets": (B, drop("d2t"), "draft_vocab_size 40 without d2t"),
    "neither map": (P, drop("d2t", "t2d"), "without d2t, t2d"),
    "no marks": (P, drop("t2d"), "draft_vocab_size 40 without t2d"),
    "stale marks": (B, tensor("t2d", lambda v: v.roll(1)), "one of them is stale"),
    "too many marks": (P, tensor("t2d", torch.ones_like), "t2d marks 100 tokens, d2t holds 40"),
    "another size": (B, put("draft_vocab_size", value=41), "lm_head.weight [40, 32] instead of [41, 32]"),
    "more than all": (B, put("draft_vocab_size", value=101), "draft_vocab_size 101 beside vocab_size 100"),
    "no size": (A, put("draft_vocab_size"), "SGLang silently replaces lm_head.weight by the target's head"),
    "size left out": (A, put("draft_vocab_size", value=40), "lm_head.weight [100, 32] instead of [40, 32]"),
    # other drafters of the family
    "tied head": (A, put("tie_word_embeddings", value=True), "SGLang drafts from the embedding"),
    "tied layer": (
        P,
        put("transformer_layer_config", "tie_word_embeddings", value=True),
        "tie_word_embeddings",
    ),
    "normed residual": (P, put("norm_before_residual", value=True), "norm_before_residual is set"),
    "residual not told": (P, put("norm_before_residual"), "speculators takes false, vLLM true"),
    "EAGLE-3.1": (A, put("eagle_config", "norm_output", value=True), "norm_output is set: EAGLE-3.1"),
    "two layers": (A, put("num_hidden_layers", value=2), "num_hidden_layers is 2"),
    "narrower": (P, put("target_hidden_size", value=64), "target_hidden_size 64 beside hidden_size 32"),
    "another layer": (A, put("architectures", value=["Eagle3DeepseekV2ForCausalLM"]), "Eagle3DeepseekV2ForCausalLM"),
    "Qwen3's layer": (P, put("transformer_layer_config", "model_type", value="qwen3"), "model_type of the layer is"),
    "biased": (A, put("attention_bias", value=True), "attention_bias is true"),
    # rope, verifier, target
    "two ropes": (A, put("rope_theta", value=1e4), "rope_theta is 10000.0 at the top level and 500000.0"),
    "llama3 rope": (A, put("rope_scaling", value={"rope_type": "llama3", "factor": 8.0}), "rope type llama3"),
    "no speculative tokens": (P, put("speculators_config", "proposal_methods", value=[{}]), "speculators_config lacks"),
    "tokens are text": (
        P,
        put("speculators_config", "proposal_methods", value=[{"speculative_tokens": "4"}]),
        "speculative_tokens is '4'",
    ),
    "no tokens": (
        P,
        put("speculators_config", "proposal_methods", value=[{"speculative_tokens": 0}]),
        "block_size is 1",
    ),
    "another target": (A, put("target_fingerprint", value="0" * 16), "target fingerprint 0000000000000000"),
    "another depth": (P, put("num_target_layers", value=8), "num_target_layers 8, the target's is 4"),
    "another table": (A, put("vocab_size", value=101), "draft_vocab_size 100"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_folder_is_refused_by_name(target, folders, tmp_path, fault):
    name, change, expected = FAULTS[fault]
    refused(changed(folders[name], tmp_path, change), target, expected)


WARNINGS = {
    "eagle's ids for SGLang": (A, put(AUX), f"{AUX} only in eagle_config"),
    "eagle's ids for vLLM": (A, put("eagle_config"), f"{AUX} only at the top level"),
    "vLLM's architecture": (
        A,
        put("architectures", value=["Eagle3LlamaForCausalLM"]),
        "architectures is ['Eagle3",
    ),
    "no marks for SafeAI": (B, drop("t2d"), "draft_vocab_size 40 without t2d"),
    "another count": (A, put("num_aux_hidden_states", value=5), "3 layers, where vLLM finds 5"),
    "eagle's dtype": (P, put("dtype", value="float16"), "dtype is float16"),
}


@pytest.mark.parametrize("case", WARNINGS)
def test_what_only_some_engines_mind_is_a_warning(target, folders, tmp_path, case):
    name, change, expected = WARNINGS[case]
    warned(folders[name], changed(folders[name], tmp_path, change), target, expected)


def test_the_config_of_a_drafter_of_safeais_is_read():
    """The keys and values of EAGLE3-LLaMA3.1-Instruct-8B: no layers, no rope base, vLLM's name of the architecture."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "bos_token_id": 128000,
        "eos_token_id": 128001,
        "hidden_act": "silu",
        "hidden_size": 4096,
        "initializer_range": 0.02,
        "intermediate_size": 14336,
        "max_position_embeddings": 2048,
        "model_type": "llama",
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "num_hidden_layers": 1,
        "pad_token_id": 0,
        "rms_norm_eps": 1e-05,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "use_cache": True,
        "vocab_size": 128256,
        "draft_vocab_size": 32000,
    }
    assert SAFEAI.recognises(config)
    findings = Findings()
    sheet = SAFEAI.parse(config, findings, 32)
    assert [finding.what.split(",")[0] for finding in findings.warnings] == [
        "architectures is ['LlamaForCausalLM']",
        "no rope_theta",
    ]
    assert not findings.errors
    assert sheet is not None
    assert (sheet.layer_ids, sheet.block_size, sheet.shape.rope_theta) == ((1, 15, 28), 8, 1e4)
    assert sheet.build("meta").midlayer.self_attn.q_proj.weight.shape == (4096, 8192)
    assert SAFEAI.parse(config, findings) is None  # the target's depth is not known
    assert "no eagle_aux_hidden_state_layer_ids" in findings.errors[0].what


def test_ids_where_one_engine_looks_are_read_as_that_engine_reads_them(target, folders, tmp_path):
    folder = folders["eagle3-safeai-None"]
    for name, change in {"sglang": put(AUX), "vllm": put("eagle_config")}.items():
        found = read(changed(folder, tmp_path / name, change), target)
        assert found.drafter.layer_ids == (0, 1, 2)
        assert [w.what for w in found.warnings if AUX in w.what]


def test_the_targets_embedding_in_the_file_is_no_fault(target, folders, tmp_path):
    """speculators writes it."""
    table = target.model.get_input_embeddings().weight.detach().clone()
    copy = changed(folders[P], tmp_path, tensor("embed_tokens.weight", lambda _: table))
    assert not read(copy, target).warnings
    assert [w.what for w in read(copy).warnings] == ["embed_tokens.weight in the file"]
