"""The frozen language model whose text is to be written faster."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from draftopd.blocks import Tails, branch_mask, causal_mask
from draftopd.errors import DraftError
from draftopd.target.cache import RaggedCache
from draftopd.target.cpu.frozen import GROUPED, replace_layers
from draftopd.target.cpu.linear import Module, Packed, accelerate, linear
from draftopd.target.family import check_forward, check_model, longest_text
from draftopd.target.head import Head, TargetShape
from draftopd.target.tokens import check_ids, free_row, stop_ids
from draftopd.trace import ReplayBatch


class Taps:
    """Outputs of decoder layers. Its hooks stay, because a compiled forward does not see those that come later."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        self.wanted: tuple[int, ...] = ()
        self._outputs: dict[int, Tensor] = {}
        for index, layer in enumerate(layers):
            layer.register_forward_hook(partial(self._keep, index))

    def _keep(self, index: int, _layer: nn.Module, _inputs: Any, output: Any) -> None:
        if index in self.wanted:
            self._outputs[index] = output[0] if isinstance(output, tuple) else output

    def take(self) -> dict[int, Tensor]:
        """Those that were wanted; from now on none is."""
        outputs, self._outputs, self.wanted = self._outputs, {}, ()
        return outputs


class Target(nn.Module):
    """A frozen causal LM of transformers: it prefills, verifies and replays, and lends its embedding and head.

    Args:
        model: any decoder-only causal LM with rotary positions and full or sliding-window attention.
        tokenizer: its tokenizer, with its chat template if it has one.
        mask_token_id: a row of the embedding table that never occurs in text; DFlash's mask token. By default the
            first row after the tokenizer's own tokens, or else a row between them.
        cpu_layers: puts faster layers for float32 on x86 processors (`cpu/`) into `model`. None: where they work,
            decided by the weights' dtype and device now; on a GPU later their products are torch's.

    Raises:
        DraftError: text of this model could not be written exactly (`family.py`), or a token id is outside its tables.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        mask_token_id: int | None = None,
        cpu_layers: bool | None = None,
    ) -> None:
        super().__init__()
        model.requires_grad_(False)
        self.cpu_layers = replace_layers(model, cpu_layers)
        attention = model.config._attn_implementation
        self.attention = "sdpa" if attention == GROUPED else attention
        if self.attention not in ("sdpa", "eager"):
            raise DraftError("target.attention must be sdpa or eager: replay needs masks of its own")
        self.model = model.eval()
        self._packed_head = Packed()
        self.tokenizer = tokenizer
        check_model(model)
        self.body: Any = model.get_decoder()
        self._taps = Taps(self.body.layers)
        self.config = model.config.get_text_config()
        self.window: int | None = getattr(self.config, "sliding_window", None)
        self.layer_types: list[str] = getattr(self.config, "layer_types", None) or []
        self.longest_text = longest_text(self.config)
        self.mask_token_id = free_row(tokenizer, self.embed_rows) if mask_token_id is None else mask_token_id
        if not 0 <= self.mask_token_id < self.embed_rows:
            raise DraftError(
                f"mask token {self.mask_token_id} is outside the target's embedding table of {self.embed_rows} rows: "
                "set target.mask_token_id to a token that never occurs in text"
            )
        self.shape = TargetShape.of(self.config, self.vocab_size, self.mask_token_id)
        _ = self.stop_tokens  # refuses wrong ones now
        if self.device.type != "meta":
            check_forward(self)

    def train(self, mode: bool = True) -> "Target":
        return super().train(False)  # frozen: no dropout, whatever Lightning asks for

    def adopt(self, drafter: Module) -> Module:
        """Gives a drafter the same kind of linear layers, over its own weights."""
        return accelerate(drafter) if self.cpu_layers else drafter

    @property
    def embed_rows(self) -> int:
        return self.model.get_input_embeddings().weight.shape[0]

    @property
    def device(self) -> torch.device:
        return self.model.get_input_embeddings().weight.device

    @property
    def vocab_size(self) -> int:
        return self.model.get_output_embeddings().weight.shape[0]

    @cached_property
    def linear_weights(self) -> int:
        """Multiply-adds of one row in the body's linear layers."""
        return sum(m.weight.numel() for m in self.body.modules() if isinstance(m, nn.Linear))

    @cached_property
    def stop_tokens(self) -> Tensor:
        """[S] ids that end a response."""
        given = getattr(self.model.generation_config, "eos_token_id", None)
        given = self.tokenizer.eos_token_id if given is None else given
        return torch.tensor(stop_ids(given, self.vocab_size), dtype=torch.long)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of weights and tokenizer, 16 hex digits: tells which target a drafter was trained for."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        vocabulary = sorted(self.tokenizer.get_vocab().items(), key=lambda item: item[1])
        digest.update(repr((vocabulary, self.tokenizer.chat_template)).encode())
        return digest.hexdigest()[:16]

    def check_prompts(self, prompts: Sequence[Sequence[int]], room: int) -> None:
        """Before anything is written: `room` is the number of positions that are wanted after each prompt.

        Raises:
            DraftError: a token is outside the embedding table, or a text may outgrow the length up to which rope is
                fixed.
        """
        check_ids(prompts, self.embed_rows, self.tokenizer)
        self._check_length(max(map(len, prompts)) + room)

    def _check_length(self, length: int) -> None:
        if self.longest_text is not None and length > self.longest_text:
            raise DraftError(
                f"texts may take {length} positions, and beyond {self.longest_text} this target's rope depends on the "
                "longest text of a batch, so that a text would not be what the target writes by itself: lower "
                "decoding.max_new_tokens, or leave long prompts out (data.batching.max_prompt_length)"
            )

    def embed(self, tokens: Tensor) -> Tensor:
        return self.model.get_input_embeddings()(tokens)

    def head(self, vocabulary: Tensor | None = None) -> Head:
        """The output head, restricted to a draft vocabulary [V'] of token ids where one is given."""
        config = self.config  # Granite divides by logits_scaling, Cohere multiplies by logit_scale, Gemma caps
        scale = getattr(config, "logit_scale", None) or 1.0 / (getattr(config, "logits_scaling", None) or 1.0)
        softcap = getattr(config, "final_logit_softcapping", None)
        output = self.model.get_output_embeddings()
        weight, bias = output.weight, output.bias
        if vocabulary is not None:
            weight, bias = weight[vocabulary], None if bias is None else bias[vocabulary]
        packed = self._packed_head if vocabulary is None else Packed()
        product = partial(linear, packed=packed) if self.cpu_layers else F.linear
        return Head(weight, bias, scale, softcap, vocabulary, product)

    def _masks(self, visible: Tensor, query: Tensor, key: Tensor) -> Tensor | dict[str, Tensor]:
        """A visibility mask as transformers takes it: additive for eager attention, a dict if kinds of layers mix."""
        near = visible
        if self.window is not None:
            near = visible & (query[..., :, None] - key[..., None, :] < self.window)[:, None]
        if self.attention == "eager":
            dtype = self.model.dtype
            visible, near = ((~mask).to(dtype) * torch.finfo(dtype).min for mask in (visible, near))
        if "sliding_attention" in self.layer_types:
            return {"full_attention": visible, "sliding_attention": near}
        return visible if self.layer_types else near

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        visible: Tensor | None,
        key_positions: Tensor,
        layer_ids: Sequence[int] = (),
        cache: RaggedCache | None = None,
    ) -> tuple[Tensor, Tensor]:
        """One forward under an explicit mask.

        Args:
            tokens, positions: [B, R]. visible: bool [B, 1, R, S], None = all of them. key_positions: [B, S].
            layer_ids: decoder layers (0-based) whose outputs are the features; the number of layers means `hidden`.

        Returns:
            hidden [B, R, D], ready for the head, and features [B, R, len(layer_ids) * D].

        Raises:
            DraftError: a position is beyond `longest_text`.
        """
        fixed = cache is not None and cache.fixed
        if self.longest_text is not None and not fixed:
            self._check_length(int(positions.max()) + 1)
        self._taps.wanted = tuple(layer_ids)
        hidden = self.body(
            input_ids=tokens,
            position_ids=positions,
            attention_mask=None if visible is None else self._masks(visible, positions, key_positions),
            past_key_values=cache,
            use_cache=cache is not None,
        ).last_hidden_state
        taps = self._taps.take() | {len(self.body.layers): hidden}
        return hidden, torch.cat([taps[i] for i in layer_ids], -1) if layer_ids else hidden[..., :0]

    @torch.no_grad()
    def step(self, tokens: Tensor, cache: RaggedCache, layer_ids: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
        """Prefill or verification: tokens [B, W] after each row's length. The caller moves `cache.lengths`."""
        positions = cache.begin(tokens.shape[1])
        slots = torch.arange(cache.end, device=tokens.device).expand(len(tokens), -1)
        # without a mask, attention need not repeat its keys for grouped queries
        everything = tokens.shape[1] == 1 and cache.even and self.attention == "sdpa" and self.window is None
        visible = None if everything else causal_mask(positions, cache.end)
        return self(tokens, positions, visible, slots, layer_ids, cache)

    @torch.no_grad()
    def read(self, tokens: Tensor, layer_ids: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
        """Hidden states and features of whole texts [B, T], right-padded."""
        positions = torch.arange(tokens.shape[1], device=tokens.device).expand(len(tokens), -1)
        return self(tokens, positions, causal_mask(positions, tokens.shape[1]), positions, layer_ids)

    @torch.no_grad()
    def replay(self, batch: ReplayBatch, layer_ids: Sequence[int]) -> ReplayBatch:
        """The target's opinion of a batch: fills in features [B, T, F] and target_hidden [B, N, K, D].

        Draft k is verified by the row that has read everything before it. Up to the first rejection that is a row of
        the committed text. After it the prefix holds rejected drafts: those tails are extra rows beside the text,
        causal inside the tail (arXiv 2605.29343, section on replay).
        """
        length = batch.tokens.shape[1]
        start = batch.anchors + batch.accepted + 1  # position of the first rejected draft
        tail = Tails(batch)
        tokens = torch.cat([batch.tokens, tail.tokens], 1)
        text = torch.arange(length, device=tokens.device).expand(len(tokens), -1)
        positions = torch.cat([text, tail.positions], 1)
        tail_rows = branch_mask(start.gather(1, tail.block.clamp(min=0)), tail.block, length, causal=True)
        text_rows = F.pad(causal_mask(text, length), (0, tail.tokens.shape[1]))
        hidden, features = self(tokens, positions, torch.cat([text_rows, tail_rows], 2), positions, layer_ids)
        slots = torch.arange(batch.drafts.shape[2], device=tokens.device)
        in_text = (batch.anchors[..., None] + slots).clamp(max=length - 1)
        index = torch.where(slots <= batch.accepted[..., None], in_text, length + tail.row_of)
        index = index.clamp(max=hidden.shape[1] - 1)  # slots that are not supervised point anywhere
        picked = hidden.gather(1, index.flatten(1)[..., None].expand(-1, -1, hidden.shape[-1]))
        return replace(batch, features=features[:, :length], target_hidden=picked.unflatten(1, index.shape[1:]))
