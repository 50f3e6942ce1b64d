"""z-lab's layout of DFlash and DFlash2, for vLLM and SGLang: config.json of a Qwen3 model with a `dflash_config`.

Read with block size and mask token at the top level, in `dflash_config`, or in both; written with both. Layer ids are
0-based layer outputs, as ours. DFlash2's sizes stand in `dflash_config`, and it has no reduced draft vocabulary.
"""

from typing import Any

from draftopd.checkpoints import fields, layer_config
from draftopd.checkpoints.findings import Findings
from draftopd.checkpoints.layouts import dflash2_common
from draftopd.checkpoints.spec import DrafterSpec, Kind, Layout
from draftopd.drafters.dflash import DFlash
from draftopd.drafters.dflash2 import DFlash2

ARCHITECTURE: dict[Kind, str] = {DFlash: "DFlashDraftModel", DFlash2: dflash2_common.ARCHITECTURE}
# variants of DFlash that are not supported
VARIANTS = {
    **dict.fromkeys(dflash2_common.SIZES, "DFlash2"),
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
    return ARCHITECTURE[DFlash] in fields.names(config.get("architectures")) or (
        "dflash_config" in config and "speculators_model_type" not in config
    )


def recognises_dflash2(config: dict[str, Any]) -> bool:
    return (
        dflash2_common.ARCHITECTURE in fields.names(config.get("architectures"))
        and "speculators_model_type" not in config
    )


def compose(spec: DrafterSpec, dtype: str) -> dict[str, Any]:
    config = {
        "architectures": [ARCHITECTURE[spec.kind]],
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


def compose_dflash2(spec: DrafterSpec, dtype: str) -> dict[str, Any]:
    own, config, (scale, softcap) = dflash2_common.compose(spec), compose(spec, dtype), spec.logits
    config["is_causal"] = False
    config["dflash_config"] |= own
    config["dflash_config"] |= {"output_multiplier": scale} if scale != 1.0 else {}
    config["dflash_config"] |= {"final_logit_softcapping": softcap} if softcap else {}
    return config


def parse(config: dict[str, Any], findings: Findings, _depth: int | None = None) -> DrafterSpec | None:
    return _parse(DFlash, config, findings)


def parse_dflash2(config: dict[str, Any], findings: Findings, _depth: int | None = None) -> DrafterSpec | None:
    spec, nested = _parse(DFlash2, config, findings), config.get("dflash_config")
    if not isinstance(nested, dict):
        return None
    if (scale := nested.get("input_embedding_scale", 1.0)) != 1.0:
        findings.error(f"input_embedding_scale is {scale}", "vLLM scales the embedding, ours does not", fields.OTHER)
    if spec is not None and spec.window is not None:
        _both_directions(config, findings)
    effect = "vLLM stops, SGLang serves a plain DFlash drafter"
    return dflash2_common.with_sizes(spec, nested, "dflash_config", effect, findings)


def _both_directions(config: dict[str, Any], findings: Findings) -> None:
    if config.get("is_causal") is not False:
        findings.error(
            f"is_causal is {config.get('is_causal')} beside sliding layers",
            "vLLM and z-lab's code make them causal: a slot sees no later ones",
            "write is_causal false, as z-lab's files do",
        )
    else:
        findings.warning(
            "layer_types holds sliding_attention",
            "vLLM and z-lab's code read is_causal false beside it; whether SGLang does, we have not seen",
            "in SGLang, compare acceptance with that of training",
        )


def _parse(kind: Kind, config: dict[str, Any], findings: Findings) -> DrafterSpec | None:
    nested = config.get("dflash_config")
    if not isinstance(nested, dict):
        findings.error(
            "no dflash_config", "z-lab's code and vLLM find neither layers nor mask token", "add it as z-lab's files do"
        )
        return None
    _variants(kind, config, nested, findings)
    base = layer_config.parse(config, kind, findings, windows=kind is DFlash2)
    theta = fields.rope_theta(config, findings)
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
        kind,
        base,
        config,
        rope_theta=theta,
        block_size=block,
        layer_ids=ids,
        target_layers=target_layers,
        target=fields.named_target(config, findings),
        mask_token_id=mask,
    )


def _variants(kind: Kind, config: dict[str, Any], nested: dict[str, Any], findings: Findings) -> None:
    if config.get("architectures") != [ARCHITECTURE[kind]]:
        findings.error(
            f"architectures is {config.get('architectures')}",
            "vLLM and SGLang choose the model by it",
            f'write ["{ARCHITECTURE[kind]}"]; Domino is not supported here, DSpark in other layouts (DeepSpec, '
            "speculators)",
        )
    for key, variant in VARIANTS.items():
        if (nested.get(key) or config.get(key)) and not (kind is DFlash2 and key in dflash2_common.SIZES):
            findings.error(f"{key} is set: {variant}", f"only plain {kind.__name__} is supported here", fields.OTHER)
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
DFLASH2 = Layout("zlab", DFlash2, recognises_dflash2, parse_dflash2, compose_dflash2, reduced=(), windows=True)
