"""The layouts of vLLM's speculators package (version 0.9), one envelope around any kind of drafter.

Their `aux_hidden_state_layer_ids` count the hidden states *before* a layer: ours plus one. The embedding is the
verifier's and stays out of the file, and so is the head of all but EAGLE-3; a reduced vocabulary adds `d2t`, `t2d` and
the head's rows. EAGLE-3's layer is `layers.0` instead of `midlayer`, and its block size is the number of tokens to
speculate; so is DSpark's `block_size`.

A sliding window is in the config of the layer, as in transformers. vLLM 0.32 lets a row see as many positions as
`sliding_window` says, its own included, as we do, and those after it in the block where nothing makes it causal.
speculators' own masks count from the start of the block, so a late slot of its training sees a little more.
"""

from typing import Any

from draftopd.checkpoints import fields, layer_config
from draftopd.checkpoints.findings import Findings
from draftopd.checkpoints.layouts import dflash2_common, dspark_common, eagle3_common
from draftopd.checkpoints.spec import DrafterSpec, Kind, Layout
from draftopd.drafters.dflash import DFlash
from draftopd.drafters.dflash2 import DFlash2
from draftopd.drafters.dspark import DSpark
from draftopd.drafters.eagle3 import Eagle3
from draftopd.errors import DraftError

MODEL = "speculators_model_type"
VERSION = "0.9.0"  # of the layout
AUX = "aux_hidden_state_layer_ids"


def compose_dflash(spec: DrafterSpec, dtype: str) -> dict[str, Any]:
    return {
        **_envelope(spec, "dflash", "DFlashSpeculator", dtype),
        "block_size": spec.block_size,
        "mask_token_id": spec.shape.mask_token_id,
        AUX: [i + 1 for i in spec.layer_ids],
        "sliding_window_non_causal": True,  # false makes vLLM 0.32 causal in every layer, full attention too
        "sample_from_anchor": False,
    }


def compose_dflash2(spec: DrafterSpec, dtype: str) -> dict[str, Any]:
    if spec.logits != (1.0, None):
        raise DraftError("speculators' layout cannot say that the target scales or caps its logits: take layout=zlab")
    own = {**dflash2_common.compose(spec), **_envelope(spec, "dflash2", dflash2_common.ARCHITECTURE, dtype)}
    return compose_dflash(spec, dtype) | own


def compose_dspark(spec: DrafterSpec, dtype: str) -> dict[str, Any]:
    envelope = _envelope(spec, "dspark", "DSparkSpeculator", dtype)
    if spec.window is not None:
        envelope["transformer_layer_config"]["is_causal"] = False  # vLLM 0.32 does not read the key below for DSpark
    return {
        **envelope,
        **dspark_common.compose(spec),
        AUX: [i + 1 for i in spec.layer_ids],
        "sliding_window_non_causal": True,
        "sample_from_anchor": True,
    }


def compose_eagle3(spec: DrafterSpec, dtype: str) -> dict[str, Any]:
    envelope = _envelope(spec, "eagle3", "Eagle3Speculator", dtype)
    envelope["transformer_layer_config"]["num_aux_hidden_states"] = len(spec.layer_ids)  # vLLM takes 3 without it
    return {
        **envelope,
        eagle3_common.LAYERS: [i + 1 for i in spec.layer_ids],
        "norm_before_residual": False,  # vLLM takes true where it is missing
        "norm_before_fc": False,
        "fc_norm": False,
        "norm_output": False,
        "embed_requires_grad": False,
    }


def _envelope(spec: DrafterSpec, algorithm: str, architecture: str, dtype: str) -> dict[str, Any]:
    method = {"proposal_type": "greedy", "speculative_tokens": spec.block_size - 1}
    verifier = {"name_or_path": spec.target_name, "architectures": list(spec.target_architectures)}
    return {
        "architectures": [architecture],
        MODEL: algorithm,
        "speculators_version": VERSION,
        "speculators_config": {
            "algorithm": algorithm,
            "default_proposal_method": "greedy",
            "proposal_methods": [{**method, "verifier_accept_k": 1, "accept_tolerance": 0.0}],
            "verifier": verifier,
        },
        "transformer_layer_config": layer_config.compose(spec),
        "draft_vocab_size": spec.draft_vocab_size or spec.shape.vocab_size,
        "target_hidden_size": spec.shape.hidden_size,
        "tie_word_embeddings": False,
        "dtype": dtype,
        "num_target_layers": spec.target_layers,
        "target_fingerprint": spec.target_fingerprint,
    }


def parse_dflash(config: dict[str, Any], findings: Findings, _depth: int | None = None) -> DrafterSpec | None:
    return _parse_dflash(DFlash, config, findings)


def parse_dflash2(config: dict[str, Any], findings: Findings, _depth: int | None = None) -> DrafterSpec | None:
    spec = _parse_dflash(DFlash2, config, findings)
    effect = "vLLM stops, speculators takes a default"
    return dflash2_common.with_sizes(spec, config, "config.json", effect, findings)


def _parse_dflash(kind: Kind, config: dict[str, Any], findings: Findings) -> DrafterSpec | None:
    layer = _layer(config, findings)
    if layer is None:
        return None
    if config.get("sample_from_anchor"):
        findings.error("sample_from_anchor is set: a draft from the anchor's slot", "not supported here", fields.OTHER)
    block = fields.agreed(
        "block_size", {"config.json": config.get("block_size")}, "speculators takes 8 by default", findings
    )
    spec, tokens = _parse_block(kind, config, layer, block, findings)
    fields.drafts("speculative_tokens", tokens, block, findings)
    return spec


def parse_dspark(config: dict[str, Any], findings: Findings, _depth: int | None = None) -> DrafterSpec | None:
    layer = _layer(config, findings)
    if layer is None:
        return None
    if "sample_from_anchor" not in config:
        findings.error(
            "no sample_from_anchor",
            "speculators takes true, vLLM 0.32 false: drafts are one token off, acceptance falls and nothing fails",
            "write true, if the anchor's slot predicts the first draft",
        )
    elif not config["sample_from_anchor"]:
        findings.error("sample_from_anchor is false: the anchor drafts nothing", "not supported here", fields.OTHER)
    block = dspark_common.block_size(config, findings)
    spec, tokens = _parse_block(DSpark, config, layer, block, findings)
    fields.drafts("speculative_tokens", tokens, None if block is None else block - 1, findings, anchor=False)
    return dspark_common.with_heads(spec, config, findings)


def _parse_block(
    kind: Kind, config: dict[str, Any], layer: dict[str, Any], block: int | None, findings: Findings
) -> tuple[DrafterSpec | None, int | None]:
    """What DFlash and DSpark share, and the number of tokens to speculate."""
    layer = {"model_type": "qwen3", **layer}
    base, theta = layer_config.parse(layer, kind, findings, windows=True), fields.rope_theta(layer, findings)
    _direction(kind, config, layer, findings, sliding=base is not None and layer_config.window(base) is not None)
    mask = fields.agreed(
        "mask_token_id", {"config.json": config.get("mask_token_id")}, "vLLM refuses, speculators stops", findings
    )
    ids = fields.outputs(AUX, config.get(AUX), "z-lab's", findings)
    verifier, tokens = _verifier(config, findings)
    spec = layer_config.spec(
        kind,
        base,
        config,
        rope_theta=theta,
        block_size=block,
        layer_ids=ids,
        target_layers=fields.depth(config, findings),
        target=verifier,
        mask_token_id=mask,
    )
    return spec, tokens


def _direction(kind: Kind, config: dict[str, Any], layer: dict[str, Any], findings: Findings, *, sliding: bool) -> None:
    """A block sees itself in both directions."""
    both = config.get("sliding_window_non_causal")
    if sliding and not both:
        findings.error(
            f"sliding_window_non_causal is {both} beside sliding layers: a slot sees no later ones",
            "vLLM takes true where it is missing, speculators false; causal blocks are not supported here",
            f"{fields.OTHER}, or write true if it was trained so",
        )
    elif both is False:
        findings.warning(
            "sliding_window_non_causal is false",
            "vLLM 0.32 then lets no slot of a block see later ones, with full attention too: acceptance changes and "
            "nothing fails (vllm#56692)",
            "write true: speculators reads it only for sliding windows",
        )
    if sliding and kind is DSpark and layer.get("is_causal") is not False:
        findings.warning(
            "no is_causal false in transformer_layer_config",
            "vLLM 0.32 reads no other key for DSpark's sliding layers: slots then see no later ones, acceptance "
            "changes and nothing fails",
            "write it",
        )


def parse_eagle3(config: dict[str, Any], findings: Findings, depth: int | None = None) -> DrafterSpec | None:
    layer = _layer(config, findings)
    if layer is None:
        return None
    if layer.get("model_type") != "llama":
        findings.error(
            f"model_type of the layer is {layer.get('model_type')!r}",
            "speculators builds Qwen3's layer, with norms on queries and keys, where it is not llama",
            "write llama if the file holds no q_norm; no other layer is supported here",
        )
        return None
    base = layer_config.parse(layer, Eagle3, findings, windows=True)
    theta = fields.rope_theta(layer, findings, eagle3_common.THETA)
    if "norm_before_residual" not in config:
        findings.error(
            "no norm_before_residual",
            "speculators takes false, vLLM true: acceptance falls and nothing fails",
            "write false, if the drafter was trained so",
        )
    target_layers = fields.depth(config, findings)
    ids = eagle3_common.layer_ids(config.get(eagle3_common.LAYERS), target_layers or depth, findings)
    eagle3_common.count(ids, layer.get("num_aux_hidden_states") or 3, findings)
    verifier, tokens = _verifier(config, findings)
    eagle3_common.variants([config, layer], base, findings)
    return layer_config.spec(
        Eagle3,
        base,
        config,
        rope_theta=theta,
        block_size=None if tokens is None else tokens + 1,
        layer_ids=ids,
        target_layers=target_layers,
        target=verifier,
    )


def _layer(config: dict[str, Any], findings: Findings) -> dict[str, Any] | None:
    if config.get("draft_vocab_size") is None:
        findings.error("no draft_vocab_size", "speculators takes 32000", "write it; the target's size if not reduced")
    layer = config.get("transformer_layer_config")
    if isinstance(layer, dict):
        return layer
    findings.error(
        "no transformer_layer_config", "vLLM and speculators refuse", "add the config of the drafter's layer"
    )
    return None


def _verifier(config: dict[str, Any], findings: Findings) -> tuple[fields.NamedTarget, int | None]:
    """`speculators_config`: the target's name and architectures, and the number of tokens to speculate."""
    try:
        section = config["speculators_config"]
        tokens = section["proposal_methods"][0]["speculative_tokens"]
        verifier = section["verifier"]
        name, named = verifier["name_or_path"], verifier.get("architectures")
    except (KeyError, IndexError, TypeError, AttributeError):
        findings.error(
            "speculators_config lacks proposal_methods[0].speculative_tokens or verifier.name_or_path",
            "vLLM refuses the folder",
            "write both",
        )
        return (None, ()), None
    architectures = fields.architectures("verifier.architectures", named, "speculators refuses the folder", findings)
    tokens = fields.agreed("speculative_tokens", {"proposal_methods[0]": tokens}, "vLLM refuses the folder", findings)
    if not name or str(name).startswith(("/", "~", ".")):
        findings.warning(
            f"verifier.name_or_path is {name!r}",
            "vLLM and speculators fetch the target by it, so it works on no other machine",
            "export with target_name=<hub id>",
        )
    return (name, architectures), tokens


REDUCED = ("d2t", "t2d", "lm_head.weight")
RENAMED = ("midlayer.", "layers.0.")
DFLASH = Layout(
    "speculators", DFlash, lambda c: c.get(MODEL) == "dflash", parse_dflash, compose_dflash, REDUCED, windows=True
)
DFLASH2 = Layout(
    "speculators", DFlash2, lambda c: c.get(MODEL) == "dflash2", parse_dflash2, compose_dflash2, (), windows=True
)
DSPARK = Layout(
    "speculators", DSpark, lambda c: c.get(MODEL) == "dspark", parse_dspark, compose_dspark, REDUCED, windows=True
)
EAGLE3 = Layout(
    "speculators",
    Eagle3,
    lambda c: c.get(MODEL) == "eagle3",
    parse_eagle3,
    compose_eagle3,
    REDUCED[:2],
    RENAMED,
    windows=True,
)
