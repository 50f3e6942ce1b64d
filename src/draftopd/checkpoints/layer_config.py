"""What every layout's config.json has: the sizes of the drafter's layers, named as in transformers."""

from dataclasses import fields
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PreTrainedConfig

from draftopd.checkpoints.fields import OTHER, NamedTarget
from draftopd.checkpoints.findings import Findings
from draftopd.checkpoints.spec import DrafterSpec, Kind
from draftopd.drafters.dflash import DFlash
from draftopd.drafters.dflash2 import DFlash2
from draftopd.drafters.dspark import DSpark
from draftopd.drafters.eagle3 import Eagle3
from draftopd.target.head import LayerSizes, TargetShape
from draftopd.values.types import MOST_LAYERS

SIZES = tuple(field.name for field in fields(LayerSizes) if field.name != "rope_theta")  # rope has two schemas
# keys passed to transformers, whose defaults a published file may leave out
KEYS = (
    *SIZES,
    "num_hidden_layers",
    "vocab_size",
    "max_position_embeddings",
    "hidden_act",
    "attention_bias",
    "layer_types",
    "sliding_window",
    "use_sliding_window",
    "max_window_layers",
)
COUNTS = [name for name in (*SIZES, "num_hidden_layers", "vocab_size") if name != "rms_norm_eps"]
SLIDING = "sliding_attention"
LARGEST = 2**20  # larger than any model's; the product of three still fits a tensor's size
MOST = {name: MOST_LAYERS if name == "num_hidden_layers" else LARGEST for name in COUNTS}
MODEL_TYPE: dict[Kind, str] = {DFlash: "qwen3", DFlash2: "qwen3", DSpark: "qwen3", Eagle3: "llama"}
NEITHER = "a DFlash drafter has neither embedding nor head; a loader that ties would look for both"
TIED: dict[Kind, str] = {
    DFlash: NEITHER,
    DFlash2: NEITHER,
    DSpark: "a loader that ties drops the head of the file, which is not the embedding with every target",
    Eagle3: "SGLang drafts from the embedding and silently drops lm_head.weight",
}


def sizes(spec: DrafterSpec) -> dict[str, Any]:
    """The keys that all of transformers' decoders share."""
    return {
        **{name: getattr(spec.shape, name) for name in SIZES},
        "num_hidden_layers": spec.num_layers,
        "max_position_embeddings": spec.max_position_embeddings,
        "rope_parameters": {"rope_type": "default", "rope_theta": spec.shape.rope_theta},
    }


def compose(spec: DrafterSpec) -> dict[str, Any]:
    """With both rope schemas: transformers 4 reads rope_theta, transformers 5 rope_parameters."""
    sliding = spec.window is not None
    attention = {
        "layer_types": [SLIDING if sliding else "full_attention"] * spec.num_layers,
        "sliding_window": spec.window,
    }
    qwen3 = {"use_sliding_window": sliding, "max_window_layers": 0 if sliding else spec.num_layers}
    return {
        "model_type": MODEL_TYPE[spec.kind],
        **sizes(spec),
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        **(attention if sliding or spec.kind is not Eagle3 else {}),
        **(qwen3 if spec.kind is not Eagle3 else {"mlp_bias": False}),
        "rope_theta": spec.shape.rope_theta,
        "rope_scaling": None,
        "vocab_size": spec.shape.vocab_size,
        "tie_word_embeddings": False,
    }


def parse(raw: dict[str, Any], kind: Kind, findings: Findings, *, windows: bool = False) -> PreTrainedConfig | None:
    """The config of the drafter's layers; None after an error.

    Args:
        windows: the layout has `DrafterSpec.window`.
    """
    model_type = str(raw.get("model_type"))
    try:
        config = AutoConfig.for_model(model_type, **{key: raw[key] for key in KEYS if key in raw})
        config.head_dim = getattr(config, "head_dim", None) or config.hidden_size // max(1, config.num_attention_heads)
        counts = {name: getattr(config, name) for name in COUNTS}
        wrong = [f"{name} {value}" for name, value in counts.items() if not 1 <= value <= MOST[name]]
        odd = not wrong and (config.num_attention_heads % config.num_key_value_heads or config.head_dim % 2)
        _ = config.hidden_act, config.attention_bias, config.max_position_embeddings  # not every family has them
    except (StrictDataclassError, ValueError, TypeError, AttributeError, ArithmeticError) as error:
        reason = " ".join(str(error).split())[:160]
        findings.error(
            f"model_type {model_type!r} with these sizes is no config of transformers: {reason}",
            "vLLM, SGLang and transformers cannot build the drafter and stop",
            f"write model_type {MODEL_TYPE[kind]}, as {kind.__name__} drafters have, and whole numbers for sizes",
        )
        return None
    if wrong or odd:
        text = ", ".join(wrong) or "odd head_dim, or attention heads that key-value heads do not divide"
        findings.error(
            f"impossible sizes: {text}",
            "vLLM, SGLang and transformers cannot build the drafter and stop",
            "write those of the tensors: q_proj has num_attention_heads x head_dim rows, k_proj num_key_value_heads x "
            "head_dim, gate_proj intermediate_size",
        )
        return None
    _unsupported(config, raw, kind, findings)
    _sliding(config, raw, findings, windows=windows)
    return config


def _unsupported(config: PreTrainedConfig, raw: dict[str, Any], kind: Kind, findings: Findings) -> None:
    if config.hidden_act != "silu":
        findings.error(f"hidden_act is {config.hidden_act}", "vLLM and SGLang run only silu", OTHER)
    if config.attention_bias:
        findings.error("attention_bias is true", "layers with biases are not supported here", OTHER)
    if raw.get("tie_word_embeddings"):
        report = findings.error if kind is Eagle3 else findings.warning
        report("tie_word_embeddings is true", TIED[kind], "set it to false")
    if raw.get("quantization_config"):
        findings.error(
            "quantization_config: the weights are quantised",
            "vLLM and SGLang may serve them, here and in transformers' DFlash they are not unpacked",
            "take the drafter that was quantised; drop the key if model.safetensors holds plain floats",
        )


def window(config: PreTrainedConfig) -> int | None:
    """Positions that a row of the drafter's layers sees, its own included; None = all before it."""
    return config.sliding_window if SLIDING in (getattr(config, "layer_types", None) or []) else None


def _sliding(config: PreTrainedConfig, raw: dict[str, Any], findings: Findings, *, windows: bool) -> None:
    types = getattr(config, "layer_types", None) or []
    if SLIDING not in types:
        return
    if not windows:
        findings.error(
            f"layer_types holds {SLIDING}",
            "vLLM and SGLang make those layers causal in a block, or SGLang drops the window; not supported here",
            "take a drafter whose layers all are full_attention, or one in speculators' layout",
        )
    elif set(types) != {SLIDING}:
        findings.error(f"layer_types is {types}", "here all layers of a drafter have one window", OTHER)
    elif raw.get("sliding_window") is None or config.sliding_window is None:
        findings.error(
            f"layer_types holds {SLIDING} without a sliding_window that counts",
            "vLLM stops where there is none, speculators takes 4096; with use_sliding_window false only vLLM has it",
            "write sliding_window, and use_sliding_window true beside model_type qwen3",
        )


def spec(
    kind: Kind,
    base: PreTrainedConfig | None,
    config: dict[str, Any],
    *,
    rope_theta: float,
    block_size: int | None,
    layer_ids: list[int],
    target_layers: int | None,
    target: NamedTarget,
    mask_token_id: int | None = 0,
) -> DrafterSpec | None:
    """The parsed values as one spec, None where an error has left one out; `config` is the whole file."""
    if base is None or block_size is None or mask_token_id is None or not layer_ids:
        return None
    draft = config.get("draft_vocab_size")
    sizes: dict[str, Any] = {name: getattr(base, name, None) for name in SIZES}
    shape = TargetShape(
        **sizes,
        rope_theta=rope_theta,
        num_layers=target_layers or max(layer_ids) + 1,
        vocab_size=base.vocab_size,
        mask_token_id=mask_token_id,
    )
    return DrafterSpec(
        kind=kind,
        shape=shape,
        num_layers=base.num_hidden_layers,
        block_size=block_size,
        layer_ids=tuple(layer_ids),
        target_layers=target_layers,
        draft_vocab_size=None if draft == base.vocab_size else draft,
        max_position_embeddings=base.max_position_embeddings,
        target_name=target[0],
        target_architectures=target[1],
        target_fingerprint=config.get("target_fingerprint"),
        window=window(base),
    )
