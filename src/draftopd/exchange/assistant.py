"""Our DFlash drafter as transformers' own DFlash model, an assistant for `generate`.

target.model.generate(ids, assistant_model=to_transformers(drafter, target), speculation_type="dflash")
"""

from typing import Any

from transformers import PreTrainedModel

from draftopd.drafters.base import Drafter
from draftopd.errors import DraftError
from draftopd.exchange.sheet import Sheet
from draftopd.target import Target

RENAMES = {"fc.weight": "encoder.fc.weight", "hidden_norm.weight": "encoder.output_norm_enc.weight"}


def to_transformers(drafter: Drafter, target: Target) -> PreTrainedModel:
    """A copy of the drafter as a `MuseGlimmerAssistantModel`, which other DFlash drafters fit into as well.

    transformers reads drafts off the target's whole head: a reduced draft vocabulary has no effect there, and the
    drafter accepts what it would accept here with `d2t = None`.

    Raises:
        DraftError: this transformers has no DFlash, or would hand the drafter other features than it was trained on.
    """
    sheet = Sheet.of(drafter, target)
    last = target.shape.num_layers - 1
    if last in sheet.layer_ids:
        raise DraftError(
            f"the drafter reads the output of the target's last layer ({last}), and transformers hands that one over "
            "behind the final norm: train one with other drafter.layer_ids"
        )
    try:
        from transformers import MuseGlimmerAssistantConfig, MuseGlimmerAssistantModel
    except ImportError as error:
        raise DraftError("this transformers has no DFlash model: install transformers 5.23 or later") from error
    model = MuseGlimmerAssistantModel(MuseGlimmerAssistantConfig(**_config(sheet)))
    weights = drafter.state_dict()
    weights.pop("d2t", None)
    model.load_state_dict({RENAMES.get(name, name): value for name, value in weights.items()})
    dtype = next(drafter.parameters()).dtype
    return model.to(device=target.device, dtype=dtype).eval()  # type: ignore[call-arg]  # its decorator hides self


def _config(sheet: Sheet) -> dict[str, Any]:
    return {
        "hidden_size": sheet.hidden_size,
        "intermediate_size": sheet.intermediate_size,
        "num_hidden_layers": sheet.num_layers,
        "num_attention_heads": sheet.num_attention_heads,
        "num_key_value_heads": sheet.num_key_value_heads,
        "head_dim": sheet.head_dim,
        "rms_norm_eps": sheet.rms_norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": sheet.rope_theta},
        "max_position_embeddings": sheet.max_position_embeddings,
        "layer_types": ["full_attention"] * sheet.num_layers,  # its default is sliding windows
        "block_size": sheet.block_size,
        "mask_token_id": sheet.mask_token_id,
        "target_layer_ids": list(sheet.layer_ids),
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
