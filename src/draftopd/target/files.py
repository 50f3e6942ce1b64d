"""What lies beside a target's architecture in its folder: whether its weights are whole, and what is not applied."""

import logging
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel

from draftopd.errors import DraftError

log = logging.getLogger(__name__)
NEUTRAL: dict[str, Any] = {
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1.0,
    "encoder_no_repeat_ngram_size": 0,
    "exponential_decay_length_penalty": None,
    "sequence_bias": None,
    "bad_words_ids": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "min_length": 0,
    "min_new_tokens": 0,
    "guidance_scale": 1.0,
    "watermarking_config": None,
    "num_beams": 1,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "top_h": None,
}
"""keys of generation_config.json that change which token `generate` takes and that no setting here stands for, each
with the value at which it changes nothing"""


def check_weights(path: str, model: PreTrainedModel, found: Mapping[str, Iterable[Any]]) -> None:
    """Refuses a model that is not just what its files hold.

    Args:
        found: transformers' loading info.

    Raises:
        DraftError: a tensor is missing (transformers fills it with random numbers), has another shape, is not a number,
            or is not used.
    """
    broken = [name for name, tensor in model.state_dict().items() if not _finite(tensor)]
    for names, fault in (
        (found["missing_keys"], "is missing: transformers would fill it with random numbers"),
        (found["mismatched_keys"], "has another shape than config.json says"),
        (broken, "holds NaN or infinite values"),
        (found["unexpected_keys"], "is in the file and no part of the model, which would then compute something else"),
    ):
        wrong = sorted(name if isinstance(name, str) else name[0] for name in names)
        if wrong:
            more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
            raise DraftError(f"the target at '{path}' is not whole: {wrong[0]}{more} {fault}; get or save it again")


def _finite(tensor: torch.Tensor) -> bool:
    if tensor.dtype not in (torch.float32, torch.bfloat16, torch.float16, torch.float64) or not tensor.numel():
        return True
    least, most = tensor.aminmax()  # NaN if one value is; without a copy of the size of the weights
    return bool(least.isfinite() & most.isfinite())


def warn_of_processors(path: str, config: GenerationConfig | None) -> None:
    """Names in one line what generation_config.json asks for and decoding here does not do."""
    given = {name: getattr(config, name, None) for name in NEUTRAL}
    unlike = [f"{name}={value}" for name, value in given.items() if value and value != NEUTRAL[name]]
    if unlike:
        log.warning(
            "%s: generation_config.json sets %s, which is applied here neither in plain nor in speculative decoding. "
            "transformers' generate() applies it, engines apply what they know of it: their texts differ from those "
            "that a drafter is trained and measured on, unless they are told to leave it out",
            path,
            ", ".join(unlike),
        )
