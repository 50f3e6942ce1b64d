"""Which models can be targets. Others are refused, with the cause, before anything is written or trained."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from draftopd.errors import DraftError
from draftopd.target.cache import RaggedCache
from draftopd.trace import ReplayBatch

if TYPE_CHECKING:
    from draftopd.target.model import Target

FIXED_ROPES = {"default", "linear", "yarn", "llama3", "proportional"}
"""rope types of transformers whose angles depend on the position alone"""
LENGTH, WINDOW = 8, 2  # tokens of the probe, and the sliding window that it sets


def ropes(config: PreTrainedConfig) -> list[dict[str, Any]]:
    """The rope parameters of each kind of layer; none where the model has no rotary position embedding."""
    given = getattr(config, "rope_parameters", None) or {}
    nested = [value for value in given.values() if isinstance(value, dict)]
    return nested or ([given] if given else [])


def longest_text(config: PreTrainedConfig) -> int | None:
    """Positions up to which rope's angles depend on the position alone; None = all.

    `dynamic` and `longrope` turn all positions of all texts in a batch by other angles as soon as one text grows beyond
    its original length. Beyond it, what a text becomes would depend on the texts beside it and on drafts.

    Raises:
        DraftError: a rope type that is not known here.
    """
    limits = []
    for rope in ropes(config):
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind == "longrope":
            limits.append(rope["original_max_position_embeddings"])
        elif kind == "dynamic":
            limits.append(config.max_position_embeddings)
        elif kind not in FIXED_ROPES:
            raise DraftError(
                f"this target is not supported: its rope type '{kind}' may depend on the length of a text (known are "
                f"{', '.join(sorted(FIXED_ROPES))}, dynamic, longrope)"
            )
    return min(limits, default=None)


def check_model(model: PreTrainedModel) -> None:
    """Raises DraftError where the decoder is of another kind than can be read, verified with and rolled back here."""
    name, body, head = type(model).__name__, model.get_decoder(), model.get_output_embeddings()
    if not isinstance(getattr(body, "layers", None), torch.nn.ModuleList):
        raise DraftError(f"{name} is not supported: its decoder has no list named 'layers'")
    if head is None:
        raise DraftError(f"{name} is not supported: it has no output head")
    config = model.config.get_text_config()
    if not ropes(config):
        raise DraftError(
            f"{name} is not supported: its config has no rope_parameters, and drafters take the target's rotary "
            "position embedding"
        )
    unknown = set(getattr(config, "layer_types", None) or []) - {"full_attention", "sliding_attention"}
    if unknown:
        raise DraftError(
            f"the target's layers of type {', '.join(sorted(unknown))} cannot be rolled back after a rejected "
            "draft; targets need full or sliding-window attention in every layer"
        )


@torch.no_grad()
def check_forward(target: "Target") -> None:
    """Compares a target's own forward with ours: under masks, in a cache that is rolled back, and in a replay.

    A sliding window that the config names and the model does not use is dropped.

    Raises:
        DraftError: they differ, or the model stops.
    """
    name = type(target.model).__name__
    try:
        with _short_window(target):
            wrong = _difference(target)
    except Exception as error:  # whatever the code of a model raises
        reason = " ".join(str(error).split())[:160]
        raise DraftError(
            f"{name} is not supported: a forward with our masks, positions and cache stops with "
            f"{type(error).__name__}: {reason}"
        ) from error
    if wrong:
        raise DraftError(f"{name} is not supported: {wrong}")


@contextmanager
def _short_window(target: "Target") -> Iterator[None]:
    """A sliding window that even a short text reaches, where the target has one."""
    window = target.window
    if window is None:
        yield
        return
    target.window = target.config.sliding_window = WINDOW
    try:
        yield
    finally:
        target.config.sliding_window = window
        target.window = None if target.window is None else window


def _difference(target: "Target") -> str | None:
    """What a forward of ours does otherwise than the model's own; None = nothing."""
    text = torch.arange(LENGTH, device=target.device) + target.vocab_size // 2
    tokens = torch.stack([text, text.flip(0)]) % min(target.vocab_size, target.embed_rows)
    seen: list[Tensor] = []
    with target.body.register_forward_hook(lambda module, inputs, output: seen.append(output.last_hidden_state)):
        logits = target.model(tokens, use_cache=False).logits
    theirs = seen[0]
    ours = target.head()(theirs)
    if not torch.allclose(ours, logits.to(ours.dtype), atol=1e-2, rtol=1e-2):
        return "it does more between its last hidden state and its logits than a linear head, a scale and a soft cap"
    layers = range(len(target.body.layers))
    hidden, features = target.read(tokens, layers)
    if features.shape != (*tokens.shape, len(layers) * target.config.hidden_size):
        return f"its {len(layers)} layers have outputs {list(features.shape)} together, not one vector a token each"
    if not _same(hidden, theirs) and target.window is not None:
        target.window = None
        hidden, _ = target.read(tokens)
    if not _same(hidden, theirs):
        return "under our masks and positions it computes other hidden states than by itself"
    if not _same(_in_steps(target, tokens), hidden):
        return "with a cache that is rolled back it computes other hidden states than without"
    if not _same(_replayed(target, tokens), hidden[:, LENGTH // 2 - 1 : -1]):
        return "with drafts beside a text it computes other hidden states than with these drafts in the text"
    return None


def _in_steps(target: "Target", tokens: Tensor) -> Tensor:
    """Hidden states [2, 8, D] as a rollout computes them: a prefill, blocks after rejections, a single token."""
    half, last = LENGTH // 2, LENGTH - 1
    cache = RaggedCache(len(tokens), LENGTH, target.device)
    hidden, _ = target.step(torch.cat([tokens[:, :half], tokens[:, : half - 1]], 1), cache)
    cache.lengths = torch.tensor([half, half - 1], device=tokens.device)  # what comes after them was rejected
    index = cache.lengths[:, None] + torch.arange(half, device=tokens.device)
    block, _ = target.step(tokens.gather(1, index), cache)
    cache.lengths = torch.full_like(cache.lengths, last)
    single, _ = target.step(tokens[:, last:], cache)
    states = torch.cat([hidden[:, :half], torch.zeros_like(block)], 1)
    states = states.scatter(1, index[..., None].expand_as(block), block)
    return torch.cat([states[:, :last], single], 1)


def _replayed(target: "Target", tokens: Tensor) -> Tensor:
    """Hidden states [2, 4, D] of the second half of the tokens as rejected drafts, beside a text with other tokens."""
    half = LENGTH // 2
    zero, one = torch.zeros_like(tokens[:, :1]), torch.ones_like(tokens[:, :1])
    batch = ReplayBatch(
        tokens=torch.cat([tokens[:, :half], tokens[:, :half]], 1),
        anchors=(half - 1) * one,
        drafts=tokens[:, None, half:],
        accepted=zero,
        drafted=half * one,
        lengths=LENGTH * one[:, 0],
        drafter_step=zero[:, 0],
    )
    hidden = target.replay(batch, ()).target_hidden
    assert hidden is not None
    return hidden[:, 0]


def _same(ours: Tensor, theirs: Tensor) -> bool:
    """Rows [B, R, D] agree: all in float32; in half precision, where kernels differ more, by and large."""
    error = (ours - theirs).float().norm(dim=-1) / theirs.float().norm(dim=-1).clamp(min=1e-9)
    exact = ours.dtype in (torch.float32, torch.float64)
    return bool(error.max() < 1e-2 if exact else error.median() < 0.25)
