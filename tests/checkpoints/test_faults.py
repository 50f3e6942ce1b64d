"""One line for every way in which files, or a folder of DFlash, can be wrong."""

import pytest
import torch

from draftopd.checkpoints.published import check_folder, read
from draftopd.errors import DraftError
from published_folders import (
    changed,
    drop,
    not_finite,
    only_new_rope,
    only_old_rope,
    put,
    refused,
    rename,
    tensor,
    together,
    warned,
)


def truncate(config, tensors, copy):
    data = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(data[: len(data) // 2])


def pickled(config, tensors, copy):
    torch.save(dict(tensors), copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()


no_rope = together(only_new_rope, only_old_rope)
one_slot = together(put("block_size", value=1), put("dflash_config", "block_size", value=1))
no_block_size = together(put("block_size"), put("dflash_config", "block_size"))

Z, S, R = "dflash-zlab-None", "dflash-speculators-None", "dflash-zlab-40"
FAULTS = {
    # the files
    "no config": (Z, lambda c, t, f: (f / "config.json").unlink(), "no config.json"),
    "truncated weights": (Z, truncate, "not a complete safetensors file"),
    "pickle": (Z, pickled, "pytorch_model.bin is a pickle"),
    "no weights": (Z, lambda c, t, f: (f / "model.safetensors").unlink(), "no model.safetensors"),
    "several files": (Z, lambda c, t, f: (f / "model.safetensors.index.json").write_text("{}"), "several files"),
    "own mask embedding": (Z, lambda c, t, f: (f / "mask_embedding.pt").write_text(""), "mask_embedding.pt"),
    # tensors
    "missing tensor": (Z, drop("layers.1.self_attn.k_norm.weight"), "missing layers.1.self_attn.k_norm.weight"),
    "extra tensor": (Z, tensor("layers.0.self_attn.q_proj.bias", lambda _: torch.zeros(16)), "unknown layers.0"),
    "prefix": (Z, rename("", "model."), "strip the prefix model."),
    "transposed fc": (Z, tensor("fc.weight", lambda v: v.T.contiguous()), "fc.weight is transposed"),
    "fc without dimensions": (Z, tensor("fc.weight", lambda _: torch.ones(())), "fc.weight [] instead of [32, 64]"),
    "head of eight bits": (
        R,
        tensor("lm_head.weight", lambda v: v.to(torch.float8_e4m3fn)),
        "lm_head.weight of torch.float8_e4m3fn",
    ),
    "name of two lines": (Z, tensor("no\nrm", lambda _: torch.zeros(16)), "unknown no rm"),
    "narrow fc": (Z, tensor("fc.weight", lambda v: v[:, :32].contiguous()), "reads 1 layers, config.json names 2"),
    "wrong shape": (Z, put("intermediate_size", value=96), "mlp.gate_proj.weight [64, 32] instead of [96, 32]"),
    "wrong head_dim": (Z, put("head_dim", value=8), "self_attn.q_proj.weight [16, 32] instead of [32, 32]"),
    "not finite": (Z, tensor("norm.weight", not_finite), "norm.weight not finite"),
    "quantised": (Z, tensor("fc.weight", lambda v: v.to(torch.int8)), "fc.weight of torch.int8"),
    "own head": (Z, tensor("lm_head.weight", lambda _: torch.ones(100, 32)), "lm_head.weight is not the target's"),
    "own embedding": (S, tensor("embed_tokens.weight", lambda _: torch.ones(100, 32)), "embed_tokens.weight is not"),
    # numbers of config.json
    "block sizes differ": (Z, put("block_size", value=4), "block_size is 4 in the top level, 5 in dflash_config"),
    "no block size": (Z, no_block_size, "no block_size"),
    "block size 1": (Z, one_slot, "block_size is 1"),
    "tokens against block": (Z, put("num_speculative_tokens", value=5), "num_speculative_tokens is 5 beside block"),
    "speculative tokens": (
        S,
        lambda c, t, f: c["speculators_config"]["proposal_methods"][0].update(speculative_tokens=5),
        "speculative_tokens is 5 beside block_size 5",
    ),
    "mask tokens differ": (Z, put("mask_token_id", value=3), "mask_token_id is 99 in dflash_config, 3 in"),
    "mask outside": (S, put("mask_token_id", value=100), "outside the table of 100 rows"),
    "mask is text": (S, put("mask_token_id", value="<mask>"), "mask_token_id is '<mask>'"),
    "ropes differ": (Z, put("rope_theta", value=1e4), "rope_theta is 10000.0 at the top level and 500000.0"),
    "no rope": (Z, no_rope, "no rope_theta"),
    "yarn": (Z, put("rope_scaling", value={"rope_type": "yarn", "factor": 4.0}), "rope type yarn"),
    "partial rotary": (Z, put("rope_parameters", "partial_rotary_factor", value=0.5), "partial_rotary_factor 0.5"),
    "sliding layers": (Z, put("layer_types", value=["sliding_attention"] * 2), "sliding_attention"),
    "layer types": (Z, put("layer_types", value=["full_attention"]), "is no config of transformers"),
    "biases": (Z, put("attention_bias", value=True), "attention_bias"),
    "activation": (Z, put("hidden_act", value="gelu"), "hidden_act is gelu"),
    "heads": (Z, put("num_key_value_heads", value=3), "impossible sizes"),
    "unknown model type": (Z, put("model_type", value="dflash"), "model_type 'dflash'"),
    # config.json that nobody meant
    "rope is text": (Z, put("rope_parameters", value="default"), "rope_parameters is 'default'"),
    "scaling is a list": (Z, put("rope_scaling", value=[1]), "rope_scaling is [1]"),
    "rope type is a list": (
        S,
        put("transformer_layer_config", "rope_scaling", value={"rope_type": []}),
        "rope type []",
    ),
    "architecture is text": (Z, put("architectures", value="DFlashDraftModel"), "architectures is DFlashDraftModel"),
    "architecture is a number": (Z, put("architectures", value=5), "architectures is 5"),
    "list of lists": (Z, put("architectures", value=[["DFlashDraftModel"]]), "architectures is [["),
    "target is text": (Z, put("target_architectures", value="Llama"), "target_architectures is 'Llama'"),
    "target is a number": (Z, put("target_architectures", value=5), "target_architectures is 5"),
    "verifier is a number": (
        S,
        put("speculators_config", "verifier", "architectures", value=5),
        "verifier.architectures is 5",
    ),
    "negative id": (Z, put("dflash_config", "target_layer_ids", value=[-1, 2]), "layer ids [-1, 2] hold -1"),
    "negative shifted id": (S, put("aux_hidden_state_layer_ids", value=[-1, 3]), "layer ids [-2, 2] hold -2"),
    "vocabulary is true": (R, put("draft_vocab_size", value=True), "draft_vocab_size True beside vocab_size 100"),
    "a million layers": (
        Z,
        together(put("num_hidden_layers", value=10**6), put("layer_types")),
        "impossible sizes: num_hidden_layers 1000000",
    ),
    "endless block": (
        Z,
        together(put("block_size", value=10**6), put("dflash_config", "block_size", value=10**6)),
        "block_size=1000000 must be a whole number of at least 2",
    ),
    "endless rope": (Z, together(only_old_rope, put("rope_theta", value=float("inf"))), "rope_theta=inf must be"),
    "no epsilon": (Z, put("rms_norm_eps", value=0.0), "rms_norm_eps=0.0 must be a number above 0"),
    "a family without key-value heads": (
        Z,
        together(put("model_type", value="gpt2"), put("num_key_value_heads")),
        "model_type 'gpt2' with these sizes",
    ),
    "line end and colour": (Z, put("architectures", value="\n\x1b[31m"), "architectures is  \\x1b[31m"),
    "astronomical": (Z, put("hidden_size", value=10**30), "impossible sizes: hidden_size 1000"),
    # layers
    "all one too high": (Z, put("dflash_config", "target_layer_ids", value=[1, 3]), "trained to read"),
    "one too high": (Z, put("dflash_config", "target_layer_ids", value=[1, 4]), "layer id 4 of a target of 4 layers"),
    "ids without plus one": (S, put("aux_hidden_state_layer_ids", value=[0, 2]), "one too low"),
    "aux and target ids": (Z, put("eagle_aux_hidden_state_layer_ids", value=[0, 2]), "vllm#40727"),
    "ids at the top level": (Z, put("target_layer_ids", value=[0, 1]), "[0, 2] in dflash_config and [0, 1] at"),
    "falling ids": (Z, put("dflash_config", "target_layer_ids", value=[2, 0]), "do not rise"),
    "no ids": (Z, put("dflash_config", "target_layer_ids"), "target_layer_ids is None"),
    "depth is taps": (Z, put("num_target_layers", value=2), "as TorchSpec writes it"),
    "no depth": (Z, put("num_target_layers"), "no num_target_layers"),
    # the draft vocabulary
    "ids for offsets": (R, tensor("d2t", lambda v: v + torch.arange(40)), "it seems to hold ids instead of offsets"),
    "empty map": (R, tensor("d2t", torch.zeros_like), "d2t is all zero"),
    "no map": (R, drop("d2t"), "draft_vocab_size 40 without d2t"),
    "size of the map": (R, put("draft_vocab_size", value=41), "lm_head.weight [40, 32] instead of [41, 32]"),
    "map without a size": (R, put("draft_vocab_size"), "lm_head.weight [40, 32] instead of [100, 32]"),
    "size of speculators": (S, put("draft_vocab_size"), "no draft_vocab_size"),
    "no t2d": ("dflash-speculators-40", drop("t2d"), "without t2d"),
    "other t2d": ("dflash-speculators-40", tensor("t2d", lambda v: v.roll(1)), "t2d marks other tokens"),
    "float map": (R, tensor("d2t", lambda v: v.float()), "d2t is torch.float32"),
    # another drafter, another target
    "architecture": (Z, put("architectures", value=["DominoDraftModel"]), "architectures is ['DominoDraftModel']"),
    "dflash2": (Z, put("dflash_config", "selector_rank", value=256), "DFlash2"),
    "eagle": (S, put("speculators_model_type", value="peagle"), "peagle is neither a DFlash drafter"),
    "anchor draft": (S, put("sample_from_anchor", value=True), "sample_from_anchor"),
    "no verifier": (S, put("speculators_config", "verifier"), "verifier.name_or_path"),
    "no layer config": (S, put("transformer_layer_config"), "no transformer_layer_config"),
    "fingerprint": (Z, put("target_fingerprint", value="0" * 16), "target fingerprint 0000000000000000"),
    "vocabulary": (Z, put("vocab_size", value=101), "vocab_size 101, the target's is 100"),
    "depth": (Z, put("num_target_layers", value=8), "num_target_layers 8, the target's is 4"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_folder_is_refused_by_name(target, folders, tmp_path, fault):
    name, change, expected = FAULTS[fault]
    refused(changed(folders[name], tmp_path, change), target, expected)


WARNINGS = {
    "only the new rope": (Z, only_new_rope, "rope_theta is only in rope_parameters"),
    "only a nested block size": (Z, put("block_size"), "block_size only in dflash_config"),
    "tied": (Z, put("tie_word_embeddings", value=True), "tie_word_embeddings"),
    "dtype": (Z, put("dtype", value="bfloat16"), "dtype is bfloat16"),
    "mixed dtypes": (Z, tensor("norm.weight", lambda v: v.to(torch.bfloat16)), "weights of bfloat16, float32"),
    "no head rows": (R, drop("lm_head.weight"), "draft_vocab_size 40 without lm_head.weight"),
    "last layer": (
        Z,
        together(put("dflash_config", "target_layer_ids", value=[0, 3]), put("trained_to_read")),
        "layer id 3 is the target's last layer",
    ),
    "causal for vLLM": (S, put("sliding_window_non_causal", value=False), "sliding_window_non_causal is false"),
    "local verifier": (
        S,
        put("speculators_config", "verifier", value={"name_or_path": "/data/target", "architectures": []}),
        "verifier.name_or_path is '/data/target'",
    ),
}


@pytest.mark.parametrize("case", WARNINGS)
def test_what_only_some_engines_mind_is_a_warning(target, folders, tmp_path, case):
    name, change, expected = WARNINGS[case]
    warned(folders[name], changed(folders[name], tmp_path, change), target, expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{", "config.json is not JSON"),
        ("[" * 10**5, "config.json is not JSON"),
        ("[1]", "config.json holds no object"),
    ],
)
def test_a_config_that_holds_no_keys_is_refused(target, folders, tmp_path, text, expected):
    copy = changed(folders[Z], tmp_path, lambda c, t, f: None)
    (copy / "config.json").write_text(text)
    refused(copy, target, expected)


def test_a_config_that_is_a_folder_is_refused(target, folders, tmp_path):
    copy = changed(folders[Z], tmp_path, lambda c, t, f: (f / "config.json").unlink())
    (copy / "config.json").mkdir()
    refused(copy, target, "config.json cannot be read")


def test_no_pickle_is_opened(folders, tmp_path, monkeypatch):
    copy = changed(folders[Z], tmp_path, pickled)
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("a pickle was opened"))
    with pytest.raises(DraftError, match="have its publisher save it"):
        read(copy)


def test_the_targets_own_head_in_the_file_is_no_fault(target, folders, tmp_path):
    head = target.model.get_output_embeddings().weight.detach().clone()
    copy = changed(folders[Z], tmp_path, tensor("lm_head.weight", lambda _: head))
    assert not check_folder(copy, target)
    assert [finding.severity for finding in check_folder(copy)] == ["warning"]
