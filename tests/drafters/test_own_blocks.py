"""What on-policy blocks change for greedy drafts: nothing up to the first rejection, and the inputs after it."""

import pytest
import torch

from draftopd.decoding.redraft import redraft
from draftopd.decoding.rollout import rollout
from draftopd.decoding.settings import Decoding
from draftopd.drafters.base import Drafter
from draftopd.objectives.rows import flatten
from draftopd.target.model import Target
from draftopd.trace import collate_rollouts, text_blocks
from pair import PROMPTS


@pytest.mark.parametrize("kind", ["drafter", "dspark", "dflash2", "eagle"])
def test_up_to_the_first_rejection_an_own_block_is_the_texts_block(target: Target, request, kind: str):
    drafter: Drafter = request.getfixturevalue(f"eager_{kind}")
    decoding = Decoding(max_new_tokens=24)
    texts = rollout(target, None, PROMPTS, decoding, keep_states=True, layer_ids=drafter.layer_ids)
    own = redraft(target, drafter, texts, decoding)
    anchors = [r.trace.anchors for r in own]
    of_text = text_blocks([r.trace for r in own], anchors, drafter.num_draft_tokens, [r.features for r in own])
    batch = collate_rollouts(own)
    with torch.no_grad(), drafter.evaluating():
        mine, theirs = (drafter(b, target.embed) for b in (batch, of_text))
    valid = batch.valid
    reached = torch.zeros_like(valid).masked_scatter(valid, flatten(batch, None).reached)
    assert 0 < reached.sum() < valid.sum()
    torch.testing.assert_close(mine[reached], theirs[reached], atol=1e-4, rtol=1e-4)
    later = valid & ~reached
    same = torch.isclose(mine[later], theirs[later], atol=1e-4).all(-1)
    # DFlash reads no drafts at all, the others read rejected ones
    assert bool(same.all()) is (kind == "drafter")
