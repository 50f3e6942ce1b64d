"""What property tests draw: traces as decoding leaves them, blocks of rows, and JSON of any kind.

How many examples a test takes: the profiles in conftest.py.
"""

from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from draftopd.trace import Trace

WORDS = st.integers(70, 75)  # letters of the tiny tokenizer; few, so that drafts and texts often agree
LAYERS = st.lists(st.integers(0, 3), min_size=1, max_size=4, unique=True).map(sorted)


@st.composite
def traces(draw: st.DrawFn, num_drafts: int, max_blocks: int = 4) -> Trace:
    """A chain of blocks from the response's first token on; the text's end may cut the last one."""
    tokens = draw(st.lists(WORDS, min_size=2, max_size=5))
    prompt_length, anchors, drafts, accepted = len(tokens) - 1, [], [], []
    for _ in range(draw(st.integers(0, max_blocks))):
        block = draw(st.lists(WORDS, min_size=num_drafts, max_size=num_drafts))
        count = draw(st.integers(0, num_drafts))
        anchors.append(len(tokens) - 1)
        drafts.append(block)
        accepted.append(count)
        tokens += [*block[:count], draw(WORDS)]
    if accepted and accepted[-1] and draw(st.booleans()):
        del tokens[-1]
    step = draw(st.integers(-1, 9))
    proposed = torch.tensor(drafts, dtype=torch.long).view(len(drafts), num_drafts)
    return Trace(torch.tensor(tokens), prompt_length, whole(anchors), proposed, whole(accepted), step)


@st.composite
def batches(draw: st.DrawFn, most: int = 3) -> list[Trace]:
    """Traces with drafts of one length, at least one of them with a block."""
    num_drafts = draw(st.integers(1, 4))
    found = draw(st.lists(traces(num_drafts), min_size=1, max_size=most))
    return found if any(len(trace.anchors) for trace in found) else [draw(traces(num_drafts).filter(drafted))]


def drafted(trace: Trace) -> bool:
    return bool(len(trace.anchors))


@st.composite
def branches(draw: st.DrawFn) -> tuple[Tensor, Tensor, int]:
    """Rows of blocks after a text: start [B, R], block [B, R] and the length of the text."""
    rows, length, batch = draw(st.integers(1, 6)), draw(st.integers(1, 5)), draw(st.integers(1, 2))
    blocks = [draw(st.lists(st.integers(-1, 3), min_size=rows, max_size=rows)) for _ in range(batch)]
    starts = draw(st.lists(st.integers(0, length), min_size=5, max_size=5))
    return torch.tensor([[starts[block] for block in row] for row in blocks]), torch.tensor(blocks), length


def whole(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.long)


def json_values(*keys: str) -> st.SearchStrategy[Any]:
    """Any JSON value, numbers that are none included; objects mostly have these keys."""
    texts = st.text(st.characters(exclude_categories=()), max_size=6) | st.sampled_from(
        ["user", "assistant", "", " \n"]
    )
    plain = st.none() | st.booleans() | st.integers() | st.floats() | texts
    names = st.sampled_from(keys) | texts
    return st.recursive(
        plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=4), max_leaves=8
    )
