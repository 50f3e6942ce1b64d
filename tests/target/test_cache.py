"""Rows of different lengths in one cache: after any crop and join the next logits are those of a fresh forward."""

import pytest
import torch

from draftopd.target import load
from draftopd.target.cache import RaggedCache
from draftopd.target.model import Target
from pair import FAMILIES


@pytest.mark.parametrize("family", FAMILIES)
def test_random_steps_crops_joins_and_selections(family: str):
    target = load.tiny({"model_type": family, **FAMILIES[family]})
    draw = torch.Generator().manual_seed(0)

    def tokens(*size: int) -> torch.Tensor:
        return torch.randint(4, 90, size, generator=draw)

    rows, capacity = 5, 80
    cache = RaggedCache(rows, capacity)
    texts: list[list[int]] = [[] for _ in range(rows)]
    for turn in range(14):
        width = int(torch.randint(1, 7, (1,), generator=draw))
        block = tokens(len(texts), width)
        hidden, _ = target.step(block, cache)
        accepted = torch.randint(0, width + 1, (len(texts),), generator=draw)  # the crop: a rejected tail
        for i, count in enumerate(accepted.tolist()):
            whole = [*texts[i], *block[i].tolist()]
            fresh, _ = target.read(torch.tensor([whole]))
            torch.testing.assert_close(target.head()(hidden[i]), target.head()(fresh[0, -width:]), atol=1e-4, rtol=1e-4)
            texts[i] += block[i, :count].tolist()
        cache.lengths = cache.lengths + accepted
        if turn in (4, 9):  # new prompts of different lengths take over two rows
            new, lengths = tokens(2, 9), torch.tensor([9, 4])
            joining = RaggedCache(2, 9)  # no larger than its prompts
            target.step(new, joining)
            joining.lengths = lengths
            cache.put(torch.tensor([1, 3]), joining)
            texts[1], texts[3] = new[0].tolist(), new[1, :4].tolist()
        if turn == 11:
            cache.select(torch.tensor([0, 3, 4]))
            texts = [texts[0], texts[3], texts[4]]


def test_a_full_cache_says_so(target: Target):
    cache = RaggedCache(1, 4)
    with pytest.raises(ValueError, match="holds 4 tokens"):
        target.step(torch.ones(1, 5, dtype=torch.long), cache)
