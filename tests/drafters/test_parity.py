"""Training sees what decoding saw: for all drafters, the logits of a training forward are those of cached drafting."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from draftopd.drafters.base import Drafter, Propose
from draftopd.drafters.dflash import DFlash
from draftopd.drafters.dflash2 import DFlash2
from draftopd.drafters.dspark import DSpark
from draftopd.drafters.eagle3 import Eagle3
from draftopd.target.head import Head
from draftopd.target.model import Target
from draftopd.trace import ReplayBatch, Trace, collate
from pair import EAGLE_LAYERS

CAPACITY = 60
ANCHORS = [[6, 7, 11, 12], [3, 6, 7, 12]]  # of two texts; after each draft the rows move on by different lengths


class Greedy(Propose):
    """Proposes the most probable drafts, and stores the logits that they came from."""

    def __init__(self) -> None:
        self.logits: list[Tensor] = []

    def __call__(self, logits: Tensor, confidence: Callable[[], Tensor] | None = None) -> Tensor:
        self.logits.append(logits)
        return super().__call__(logits)


KINDS = ("dflash", "dspark", "dflash2", "eagle3")


@pytest.fixture(params=[kind + how for kind in KINDS for how in ("", ", 10 tokens", ", window")])
def any_drafter(request, target: Target) -> Drafter:
    torch.manual_seed(5)
    kind, _, reduced = request.param.partition(", ")
    size = 10 if reduced == "10 tokens" else None
    window = 6 if reduced == "window" else None
    drafter: Drafter
    if kind == "dflash":
        drafter = DFlash(target.shape, num_layers=2, block_size=5, draft_vocab_size=size, window=window)
    elif kind == "dspark":
        drafter = DSpark(target.shape, num_layers=2, block_size=5, markov_rank=6, draft_vocab_size=size, window=window)
    elif kind == "dflash2":
        drafter = DFlash2(target.shape, 2, 5, selector_rank=6, draft_vocab_size=size, window=window)
    else:
        drafter = Eagle3(target.shape, block_size=5, layer_ids=EAGLE_LAYERS, draft_vocab_size=size, window=window)
    if size:
        drafter.set_vocabulary(torch.arange(20, 40, 2))
    drafter.initialise(target.head)
    with torch.no_grad():
        for parameter in drafter.parameters():
            if parameter.ndim == 2:
                parameter.mul_(5)  # opinions that differ from slot to slot
    return drafter.eval()


@torch.no_grad()
def decoded(target: Target, drafter: Drafter, tokens: Tensor, features: Tensor) -> tuple[ReplayBatch, Tensor]:
    """Drafts at ANCHORS with one cache; what a step reads after the next anchor is garbage, as after a rejection."""
    draw = torch.Generator().manual_seed(1)
    rows, width = tokens.shape[0], drafter.block_size
    anchors = torch.tensor(ANCHORS)
    state, head = drafter.start(rows, CAPACITY, tokens.device), drafter.head(target.head)
    following = tokens.roll(-1, 1)
    first = int(anchors[:, 0].max())
    drafter.extend(state, features[:, :first], following[:, :first], target.embed)
    drafts, logits = [], []
    for n, at in enumerate(anchors.T):
        state.lengths = at
        propose = Greedy()
        row = torch.arange(rows)
        drafts.append(drafter.draft(state, tokens[row, at], target.embed, head, propose))
        logits.append(torch.cat(propose.logits, 1))
        if n + 1 < anchors.shape[1]:
            slots = at[:, None] + torch.arange(width)
            accepted = (slots < anchors[:, n + 1, None])[..., None]
            read = features[row[:, None], slots]
            read = torch.where(accepted, read, torch.randn(read.shape, generator=draw))
            after = torch.where(accepted[..., 0], following[row[:, None], slots], 9)
            drafter.extend(state, read, after, target.embed)
    traces = [
        Trace(tokens[i], 2, anchors[i], torch.stack([d[i] for d in drafts]), torch.zeros(len(anchors[i])).long())
        for i in range(rows)
    ]
    return collate(traces, list(features)), torch.stack(logits, 1)


def test_the_training_forward_gives_the_logits_of_cached_drafting(target: Target, any_drafter: Drafter):
    """Slot i has read i drafted tokens; rows of different lengths, rejected garbage in the cache."""
    tokens = torch.randint(4, 90, (2, 20), generator=torch.Generator().manual_seed(0))
    features = target.read(tokens, any_drafter.layer_ids)[1]
    batch, logits = decoded(target, any_drafter, tokens, features)
    head: Head = any_drafter.head(target.head)
    with torch.no_grad():
        trained = head(any_drafter(batch, target.embed))
    assert logits.shape == (2, 4, 4, 10 if any_drafter.d2t is not None else target.vocab_size)
    torch.testing.assert_close(trained, logits, atol=1e-4, rtol=1e-4)
    assert logits.std() > 0.1
    assert len(batch.drafts.unique()) > 1
