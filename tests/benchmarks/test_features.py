"""The benchmark of stored texts in batches runs on the tiny pair; nothing here looks at seconds."""

from argparse import Namespace
from pathlib import Path

import pytest

from benchmarks import features
from draftopd.data.texts import TextCache
from draftopd.decoding.settings import Decoding
from draftopd.drafters.dflash import DFlash
from draftopd.errors import DraftError
from draftopd.target.model import Target
from pair import PROMPTS


def test_rounds_do_other_texts_of_a_shard_both_ways(target: Target, eager_drafter: DFlash, tmp_path: Path):
    cache = TextCache(str(tmp_path), "float32").open(target, PROMPTS, Decoding(12), eager_drafter.layer_ids)
    cache.write(5)
    (shard,), width = cache.folder.glob("*.safetensors"), eager_drafter.fc.in_features
    texts = features.stored(shard, 4, width)
    args = Namespace(reads=2, redrafts=2, tokens=9, batch_size=2)
    rounds = [features.one_round(target, eager_drafter, texts, args, number) for number in range(2)]
    assert rounds[0]["order"] == rounds[1]["order"][::-1] == ["one_by_one", "batched"]
    found = features.summary(rounds)
    assert found["largest_difference"] < 1e-5
    assert found["differing_traces"] == 0
    assert found["ratios"].keys() == {
        f"{work}_{clock}" for work in ("features", "redraft") for clock in ("seconds", "cpu_seconds")
    }
    with pytest.raises(DraftError, match="has 5 texts, and 6 are wanted"):
        features.stored(shard, 6, width)
    with pytest.raises(DraftError, match="has not the features that the drafter reads"):
        features.stored(shard, 5, width + 1)
