"""What both layouts of EAGLE-3 share: the target's layers, and variants that are not supported."""

from typing import Any

from transformers import PreTrainedConfig

from draftopd.checkpoints import fields
from draftopd.checkpoints.findings import Findings
from draftopd.drafters.eagle3 import default_layer_ids

LAYERS = "eagle_aux_hidden_state_layer_ids"
THETA = 10000.0  # rope base of a Llama that names none; EAGLE's own files name none
# engines read these keys at the top level or in eagle_config
VARIANTS = {
    "norm_before_residual": "the residual stream starts after hidden_norm",
    "norm_before_fc": "a norm on the joined features",
    "fc_norm": "EAGLE-3.1's norms on the features",
    "use_aux_norm": "EAGLE-3.1's norms on the features",
    "norm_output": "EAGLE-3.1 feeds back what the final norm gives",
    "return_hidden_post_norm": "EAGLE-3.1 feeds back what the final norm gives",
    "bias": "fc with a bias",
    "mlp_bias": "an MLP with biases",
    "parallel_drafting": "P-EAGLE",
}


def variants(places: list[dict[str, Any]], base: PreTrainedConfig | None, findings: Findings) -> None:
    """Keys of other drafters in `places`, the objects of config.json where engines look, or other layers."""
    if base is None:
        return
    layers, size = base.num_hidden_layers, base.hidden_size
    for key, what in VARIANTS.items():
        if any(place.get(key) for place in places):
            findings.error(f"{key} is set: {what}", "only plain EAGLE-3 is supported here", fields.OTHER)
    if layers != 1:
        findings.error(
            f"num_hidden_layers is {layers}", "SGLang refuses it, only one layer is supported here", fields.OTHER
        )
    wide = next((p["target_hidden_size"] for p in places if p.get("target_hidden_size") not in (None, size)), None)
    if wide is not None:
        findings.error(
            f"target_hidden_size {wide} beside hidden_size {size}",
            "a drafter narrower than its target brings an embedding of its own, which is not supported here",
            fields.OTHER,
        )


def layer_ids(before: Any, depth: int | None, findings: Findings) -> list[int]:
    """0-based layer outputs from ids that count the hidden states before a layer, as vLLM does; empty after an error.

    Without ids every engine takes the layers of EAGLE's own code, so the target's depth tells them.
    """
    if before is not None:
        return fields.outputs(LAYERS, before, "SGLang's", findings)
    ids = default_layer_ids(depth or 0)
    if not ids:
        findings.error(
            f"no {LAYERS}, and no depth of a target to derive EAGLE's layers 1, L / 2 - 1 and L - 4 from",
            "vLLM and SGLang take those of any target that they serve",
            "write the ids, or num_target_layers; evaluate and export take target= as well",
        )
    return ids


def count(ids: list[int], told: int, findings: Findings) -> None:
    """`told` is the number of layers that vLLM finds in the file; 3 where it finds none."""
    if ids and told != len(ids):
        findings.warning(
            f"{len(ids)} layers, where vLLM finds {told}",
            "it makes fc for that many and stops",
            f"write num_aux_hidden_states {len(ids)} beside hidden_size",
        )
