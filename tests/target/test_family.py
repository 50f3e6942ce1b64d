"""Which models are refused as targets, and that those whose rope depends on the length are exact up to their limit."""

from typing import Any

import pytest
import torch
from benchmarks.bench import as_it_comes
from transformers import AutoConfig, AutoModelForCausalLM

from draftopd.decoding.rollout import rollout
from draftopd.decoding.settings import Decoding
from draftopd.drafters.dflash import DFlash
from draftopd.errors import DraftError
from draftopd.target import load
from draftopd.target.family import longest_text
from draftopd.target.model import Target
from pair import FAMILIES, PROMPTS, SIZES

THETA = {"rope_theta": 1e4}
LONG = {"short_factor": [1.0] * 4, "long_factor": [1.5, 2.0, 4.0, 8.0], "original_max_position_embeddings": 24}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 24}
LIMITED = {  # from position 24 on
    "longrope": {"model_type": "phi3", "original_max_position_embeddings": 24, "rope": {**LONG, "factor": 8.0}},
    "dynamic": {"model_type": "llama", "max_position_embeddings": 24, "rope": {"factor": 4.0}},
}
FIXED = {"default": {}, "llama3": LLAMA3, "linear": {"factor": 4.0}, "yarn": {"factor": 4.0}}


def texts(target: Target, prompts: list[list[int]], drafter: DFlash | None = None, tokens: int = 8) -> list[list[int]]:
    results = rollout(target, drafter, prompts, Decoding(max_new_tokens=tokens, batch_size=2))
    return [result.trace.tokens.tolist() for result in results]


@pytest.mark.parametrize("kind", LIMITED)
def test_a_rope_that_depends_on_the_length_is_exact_up_to_its_limit_and_refused_beyond(kind: str):
    arch = {**SIZES, "max_position_embeddings": 192, **LIMITED[kind]}
    target = load.tiny({**arch, "rope_parameters": {"rope_type": kind, **THETA, **arch.pop("rope")}})
    assert target.longest_text == 24
    drafter, stock, prompts = DFlash(target.shape, 1, 4), as_it_comes(target), PROMPTS[:3]
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    alone = [stock.generate(torch.tensor([prompt]), **options)[0].tolist() for prompt in prompts]
    assert texts(target, prompts) == texts(target, prompts, drafter) == alone
    for write in (
        lambda: texts(target, prompts, tokens=15),
        lambda: texts(target, prompts[:1], drafter, tokens=15),
        lambda: target.read(torch.tensor([[5] * 25])),
    ):
        with pytest.raises(DraftError, match=r"beyond 24 this target's rope depends on the longest text of a batch"):
            write()


@pytest.mark.parametrize("kind", FIXED)
def test_a_rope_of_the_position_alone_has_no_limit(kind: str):
    rope = {"rope_type": kind, **THETA, **FIXED[kind]}
    config = AutoConfig.for_model("llama", **SIZES, max_position_embeddings=192, rope_parameters=rope)
    assert longest_text(config) is None


def test_a_rope_of_one_kind_of_layers_counts_and_an_unknown_one_is_refused(target: Target):
    layered = load.tiny({"model_type": "gemma3_text", **FAMILIES["gemma3_text"]})
    layered.config.rope_parameters["full_attention"] = {"rope_type": "dynamic", "factor": 2.0, **THETA}
    layered.config.max_position_embeddings = 40
    assert Target(layered.model, layered.tokenizer).longest_text == 40
    layered.config.rope_parameters["sliding_attention"] = {"rope_type": "spiral", **THETA}
    with pytest.raises(DraftError, match=r"its rope type 'spiral' may depend on the length of a text \(known are"):
        Target(layered.model, layered.tokenizer)


OPT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 64, "word_embed_proj_dim": 32}
GEMMA3N = {
    **FAMILIES["gemma3_text"],
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": 100,
    "laurel_rank": 4,
    "num_kv_shared_layers": 2,
    "altup_num_inputs": 2,
    "activation_sparsity_pattern": [0.0] * 4,
}
REFUSED = {
    "opt": (OPT, "OPTForCausalLM is not supported: its config has no rope_parameters"),
    "gpt2": ({"n_embd": 32, "n_layer": 2, "n_head": 4}, "its decoder has no list named 'layers'"),
    "gemma3n_text": (GEMMA3N, r"layers have unlike sizes \(intermediate_size \[64, 64, 64, 64\]\)"),
    "gpt_neox_japanese": (SIZES, "a forward with our masks, positions and cache stops with RuntimeError"),
}


@pytest.mark.parametrize("family", REFUSED)
def test_families_that_cannot_work_are_refused_with_the_cause(family: str):
    sizes, message = REFUSED[family]
    with pytest.raises(DraftError, match=message) as caught:
        load.tiny({"model_type": family, **sizes})
    assert "\n" not in str(caught.value)


def test_layers_with_several_outputs_a_token_are_refused():
    sizes = {"vocab_size": 100, "eos_token_id": 1, "pad_token_id": 0, "bos_token_id": None}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("gemma3n_text", **GEMMA3N, **sizes))
    model.config.intermediate_size = 64  # one for all layers, as far as it goes
    with pytest.raises(
        DraftError, match=r"its 4 layers have outputs \[2, 2, 8, 128\] together, not one vector a token"
    ):
        Target(model.eval(), load.tiny_tokenizer())


def spoiled(target: Target, monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    """The target's decoder, called with other arguments."""
    forward = target.body.forward
    monkeypatch.setattr(target.body, "forward", lambda **given: forward(**change(given)))


def without(name: str) -> Any:
    return lambda given: {**given, name: None}


def bidirectional(given: dict[str, Any]) -> dict[str, Any]:
    mask = given["attention_mask"]
    return given if mask is None else {**given, "attention_mask": torch.ones_like(mask)}


def causal(given: dict[str, Any]) -> dict[str, Any]:
    """Without a cache, rows see all before them, as if every forward were one text."""
    mask = given["attention_mask"]
    if mask is None or given["past_key_values"] is not None:
        return given
    return {**given, "attention_mask": torch.ones_like(mask).tril(mask.shape[3] - mask.shape[2])}


def stops(given: dict[str, Any]) -> dict[str, Any]:
    raise KeyError("rel_pos")


def test_a_family_that_computes_otherwise_under_our_masks_is_refused(monkeypatch):
    for change, message in (
        (bidirectional, "under our masks and positions it computes other hidden states"),
        (without("attention_mask"), "with a cache that is rolled back it computes other hidden states"),
        (without("position_ids"), "with a cache that is rolled back it computes other hidden states"),
        (causal, "with drafts beside a text it computes other hidden states"),
        (stops, r"stops with KeyError: 'rel_pos'"),
    ):
        target = load.tiny({"model_type": "llama", **SIZES})
        with monkeypatch.context() as patch:
            spoiled(target, patch, change)
            with pytest.raises(DraftError, match=message):
                Target(target.model, target.tokenizer)


def test_a_sliding_window_counts_where_the_model_uses_it():
    used = load.tiny({"model_type": "mistral", **SIZES, "sliding_window": 8})
    assert used.window == used.config.sliding_window == 8
    stray = load.tiny({"model_type": "llama", **SIZES, "sliding_window": 4})
    assert (stray.window, stray.config.sliding_window) == (None, 4)
    plain = load.tiny({"model_type": "llama", **SIZES})
    assert texts(stray, PROMPTS) == texts(plain, PROMPTS)
