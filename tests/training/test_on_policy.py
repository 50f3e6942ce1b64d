"""Batches of drafted blocks."""

import torch

from draftopd.trace import Rollout, Trace
from draftopd.training.on_policy import PADDING, of_similar_size


def with_blocks(count: int) -> Rollout:
    tokens, anchors = torch.arange(count + 2), torch.arange(1, count + 1)
    return Rollout(Trace(tokens, 1, anchors, torch.zeros(count, 3).long(), torch.zeros(count).long()))


def test_micro_batches_hold_texts_of_like_numbers_of_blocks():
    given = [with_blocks(count) for count in (9, 30, 10, 1, 28, 9, 0, 11)]
    groups = of_similar_size(given)
    assert sorted(id(r) for group in groups for r in group) == sorted(map(id, given))
    counts = [[len(r.trace.anchors) for r in group] for group in groups]
    assert counts == [[30, 28], [11, 10, 9, 9], [1], [0]]
    assert all(sum(group) >= (1 - PADDING) * max(group) * len(group) for group in counts)


def test_texts_without_blocks_stay_together():
    assert [len(group) for group in of_similar_size([with_blocks(0)] * 3)] == [3]
    assert of_similar_size([]) == []
