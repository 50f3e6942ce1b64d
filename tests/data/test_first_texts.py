"""The check of a text against the target: greedy by its best tokens, sampled by its probability."""

import pytest
import torch

from draftopd.data.first_texts import SURPRISE, deviations, surprise
from draftopd.data.texts import TextCache, Texts
from draftopd.decoding.rollout import rollout
from draftopd.decoding.settings import Decoding
from draftopd.target import load
from draftopd.target.model import Target
from pair import PROMPTS, SIZES


def texts_of(target: Target, decoding: Decoding, folder) -> Texts:
    return TextCache(str(folder), None).open(target, PROMPTS, decoding, ())


def responses(target: Target, decoding: Decoding) -> list[list[int]]:
    results = rollout(target, None, PROMPTS, decoding)
    return [r.trace.tokens[r.trace.prompt_length :].tolist() for r in results]


def test_greedy_texts_have_no_deviation_and_a_changed_token_has_one(target: Target, tmp_path):
    decoding = Decoding(12)
    texts, own = texts_of(target, decoding, tmp_path), responses(target, decoding)
    assert [deviations(texts, i, ids) for i, ids in enumerate(own)] == [[]] * len(PROMPTS)
    place = 1
    changed = [*own[0][:place], (own[0][place] + 1) % target.vocab_size]
    (found,) = deviations(texts, 0, changed)
    assert (found.position, found.token, found.best) == (place, changed[-1], own[0][place])
    tokens = torch.tensor([[*PROMPTS[0], *own[0][:place]]])
    p = target.head()(target.read(tokens)[0])[0, -1].softmax(-1)
    assert found.probability == pytest.approx(float(p[found.token]), rel=1e-3)
    assert found.best_probability == pytest.approx(float(p.max()), rel=1e-3)
    assert found.gap == pytest.approx(float((p.max() / p[found.token]).log()), rel=1e-3)


def test_sampled_texts_are_told_from_another_models(target: Target, tmp_path):
    other = load.tiny({"model_type": "llama", **SIZES}, seed=1)
    for words in ({}, {"top_k": 5}, {"min_p": 0.2}):
        decoding = Decoding(24, temperature=0.8, seed=4, **words)
        texts = texts_of(target, decoding, tmp_path)
        assert all(surprise(texts, i, ids) < 4 for i, ids in enumerate(responses(target, decoding)))
        assert all(
            surprise(texts, i, ids) > SURPRISE for i, ids in enumerate(responses(other, decoding)) if len(ids) > 4
        )
