"""The ways to decode that `decode.py` compares: each takes prompts and gives back their texts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from benchmarks.bench import as_it_comes, full_head, stock
from benchmarks.transformers_dflash import DFlashAssistant
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from draftopd.decoding.ledger import Ledger
from draftopd.decoding.rollout import rollout
from draftopd.decoding.settings import Decoding
from draftopd.drafters.base import Drafter
from draftopd.drafters.dflash import DFlash
from draftopd.errors import DraftError
from draftopd.target.model import Target
from draftopd.trace import Trace

BATCH_SIZES = (1, 4, 8, 16)


@dataclass(frozen=True)
class Pass:
    """What one system made of the prompts."""

    texts: list[list[int]]
    """prompt and response, in the order of the prompts"""
    committed: list[list[int]] = field(default_factory=list)
    """tokens of each verification, bonus included, by response; empty where they are not known"""
    seconds: dict[str, float] = field(default_factory=dict)
    """of `prefill` and `decode`, where they are known apart"""
    traces: list[Trace] = field(default_factory=list)

    @property
    def acceptance_length(self) -> float | None:
        """Mean over the responses in which something was drafted."""
        lengths = [sum(counts) / len(counts) for counts in self.committed if counts]
        return sum(lengths) / len(lengths) if lengths else None


Prompts = Sequence[Sequence[int]]
System = Callable[[Prompts], Pass]


def systems(target: Target, drafter: Drafter, max_new_tokens: int) -> dict[str, System]:
    """All systems by name; at temperature 0 every one of them writes the target's greedy text.

    Raises:
        DraftError: transformers cannot run this kind of drafter.
    """
    if type(drafter) is not DFlash:
        raise DraftError(f"transformers has no counterpart of {type(drafter).__name__}: give a DFlash drafter")
    model, assistant = as_it_comes(target), DFlashAssistant(stock(drafter))
    plain, lookup = greedy(target, max_new_tokens), greedy(target, max_new_tokens)
    lookup.prompt_lookup_num_tokens = drafter.num_draft_tokens
    dflash = greedy(target, max_new_tokens)
    dflash.speculation_type = "dflash"
    batches = {f"ours_batch{size}": ours(target, drafter, max_new_tokens, size) for size in BATCH_SIZES}
    return {  # what is compared stands near each other: the speed of many machines drifts within minutes
        "transformers_our_layers": theirs(target.model, plain),
        "transformers": theirs(model, plain),
        "plain": ours(target, None, max_new_tokens),
        "ours_batch1": batches.pop("ours_batch1"),
        "ours_batch8": batches.pop("ours_batch8"),
        "transformers_dflash": theirs(model, dflash, assistant),
        "transformers_dflash_our_layers": theirs(target.model, dflash, DFlashAssistant(drafter)),
        "ours_batch1_full_head": ours(target, full_head(drafter), max_new_tokens),
        "prompt_lookup": theirs(model, lookup),
        **batches,
    }


def ours(
    target: Target, drafter: Drafter | None, max_new_tokens: int, batch_size: int = 1, compile: bool | str = False
) -> System:
    """Our rollouts; plain decoding where there is no drafter."""
    decoding = Decoding(max_new_tokens, batch_size, compile=compile)

    def decode(prompts: Prompts) -> Pass:
        ledger = Ledger()
        traces = [result.trace for result in rollout(target, drafter, prompts, decoding, ledger=ledger)]
        texts = [trace.tokens.tolist() for trace in traces]
        return Pass(texts, [trace.committed.tolist() for trace in traces], dict(ledger.seconds), traces)

    return decode


def greedy(target: Target, max_new_tokens: int) -> GenerationConfig:
    stop = target.stop_tokens.tolist()
    return GenerationConfig(
        max_new_tokens=max_new_tokens, do_sample=False, eos_token_id=stop or None, pad_token_id=stop[0] if stop else 0
    )


def theirs(model: PreTrainedModel, config: GenerationConfig, assistant: DFlashAssistant | None = None) -> System:
    """transformers' `generate`, one prompt at a time: its assisted decoding knows no batches."""

    def decode(prompts: Prompts) -> Pass:
        texts, committed = [], []
        for prompt in prompts:
            ids = torch.tensor([prompt], device=model.device)
            counter = None if assistant is None else Committed()
            out = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                generation_config=config,
                assistant_model=assistant,
                streamer=counter,
            )
            texts.append(out[0].tolist())
            if counter is not None:
                committed.append(counter.counts[2:])
        return Pass(texts, committed)

    return decode


class Committed(BaseStreamer):
    """Counts tokens as `generate` hands them out: the prompt, the prefill's token, then those of each verification."""

    def __init__(self) -> None:
        self.counts: list[int] = []

    def put(self, value: Tensor) -> None:
        self.counts.append(value.numel())

    def end(self) -> None:
        pass
