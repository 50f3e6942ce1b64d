"""The tiny pair's sizes and prompts, and what makes drafters and runs of it."""

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pytest
import torch

from draftopd import fit
from draftopd.decoding.rollout import rollout
from draftopd.decoding.settings import Decoding
from draftopd.drafters.base import Drafter
from draftopd.drafters.dflash import DFlash
from draftopd.drafters.dflash2 import DFlash2
from draftopd.drafters.dspark import DSpark
from draftopd.drafters.eagle3 import Eagle3
from draftopd.target.model import Target
from draftopd.trace import text_blocks

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
}
FAMILIES = {
    "llama": SIZES,
    "qwen3": {**SIZES, "head_dim": 8},
    "qwen2": SIZES,
    "mistral": {**SIZES, "sliding_window": 8},
    "gemma3_text": {
        **SIZES,
        "head_dim": 8,
        "sliding_window": 6,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    "granite": {**SIZES, "logits_scaling": 3.0},
}
# the fast tests take one with full attention and one with sliding windows, the slow ones all
EVERY_FAMILY = [
    pytest.param(name, marks=[] if name in ("llama", "gemma3_text") else pytest.mark.slow) for name in FAMILIES
]
EAGLE_LAYERS = [0, 1, 2]  # the tiny target is too shallow for the default
PROMPTS = [[5 + i * 3 % 80 for i in range(length)] for length in (7, 4, 11, 9, 5)]


def overfit(target: Target, prompts: list[list[int]], decoding: Decoding, steps: int = 60) -> DFlash:
    torch.manual_seed(2)
    drafter = DFlash(target.shape, num_layers=1, block_size=5)
    fit_texts(drafter, target, prompts, decoding, steps)
    return drafter


def overfit_dspark(target: Target, prompts: list[list[int]], decoding: Decoding, steps: int = 60) -> DSpark:
    torch.manual_seed(2)
    drafter = DSpark(target.shape, num_layers=1, block_size=5, markov_rank=8)
    fit_texts(drafter, target, prompts, decoding, steps)
    return drafter


def overfit_dflash2(target: Target, prompts: list[list[int]], decoding: Decoding, steps: int = 60) -> DFlash2:
    torch.manual_seed(2)
    drafter = DFlash2(target.shape, num_layers=1, block_size=5, selector_rank=8, train_unary=False)
    fit_texts(drafter, target, prompts, decoding, steps)
    return drafter


def overfit_eagle(
    target: Target, prompts: list[list[int]], decoding: Decoding, steps: int = 40, block_size: int = 5
) -> Eagle3:
    torch.manual_seed(2)
    drafter = Eagle3(target.shape, block_size, EAGLE_LAYERS)
    drafter.initialise(target.head)
    fit_texts(drafter, target, prompts, decoding, steps)
    return drafter


def fit_texts(drafter: Drafter, target: Target, prompts: list[list[int]], decoding: Decoding, steps: int) -> None:
    """Cross-entropy on the target's own texts, every position an anchor."""
    results = rollout(target, None, prompts, decoding, keep_states=True, layer_ids=drafter.layer_ids)
    traces = [r.trace for r in results]
    anchors = [torch.arange(t.prompt_length, len(t.tokens) - 1) for t in traces]
    features = [r.features for r in results if r.features is not None]
    batch = text_blocks(traces, anchors, drafter.num_draft_tokens, features)
    optimizer = torch.optim.Adam(drafter.parameters(), 3e-3)
    for _ in range(steps):
        logits = drafter.head(target.head)(drafter(batch, target.embed)[batch.valid])
        loss = torch.nn.functional.cross_entropy(logits, batch.drafts[batch.valid])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


D = TypeVar("D", bound=Drafter)


@contextmanager
def untouched(drafter: D) -> Iterator[D]:
    """Many tests read it: one that trains it has to take a copy."""
    before = {name: weight.clone() for name, weight in drafter.state_dict().items()}
    yield drafter
    changed = [name for name, weight in drafter.state_dict().items() if not torch.equal(weight, before[name])]
    assert not changed, f"a test has changed the drafter that all share: {changed}"


@contextmanager
def full_disk(room: int = 1000) -> Iterator[None]:
    """No file can grow beyond so many bytes: libraries meet an error of the system, as they do on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def trained(folder: Path, *words: str) -> Path:
    """The last checkpoint of the smoke experiment's SFT, nothing tested and nothing logged."""
    few = ["experiment=smoke/sft", "logger=none", "test.prompts=0", *words]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["fit", "hydra.run.dir=out", f"cache_dir={folder}", *few])
        fit.main()
    return folder / "out" / "checkpoints" / "last.ckpt"
