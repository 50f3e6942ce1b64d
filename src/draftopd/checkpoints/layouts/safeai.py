"""SafeAI's layout of EAGLE-3, which SGLang and vLLM load: config.json of a Llama with a `draft_vocab_size`.

Engines disagree on one key. `eagle_aux_hidden_state_layer_ids` in `eagle_config` holds 0-based layer outputs for
SGLang, which adds 1; vLLM takes it as it is and counts what enters a layer, but first reads the same key at the top
level. So both are written, the top one plus one. EAGLE's own files have neither, and no block size: the 7 training
steps of its code.
"""

from typing import Any

from draftopd.checkpoints import fields, layer_config
from draftopd.checkpoints.findings import Findings
from draftopd.checkpoints.layouts import eagle3_common
from draftopd.checkpoints.spec import DrafterSpec, Layout
from draftopd.drafters.eagle3 import Eagle3, default_layer_ids

ARCHITECTURE = "LlamaForCausalLMEagle3"
VLLM_ONLY = ("Eagle3LlamaForCausalLM", "LlamaForCausalLM")
BLOCK_SIZE = 8


def recognises(config: dict[str, Any]) -> bool:
    if "speculators_model_type" in config or "dflash_config" in config:
        return False
    named = {ARCHITECTURE, VLLM_ONLY[0]} & set(fields.names(config.get("architectures")))
    return bool(named) or "eagle_config" in config or "draft_vocab_size" in config


def compose(spec: DrafterSpec, dtype: str) -> dict[str, Any]:
    return {
        "architectures": [ARCHITECTURE],
        **layer_config.compose(spec),
        "dtype": dtype,
        # SGLang replaces the drafter's head by the target's where this is missing
        "draft_vocab_size": spec.draft_vocab_size or spec.shape.vocab_size,
        eagle3_common.LAYERS: [i + 1 for i in spec.layer_ids],
        "eagle_config": {"use_aux_hidden_state": True, eagle3_common.LAYERS: list(spec.layer_ids)},
        "num_target_layers": spec.target_layers,
        "block_size": spec.block_size,
        "target_name_or_path": spec.target_name,
        "target_architectures": list(spec.target_architectures),
        "target_fingerprint": spec.target_fingerprint,
    }


def parse(config: dict[str, Any], findings: Findings, depth: int | None = None) -> DrafterSpec | None:
    nested = config.get("eagle_config") or {}
    if not isinstance(nested, dict):
        findings.error(f"eagle_config is {nested!r}", "SGLang and vLLM stop", "write an object, or drop it")
        return None
    _architecture(config, findings)
    base, theta = layer_config.parse(config, Eagle3, findings), fields.rope_theta(config, findings, eagle3_common.THETA)
    target_layers = fields.depth(config, findings)
    ids = _layer_ids(config, nested, target_layers or depth, findings)
    block = fields.agreed(
        "block_size",
        {"config.json": config.get("block_size", BLOCK_SIZE)},
        "vLLM and SGLang do not read it, training from it here does",
        findings,
    )
    if config.get("draft_vocab_size") is None:
        findings.error(
            "no draft_vocab_size",
            "SGLang silently replaces lm_head.weight by the target's head",
            "write it; vocab_size if the vocabulary is not reduced",
        )
    if nested.get("use_aux_hidden_state") is False:
        findings.error(
            "use_aux_hidden_state is false", "vLLM then leaves fc out and feeds the target's last state", fields.OTHER
        )
    eagle3_common.variants([config, nested], base, findings)
    return layer_config.spec(
        Eagle3,
        base,
        config,
        rope_theta=theta,
        block_size=block,
        layer_ids=ids,
        target_layers=target_layers,
        target=fields.named_target(config, findings),
    )


def _architecture(config: dict[str, Any], findings: Findings) -> None:
    named = config.get("architectures")
    if named in [[name] for name in VLLM_ONLY]:
        findings.warning(
            f"architectures is {named}",
            "vLLM makes an EAGLE-3 drafter of it, SGLang knows no such drafter",
            f'write ["{ARCHITECTURE}"]',
        )
    elif named != [ARCHITECTURE]:
        findings.error(
            f"architectures is {named}",
            "vLLM and SGLang choose the model by it",
            f'write ["{ARCHITECTURE}"] if its layer is a Llama\'s, the only one supported here',
        )


def _layer_ids(config: dict[str, Any], nested: dict[str, Any], depth: int | None, findings: Findings) -> list[int]:
    """0-based layer outputs."""
    top, inner = config.get(eagle3_common.LAYERS), nested.get(eagle3_common.LAYERS)
    if inner is None:
        ids = eagle3_common.layer_ids(top, depth, findings)
        if top is not None and ids and ids != default_layer_ids(depth or 0):
            findings.warning(
                f"{eagle3_common.LAYERS} only at the top level",
                "SGLang looks only into eagle_config and falls back to EAGLE's own layers",
                f"write {ids} into eagle_config too",
            )
    else:
        ids = fields.numbers(f"eagle_config.{eagle3_common.LAYERS}", inner, findings)
        if ids:
            _nested(ids, top, depth, findings)
    eagle3_common.count(ids, config.get("num_aux_hidden_states") or (3 if inner is None else len(ids)), findings)
    return ids


def _nested(ids: list[int], top: Any, depth: int | None, findings: Findings) -> None:
    after = [i + 1 for i in ids]
    if top is not None and top != after:
        findings.error(
            f"{eagle3_common.LAYERS} is {top} at the top level, which is not {ids} in eagle_config plus one",
            "vLLM reads the first and counts what enters a layer, SGLang reads the second, 0-based layer outputs",
            f"write {after} at the top level if the drafter was trained on the outputs of layers {ids}",
        )
    elif top is None and depth is not None and ids == [2, depth // 2, depth - 3]:
        findings.error(
            f"eagle_config.{eagle3_common.LAYERS} {ids} are EAGLE's layers as vLLM counts them, plus one",
            "SGLang adds one itself and reads one layer higher",
            f"write {[i - 1 for i in ids]} there and {ids} at the top level",
        )
    elif top is None:
        findings.warning(
            f"{eagle3_common.LAYERS} only in eagle_config",
            "SGLang adds one to them, vLLM does not and reads one layer lower",
            f"write {after} at the top level too, where vLLM looks first and SGLang never",
        )


SAFEAI = Layout("safeai", Eagle3, recognises, parse, compose, reduced=("d2t", "t2d"))
