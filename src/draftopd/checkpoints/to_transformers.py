"""Our DFlash drafter as transformers' own DFlash model, an assistant for `generate`.

target.model.generate(ids, assistant_model=to_transformers(drafter, target), speculation_type="dflash")
"""

from transformers import PreTrainedModel

from draftopd.checkpoints.layer_config import sizes
from draftopd.checkpoints.spec import DrafterSpec
from draftopd.drafters.base import Drafter
from draftopd.drafters.dflash import DFlash
from draftopd.errors import DraftError
from draftopd.target.model import Target

RENAMES = {"fc.weight": "encoder.fc.weight", "hidden_norm.weight": "encoder.output_norm_enc.weight"}


def to_transformers(drafter: Drafter, target: Target) -> PreTrainedModel:
    """A copy of the drafter as a `MuseGlimmerAssistantModel`, which other DFlash drafters fit into as well.

    transformers reads drafts off the target's whole head: a reduced draft vocabulary has no effect there, and the
    target accepts what it would accept here with `d2t = None`.

    Raises:
        DraftError: no DFlash drafter, this transformers has no DFlash, or would hand the drafter other features than it
            was trained on.
    """
    spec = DrafterSpec.of(drafter, target)
    if spec.kind is not DFlash:
        raise DraftError(f"transformers has no model for {spec.kind.__name__} drafters: serve it with vLLM or SGLang")
    if spec.window is not None:
        raise DraftError(f"drafter.window={spec.window} is not handed to transformers: export it for vLLM")
    last = target.shape.num_layers - 1
    if last in spec.layer_ids:
        raise DraftError(
            f"the drafter reads the output of the target's last layer ({last}), and transformers passes that one on "
            "after the final norm: train one with other drafter.layer_ids"
        )
    try:
        from transformers import MuseGlimmerAssistantConfig, MuseGlimmerAssistantModel
    except ImportError as error:
        raise DraftError("this transformers has no DFlash model: install transformers 5.23 or later") from error
    config = MuseGlimmerAssistantConfig(
        **sizes(spec),
        layer_types=["full_attention"] * spec.num_layers,  # its default is sliding windows
        block_size=spec.block_size,
        mask_token_id=spec.shape.mask_token_id,
        target_layer_ids=list(spec.layer_ids),
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    model = MuseGlimmerAssistantModel(config)
    weights = drafter.state_dict()
    weights.pop("d2t", None)
    model.load_state_dict({RENAMES.get(name, name): value for name, value in weights.items()})
    dtype = next(drafter.parameters()).dtype
    return model.to(device=target.device, dtype=dtype).eval()  # type: ignore[call-arg]  # its decorator hides self
