"""What one stage has to do, by the ledger's formulas on made-up texts: nothing is trained and nothing is written."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from omegaconf import DictConfig

from draftopd.decoding.ledger import Ledger
from draftopd.decoding.memory import row_bytes
from draftopd.drafters.base import Drafter
from draftopd.trace import ReplayBatch, Trace, collate, text_blocks
from draftopd.training.budget import Budget
from draftopd.training.datamodule import DraftDataModule
from draftopd.training.mixture import MixedDataModule
from draftopd.training.module import DraftModule
from draftopd.training.on_policy import OnPolicyDataModule
from draftopd.training.trace_sources import Redrafts

ACCEPTANCE = 3.0  # tokens a verification, assumed: nobody knows τ before it is measured
SAMPLE = 64  # texts whose length is that of all


@dataclass(frozen=True)
class Load:
    """Of one stage.

    Args:
        texts: that the target has yet to write; `written` tokens at most.
        response: tokens of a text, prompt aside; the longest where no text is there yet.
        steps, flops: of training, None where only the clock ends it.
        minutes: limit of the budget.
        tested: tokens of the answers to the test prompts.
        memory, disk: bytes.
    """

    name: str
    texts: int
    written: float
    response: float
    steps: float | None
    flops: float | None
    minutes: float | None
    tested: float
    memory: float
    disk: float


@contextmanager
def attached(data: DraftDataModule, module: DraftModule) -> Iterator[None]:
    """The data know the module inside, without a trainer that is at work."""
    data.trainer = SimpleNamespace(lightning_module=module, current_epoch=0)  # type: ignore[assignment]
    try:
        yield
    finally:
        data.trainer = None


def load(config: DictConfig, data: DraftDataModule, module: DraftModule, test: Mapping[str, int | None]) -> Load:
    """Of a stage whose data are `attached`.

    Args:
        test: `prompts`, None = all, and `redraft`.
    """
    splits = ["train"] * _reads_texts(data) + ["val"] + ["test"] * bool(test["redraft"] and test["prompts"] != 0)
    found = {split: data.planned(split) for split in splits}
    missing = {split: texts.missing(test["prompts"] if split == "test" else None) for split, texts in found.items()}
    there = [texts[i] for texts in found.values() if not texts.missing() for i in range(min(SAMPLE, len(texts)))]
    longest = data.decoding.max_new_tokens
    response = sum(t.response_length for t in there) / len(there) if there else longest
    texts = sum(map(len, missing.values()))
    asked = 0 if test["prompts"] == 0 or test["redraft"] else len(data.encoded("test", test["prompts"]))
    steps, flops = _training(data, module, module.budget, round(response))
    weights = sum(p.numel() for p in module.drafter.parameters())
    return Load(
        config.name,
        texts,
        texts * response,
        response,
        steps,
        flops,
        module.budget.limits.get("minutes"),
        asked * response,
        _memory(data, module, weights),
        sum(found[split].size(prompts) for split, prompts in missing.items()) + 2 * 12 * weights,  # and Adam's moments
    )


def batch_of(data: DraftDataModule, module: DraftModule, texts: int, response: int) -> ReplayBatch:
    """Made-up texts with as many blocks as the data give them; features and hidden states where the data bring them."""
    prompt, slots = _prompt(data), module.drafter.num_draft_tokens
    tokens, last = torch.zeros(prompt + response, dtype=torch.long), prompt + response - 1
    none = torch.zeros(0, dtype=torch.long)
    if _on_policy(data):
        step = max(1, min(round(ACCEPTANCE), slots + 1))
        anchors = torch.arange(prompt, last, step)
        accepted = torch.full_like(anchors, step - 1)
        traces = [Trace(tokens, prompt, anchors, torch.zeros(len(anchors), slots, dtype=torch.long), accepted)] * texts
        batch = collate(traces)
        return batch if module.objective.needs_tails else batch.without_tails()
    count = min(getattr(data, "num_anchors", last - prompt), last - prompt)
    anchors = torch.linspace(prompt, last - 1, count).round().long()
    return text_blocks([Trace(tokens, prompt, none, none.view(0, 0), none)] * texts, [anchors] * texts, slots)


def replays(data: DraftDataModule, module: DraftModule) -> bool:
    """Does every step run the target over its texts?"""
    if not _on_policy(data):
        return data.cache.features_dtype is None
    if isinstance(data, OnPolicyDataModule) and isinstance(data.traces, Redrafts):
        return data.cache.features_dtype is None or (module.objective.needs_target and module.objective.needs_tails)
    return isinstance(data, OnPolicyDataModule) and data.place is not None


def _on_policy(data: DraftDataModule) -> bool:
    """Are most blocks the drafter's own?"""
    return isinstance(data, OnPolicyDataModule) and (not isinstance(data, MixedDataModule) or data.own_share >= 0.5)


def _reads_texts(data: DraftDataModule) -> bool:
    """Does the target write texts to train on, once for all runs?"""
    if isinstance(data, OnPolicyDataModule) and not isinstance(data, MixedDataModule):
        return isinstance(data.traces, Redrafts)
    return True


def _prompt(data: DraftDataModule) -> int:
    """Tokens of a prompt, the mean."""
    lengths = [len(ids) for _, ids in data.encoded("train", SAMPLE)]
    return math.ceil(sum(lengths) / len(lengths))


def _training(
    data: DraftDataModule, module: DraftModule, budget: Budget, response: int
) -> tuple[float | None, float | None]:
    """Optimizer steps and FLOPs of all training; None where only minutes end it."""
    size, drawn = data.batching.batch_size, isinstance(data, OnPolicyDataModule)
    texts = data.prompts_per_epoch if isinstance(data, OnPolicyDataModule) else len(data.encoded("train"))
    steps = max(1, texts // size)
    ledger, batch = Ledger(), batch_of(data, module, 1, response)
    ledger.train(module.target, module.drafter, batch, module.objective.needs_target)
    if replays(data, module):
        ledger.replay(module.target, batch)
    for kind in (ledger.flops, ledger.tokens):  # of one text; of an epoch's:
        kind.update({phase: value * (texts if drawn else steps * size) for phase, value in kind.items()})
    if isinstance(data, OnPolicyDataModule):
        _draw(data, module, ledger, response)
    spent = {"epochs": 1.0, "steps": steps, "flops": ledger.training_flops, "target_tokens": ledger.target_tokens}
    shares = [limit / spent[name] for name, limit in budget.limits.items() if name != "minutes" and spent[name]]
    return (min(shares) * steps, min(shares) * ledger.training_flops) if shares else (None, None)


def _draw(data: OnPolicyDataModule, module: DraftModule, ledger: Ledger, response: int) -> None:
    """Adds the traces of one epoch."""
    target, drafter, prompt = module.target, module.drafter, _prompt(data)
    texts = data.prompts_per_epoch / data.traces.reuse
    blocks, length = texts * response / ACCEPTANCE, prompt + response / 2
    if isinstance(data.traces, Redrafts):
        anchors = torch.arange(prompt, prompt + response - 1, round(ACCEPTANCE))
        none = torch.zeros(len(anchors), dtype=torch.long)
        one = Ledger()
        one.redraft(target, drafter, Trace(torch.zeros(prompt + response), prompt, anchors, none[:, None], none))
        ledger.flops["draft"] += texts * one.flops["draft"]
        return
    ledger.prefill(target, round(texts), prompt, prompt)
    ledger.join(target, drafter, round(texts), prompt)
    ledger.verify(target, drafter, round(blocks), drafter.block_size, length)
    ledger.verify_head(target, round(blocks * drafter.block_size))


def _memory(data: DraftDataModule, module: DraftModule, weights: int) -> float:
    """Bytes at the most: the models, Adam, and the larger of what a step and what decoding holds."""
    target, drafter, decoding = module.target, module.drafter, data.decoding
    longest = data.batching.max_prompt_length + decoding.max_new_tokens + drafter.block_size
    row = row_bytes(target, drafter, capacity=longest, prompt=data.batching.max_prompt_length, states=_states(drafter))
    decoded = min(decoding.memory_gib * 2**30, decoding.batch_size * row)
    batch = batch_of(data, module, 1, decoding.max_new_tokens)
    rows, size = int((batch.drafted > 0).sum()) * drafter.block_size, drafter.fc.weight.element_size()
    # a layer keeps about 12 D + 4 I numbers a row; a loss has 8 copies of a chunk's logits
    layer = (12 * drafter.hidden_size + 4 * target.shape.intermediate_size) * size * len(drafter.stack)
    texts = min(data.batching.micro_batch_size, data.batching.batch_size)
    # a GPU holds two micro-batches of what the data bring: the next one comes while this one is computed
    arrived = texts if replays(data, module) else min(2 * texts, data.batching.batch_size)
    states = arrived * batch.tokens.shape[1] * drafter.fc.in_features * size
    logits = 8 * 4 * module.chunk_rows * drafter.head_rows(target.vocab_size)
    held = sum(p.numel() * p.element_size() for p in target.parameters()) + 16.0 * weights
    return held + max(decoded, texts * rows * layer + states + logits)


def _states(drafter: Drafter) -> int:
    return len(drafter.layer_ids) + drafter.num_draft_tokens
