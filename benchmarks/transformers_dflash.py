"""Our DFlash drafter as an assistant of transformers' own DFlash decoding.

`model.generate(assistant_model=DFlashAssistant(drafter), speculation_type="dflash")`: transformers drafts, verifies and
accepts with its own loop and its own caches, and this module only answers its forward contract. Weights are shared.

transformers always reads the drafts off the target's full head, so a reduced draft vocabulary has no effect there. What
it hands over for the target's last decoder layer is normalized, and our feature is not: a drafter that reads that layer
would accept less there, and write the same text.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedConfig
from transformers.modeling_outputs import BaseModelOutput

from draftopd.drafters.dflash import DFlash
from draftopd.drafters.layers import Attention, rotate


class DFlashAssistant(nn.Module):
    def __init__(self, drafter: DFlash) -> None:
        super().__init__()
        self.drafter = drafter.eval()
        self.config = PreTrainedConfig(
            num_hidden_layers=len(drafter.layers),
            target_layer_ids=list(drafter.layer_ids),
            block_size=drafter.block_size,
            mask_token_id=drafter.mask_token_id,
        )

    @property
    def device(self) -> torch.device:
        return self.drafter.fc.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.drafter.fc.weight.dtype

    def forward(
        self,
        noise_embeds: Tensor,
        context_hidden_states: Tensor,
        position_ids: Tensor,
        attention_mask: Tensor | None,
        past_key_values: DynamicCache,
    ) -> BaseModelOutput:
        """Hidden states [1, W, D] of a block, slot 0 its anchor.

        Args:
            noise_embeds: [1, W, D] embeddings of [anchor, mask, ..., mask].
            context_hidden_states: [1, R, F] features of the tokens committed since the last block.
            position_ids: [1, R + W] of those tokens and of the block.
            attention_mask: [1, text + W], 0 = padding; None where nothing is padded.
            past_key_values: text so far; the caller crops the block off it before the next one.
        """
        context = self.drafter.hidden_norm(self.drafter.fc(context_hidden_states.to(self.dtype)))
        positions = position_ids[:, context.shape[1] :]
        mask = None if attention_mask is None else attention_mask[:, None, None].bool()
        x = noise_embeds.to(self.dtype)
        for index, layer in enumerate(self.drafter.layers):
            block = layer.input_layernorm(x)
            keys, values = layer.self_attn.keys_values(torch.cat([context, block], 1), position_ids)
            seen = past_key_values.update(keys.transpose(1, 2), values.transpose(1, 2), index)
            x = x + attend(layer.self_attn, block, positions, seen, mask)
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        return BaseModelOutput(last_hidden_state=self.drafter.norm(x))


def attend(
    attention: Attention, block: Tensor, positions: Tensor, seen: tuple[Tensor, Tensor], mask: Tensor | None
) -> Tensor:
    """The drafter's attention of a block [1, W, D] over keys and values that a cache has put together."""
    query = attention.q_norm(attention.q_proj(block).unflatten(-1, (-1, attention.head_dim)))
    query = rotate(query, positions, attention.rope_theta).transpose(1, 2)
    out = F.scaled_dot_product_attention(query, *seen, attn_mask=mask, enable_gqa=True)
    return attention.o_proj(out.transpose(1, 2).flatten(2))
