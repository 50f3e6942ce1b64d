"""The Qwen3-shaped part of config.json that all DFlash layouts share."""

from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PreTrainedConfig

from draftopd.exchange.findings import Findings
from draftopd.exchange.sheet import Sheet

# keys that are handed to transformers, which fills in what a published file may leave out as its default
KEYS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "rms_norm_eps",
    "vocab_size",
    "max_position_embeddings",
    "hidden_act",
    "attention_bias",
    "layer_types",
    "sliding_window",
    "use_sliding_window",
    "max_window_layers",
)
COUNTS = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
RETRAIN = "take another drafter"


def compose(sheet: Sheet) -> dict[str, Any]:
    """With both rope schemas: transformers 4 reads rope_theta, transformers 5 rope_parameters."""
    return {
        "model_type": "qwen3",
        "hidden_size": sheet.hidden_size,
        "intermediate_size": sheet.intermediate_size,
        "num_hidden_layers": sheet.num_layers,
        "num_attention_heads": sheet.num_attention_heads,
        "num_key_value_heads": sheet.num_key_value_heads,
        "head_dim": sheet.head_dim,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "rms_norm_eps": sheet.rms_norm_eps,
        "layer_types": ["full_attention"] * sheet.num_layers,
        "use_sliding_window": False,
        "sliding_window": None,
        "max_window_layers": sheet.num_layers,
        "max_position_embeddings": sheet.max_position_embeddings,
        "rope_theta": sheet.rope_theta,
        "rope_scaling": None,
        "rope_parameters": {"rope_type": "default", "rope_theta": sheet.rope_theta},
        "vocab_size": sheet.vocab_size,
        "tie_word_embeddings": False,
    }


def parse(raw: dict[str, Any], findings: Findings) -> PreTrainedConfig | None:
    kind = str(raw.get("model_type"))
    try:
        config = AutoConfig.for_model(kind, **{key: raw[key] for key in KEYS if key in raw})
    except (StrictDataclassError, ValueError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:160]
        findings.error(
            f"model_type {kind!r} with these sizes is no config of transformers: {reason}",
            "no engine can build the drafter",
            "mend config.json; DFlash drafters are model_type qwen3",
        )
        return None
    sizes = {key: getattr(config, key) for key in COUNTS} | {"head_dim": head_dim(config)}
    wrong = [f"{key} {value}" for key, value in sizes.items() if value < 1]
    if wrong or config.num_attention_heads % config.num_key_value_heads or sizes["head_dim"] % 2:
        text = ", ".join(wrong) or "odd head_dim, or attention heads that key-value heads do not divide"
        findings.error(f"impossible sizes: {text}", "no engine can build the drafter", "mend config.json")
        return None
    if config.hidden_act != "silu":
        findings.error(f"hidden_act is {config.hidden_act}", "vLLM and SGLang run silu alone", RETRAIN)
    if config.attention_bias:
        findings.error("attention_bias is true", "DFlash has no biases here", RETRAIN)
    if "sliding_attention" in (config.layer_types or []):
        findings.error(
            "layer_types holds sliding_attention",
            "vLLM and SGLang make those layers causal in a block, transformers does not, and here they are not built",
            "take a drafter whose layers all are full_attention",
        )
    if raw.get("tie_word_embeddings"):
        findings.warning(
            "tie_word_embeddings is true",
            "a DFlash drafter has neither embedding nor head; a loader that ties would look for both",
            "set it to false",
        )
    if raw.get("quantization_config"):
        findings.error("quantization_config: the weights are quantised", "they cannot be trained", "take the original")
    return config


def head_dim(config: PreTrainedConfig) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // max(1, config.num_attention_heads)


def rope_theta(raw: dict[str, Any], findings: Findings) -> float:
    """The base of the rotary embedding from either schema or both; 0 where there is none."""
    new, scaling = raw.get("rope_parameters") or {}, raw.get("rope_scaling") or {}
    if any(isinstance(value, dict) for value in new.values()):
        findings.error("rope_parameters differ by kind of layer", "one rope for all layers is built here", RETRAIN)
        return 0.0
    kinds = {table.get("rope_type", table.get("type", "default")) for table in (new, scaling)} - {"default"}
    if kinds:
        findings.error(f"rope type {', '.join(sorted(map(str, kinds)))}", "only plain rope is built here", RETRAIN)
    for place in (raw, new):
        if place.get("partial_rotary_factor", 1) != 1:
            factor = place["partial_rotary_factor"]
            findings.error(f"partial_rotary_factor {factor}", "speculators ignored it, we lack it", RETRAIN)
    thetas = {"rope_theta": raw.get("rope_theta"), "rope_parameters.rope_theta": new.get("rope_theta")}
    given = [value for value in thetas.values() if isinstance(value, int | float) and value > 0]
    if not given:
        findings.error(
            "no rope_theta, neither at the top level nor in rope_parameters",
            "transformers takes 10000, vLLM 1000000: acceptance falls and nothing fails",
            "write the value that the drafter was trained with into both",
        )
    elif len(set(given)) > 1:
        findings.error(
            f"rope_theta is {given[0]} at the top level and {given[1]} in rope_parameters",
            "transformers 4 reads the first, transformers 5 and vLLM the second: acceptance falls and nothing fails",
            "write the value that the drafter was trained with into both",
        )
    elif thetas["rope_theta"] is None:
        findings.warning(
            "rope_theta stands in rope_parameters alone",
            "transformers 4, which z-lab's code pins, takes 10000 instead",
            "write it at the top level too",
        )
    return float(given[0]) if given else 0.0


def agreed(key: str, places: dict[str, Any], effect: str, findings: Findings) -> int | None:
    """The number of a key that may stand in several places of config.json."""
    given = {place: value for place, value in places.items() if value is not None}
    wrong = [value for value in given.values() if isinstance(value, bool) or not isinstance(value, int)]
    if not given or wrong:
        what = f"{key} is {wrong[0]!r}" if wrong else f"no {key}"
        findings.error(what, effect, f"write a whole number to {' and to '.join(places)}")
        return None
    if len(set(given.values())) > 1:
        text = ", ".join(f"{value} in {place}" for place, value in given.items())
        findings.error(f"{key} is {text}", effect, "write the number that the drafter was trained with into each")
    return next(iter(given.values()))


def numbers(key: str, value: Any, findings: Findings) -> list[int]:
    """A list of layer ids, or none."""
    if isinstance(value, list) and value and all(isinstance(i, int) and not isinstance(i, bool) for i in value):
        return value
    findings.error(
        f"{key} is {value!r}",
        "engines fall back to layers that the drafter was not trained on, or refuse",
        "write the list of layers whose features the drafter was trained on",
    )
    return []
