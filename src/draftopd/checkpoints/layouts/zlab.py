"""z-lab's layout of DFlash, which vLLM and SGLang load: config.json of a Qwen3 model with a `dflash_config`.

Read with block size and mask token at the top level, in `dflash_config`, or in both; written with both. Layer ids are
0-based layer outputs, as ours.
"""

from typing import Any

from draftopd.checkpoints import fields, layer_config
from draftopd.checkpoints.findings import Findings
from draftopd.checkpoints.spec import DrafterSpec, Layout
from draftopd.drafters.dflash import DFlash

ARCHITECTURE = "DFlashDraftModel"
# variants of DFlash that are not supported
VARIANTS = {
    "conv_kernel_size": "DFlash2",
    "selector_rank": "DFlash2",
    "projector_type": "Domino",
    "markov_rank": "DSpark",
    "use_swa": "sliding windows",
    "attention_sink_bias": "attention sinks",
    "attention_value_scale": "scaled values",
    "is_causal": "causal blocks",
    "causal": "causal blocks",
    "sample_from_anchor": "a draft from the anchor's slot",
}


def recognises(config: dict[str, Any]) -> bool:
    return ARCHITECTURE in fields.names(config.get("architectures")) or (
        "dflash_config" in config and "speculators_model_type" not in config
    )


def compose(spec: DrafterSpec, dtype: str) -> dict[str, Any]:
    config = {
        "architectures": [ARCHITECTURE],
        **layer_config.compose(spec),
        "dtype": dtype,
        "num_target_layers": spec.target_layers,
        "block_size": spec.block_size,
        "mask_token_id": spec.shape.mask_token_id,
        "dflash_config": {
            "block_size": spec.block_size,
            "mask_token_id": spec.shape.mask_token_id,
            "target_layer_ids": list(spec.layer_ids),
        },
        "target_name_or_path": spec.target_name,
        "target_architectures": list(spec.target_architectures),
        "target_fingerprint": spec.target_fingerprint,
    }
    return config if spec.draft_vocab_size is None else config | {"draft_vocab_size": spec.draft_vocab_size}


def parse(config: dict[str, Any], findings: Findings, _depth: int | None = None) -> DrafterSpec | None:
    nested = config.get("dflash_config")
    if not isinstance(nested, dict):
        findings.error(
            "no dflash_config", "z-lab's code and vLLM find neither layers nor mask token", "add it as z-lab's files do"
        )
        return None
    _variants(config, nested, findings)
    base, theta = layer_config.parse(config, DFlash, findings), fields.rope_theta(config, findings)
    block = _block_size(config, nested, findings)
    mask = fields.agreed(
        "mask_token_id",
        {"dflash_config": nested.get("mask_token_id"), "the top level": config.get("mask_token_id")},
        "SGLang and vLLM read dflash_config first, transformers the top level; without one SGLang takes <|MASK|>",
        findings,
    )
    ids = _layer_ids(config, nested, findings)
    target_layers = fields.agreed(
        "num_target_layers",
        {"the top level": config.get("num_target_layers"), "dflash_config": nested.get("num_target_layers")},
        "z-lab's code stops; SGLang takes the drafter's own depth for the target's and refuses the layer ids",
        findings,
    )
    if target_layers is None:
        return None
    return layer_config.spec(
        DFlash,
        base,
        config,
        rope_theta=theta,
        block_size=block,
        layer_ids=ids,
        target_layers=target_layers,
        target=fields.named_target(config, findings),
        mask_token_id=mask,
    )


def _variants(config: dict[str, Any], nested: dict[str, Any], findings: Findings) -> None:
    if config.get("architectures") != [ARCHITECTURE]:
        findings.error(
            f"architectures is {config.get('architectures')}",
            "vLLM and SGLang choose the model by it",
            f'write ["{ARCHITECTURE}"]; DFlash2 and Domino are not supported here, DSpark in other layouts (DeepSpec, '
            "speculators)",
        )
    for key, kind in VARIANTS.items():
        if nested.get(key) or config.get(key):
            findings.error(f"{key} is set: {kind}", "only plain DFlash is supported here", fields.OTHER)
    if config.get("is_neox_style") is False:
        findings.error("is_neox_style is false", "only half-split rope is supported here", fields.OTHER)


def _block_size(config: dict[str, Any], nested: dict[str, Any], findings: Findings) -> int | None:
    top, inner = config.get("block_size"), nested.get("block_size")
    block = fields.agreed(
        "block_size",
        {"the top level": top, "dflash_config": inner},
        "z-lab's first code reads the top level, its later code and SGLang dflash_config, with 16 by default",
        findings,
    )
    if block is not None and top is None:
        findings.warning(
            "block_size only in dflash_config", "z-lab's first code stops", "write it at the top level too"
        )
    for key in ("num_speculative_tokens", "num_lookahead_tokens"):
        fields.drafts(key, config.get(key), block, findings)
    return block


def _layer_ids(config: dict[str, Any], nested: dict[str, Any], findings: Findings) -> list[int]:
    inner, top = nested.get("target_layer_ids"), config.get("target_layer_ids")
    ids = fields.numbers("target_layer_ids", top if inner is None else inner, findings)
    if inner is not None and top is not None and inner != top:
        findings.error(
            f"target_layer_ids is {inner} in dflash_config and {top} at the top level",
            "vLLM refuses, SGLang and z-lab's code take the first",
            "keep one",
        )
    shifted = config.get("eagle_aux_hidden_state_layer_ids")
    if ids and shifted is not None and shifted != [i + 1 for i in ids]:
        findings.error(
            f"eagle_aux_hidden_state_layer_ids {shifted} is not target_layer_ids {ids} plus one",
            "vLLM counts hidden states before a layer and reads the first, SGLang the second (vllm#40727)",
            f"write {[i + 1 for i in ids]}, or drop the key",
        )
    return ids


ZLAB = Layout("zlab", DFlash, recognises, parse, compose, reduced=("d2t", "lm_head.weight"))
