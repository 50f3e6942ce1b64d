"""DeepSpec's layout of DSpark, which vLLM and SGLang load: config.json of a Qwen3 model with DSpark's keys beside it.

The file carries copies of the target's embedding and head, which DeepSpec and SGLang look for. Layer ids are 0-based
layer outputs, as ours.
"""

from typing import Any

from draftopd.checkpoints import fields, layer_config
from draftopd.checkpoints.findings import Findings
from draftopd.checkpoints.layouts import dspark_common
from draftopd.checkpoints.spec import DrafterSpec, Layout
from draftopd.drafters.dspark import DSpark

ARCHITECTURE = "Qwen3DSparkModel"
NUM_ANCHORS = 512  # of DeepSpec's configs; its model asks for the key


def recognises(config: dict[str, Any]) -> bool:
    return ARCHITECTURE in fields.names(config.get("architectures"))


def compose(spec: DrafterSpec, dtype: str) -> dict[str, Any]:
    config = {
        "architectures": [ARCHITECTURE],
        **layer_config.compose(spec),
        "dtype": dtype,
        "num_target_layers": spec.target_layers,
        **dspark_common.compose(spec),
        "target_layer_ids": list(spec.layer_ids),
        "num_anchors": NUM_ANCHORS,
        "target_name_or_path": spec.target_name,
        "target_architectures": list(spec.target_architectures),
        "target_fingerprint": spec.target_fingerprint,
    }
    return config if spec.draft_vocab_size is None else config | {"draft_vocab_size": spec.draft_vocab_size}


def parse(config: dict[str, Any], findings: Findings, _depth: int | None = None) -> DrafterSpec | None:
    base, theta = layer_config.parse(config, DSpark, findings), fields.rope_theta(config, findings)
    block = dspark_common.block_size(config, findings)
    mask = fields.agreed(
        "mask_token_id", {"the top level": config.get("mask_token_id")}, "SGLang and DeepSpec stop", findings
    )
    spec = layer_config.spec(
        DSpark,
        base,
        config,
        rope_theta=theta,
        block_size=block,
        layer_ids=fields.numbers("target_layer_ids", config.get("target_layer_ids"), findings),
        target_layers=fields.depth(config, findings),
        target=fields.named_target(config, findings),
        mask_token_id=mask,
    )
    return dspark_common.with_heads(spec, config, findings)


DEEPSPEC = Layout(
    "deepspec",
    DSpark,
    recognises,
    parse,
    compose,
    reduced=("d2t", "lm_head.weight"),
    carried=("embed_tokens.weight", "lm_head.weight"),
)
