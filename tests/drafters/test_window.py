"""Drafters that see only the last positions of the text; test_parity.py has training and cached drafting."""

from collections.abc import Callable

import pytest
import torch

from draftopd.decoding.redraft import redraft
from draftopd.decoding.rollout import rollout
from draftopd.decoding.settings import Decoding
from draftopd.drafters.base import Drafter, Propose
from draftopd.drafters.dflash import DFlash
from draftopd.drafters.dflash2 import DFlash2
from draftopd.drafters.dspark import DSpark
from draftopd.drafters.eagle3 import Eagle3
from draftopd.errors import DraftError
from draftopd.target.model import Target
from pair import EAGLE_LAYERS, PROMPTS

KINDS: dict[str, Callable[..., Drafter]] = {
    "dflash": lambda shape, **words: DFlash(shape, num_layers=2, block_size=5, **words),
    "dflash2": lambda shape, **words: DFlash2(shape, num_layers=2, block_size=5, selector_rank=6, **words),
    "dspark": lambda shape, **words: DSpark(shape, num_layers=2, block_size=5, markov_rank=6, **words),
    "eagle3": lambda shape, **words: Eagle3(shape, block_size=5, layer_ids=EAGLE_LAYERS, **words),
}


@pytest.fixture(params=KINDS)
def windowed(request: pytest.FixtureRequest, target: Target) -> Drafter:
    torch.manual_seed(5)
    drafter = KINDS[request.param](target.shape, window=6)
    drafter.initialise(target.head)
    return drafter.eval()


def test_texts_are_the_targets_and_redrafts_the_rollouts(target: Target, windowed: Drafter):
    decoding = Decoding(16, batch_size=3)
    plain = rollout(target, None, PROMPTS, decoding, keep_states=True, layer_ids=windowed.layer_ids)
    rolled = rollout(target, windowed, PROMPTS, decoding)
    again = redraft(target, windowed, plain, decoding)
    for text, one, other in zip(plain, rolled, again, strict=True):
        assert torch.equal(one.trace.tokens, text.trace.tokens)
        assert torch.equal(one.trace.drafts, other.trace.drafts)
        assert torch.equal(one.trace.accepted, other.trace.accepted)


def test_nothing_outside_the_window_changes_a_draft(target: Target, windowed: Drafter):
    def hidden(change_at: int) -> torch.Tensor:
        features = torch.randn(1, 20, windowed.fc.in_features, generator=torch.Generator().manual_seed(0))
        features[:, change_at] += 9
        state, seen = windowed.start(1, 24, torch.device("cpu")), list[torch.Tensor]()
        tokens = torch.arange(20)[None] + 5
        windowed.extend(state, features, tokens, target.embed)
        state.lengths += 20
        handle = windowed.norm.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
        with torch.no_grad():
            windowed.draft(state, tokens[:, -1], target.embed, windowed.head(target.head), Propose())
        handle.remove()
        return seen[0]

    before = hidden(0)
    assert torch.equal(hidden(12), before)
    assert not torch.equal(hidden(19), before)


def test_a_window_shorter_than_a_block_is_refused(target: Target):
    with pytest.raises(DraftError, match="at least"):
        KINDS["dflash"](target.shape, window=4)
