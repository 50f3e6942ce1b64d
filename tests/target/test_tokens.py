"""Ids inside a target's tables: the default mask token, stop tokens, tokens of prompts."""

from types import SimpleNamespace
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from draftopd.decoding.rollout import rollout
from draftopd.decoding.settings import Decoding
from draftopd.errors import DraftError
from draftopd.target.load import tiny_tokenizer
from draftopd.target.model import Target
from draftopd.target.tokens import free_row, stop_ids
from pair import PROMPTS


def tokenizer(*tokens: str, **at: int) -> Any:
    """Of these tokens, and of further ones at ids of their own."""
    vocabulary = {token: i for i, token in enumerate(tokens)} | at
    return SimpleNamespace(get_vocab=lambda: vocabulary)


@pytest.mark.parametrize(
    ("known", "rows", "row"),
    [
        (tokenizer("a", "b"), 4, 2),
        (tokenizer("a", "b", tool=3, obs=4), 8, 5),  # len(tokenizer) would be a token
        (tokenizer("a", "b", tool=3), 4, 2),  # nothing after it: a hole
        (tokenizer("a", "b", tool=9), 4, 2),  # a token without a row
    ],
)
def test_the_default_mask_token_is_no_token(known, rows: int, row: int):
    assert free_row(known, rows) == row not in known.get_vocab().values()


@pytest.mark.parametrize(
    "spare", ["<|reserved_special_token_0|>", "<unused7>", "<|dummy_3|>", "<SPECIAL_20>", "[control_8]", "<|extra_0|>"]
)
def test_without_a_free_row_the_tokenizers_reserved_tokens_are_proposed(spare: str):
    with pytest.raises(DraftError) as caught:
        free_row(tokenizer("a", "b", spare, "c"), 4)
    assert "knows all 4 rows" in str(caught.value)
    assert f"set target.mask_token_id to a token that never occurs in text, such as 2 ({spare})" in str(caught.value)
    with pytest.raises(DraftError, match=r"to a token that never occurs in text$"):
        free_row(tokenizer("a", "b"), 2)


def test_stop_tokens_are_a_number_a_list_or_none():
    assert [stop_ids(given, 10) for given in (3, [1, 9], (2,), None, 0)] == [[3], [1, 9], [2], [], [0]]


@pytest.mark.parametrize("wrong", [-1, 100, [1, 128009], [-1]])
def test_a_stop_token_outside_the_table_is_refused(target: Target, monkeypatch, wrong):
    monkeypatch.setattr(target.model.generation_config, "eos_token_id", wrong)
    with pytest.raises(
        DraftError, match=r"^stop token (-1|100|128009) is none of the target's 100 tokens: correct eos"
    ):
        Target(target.model, target.tokenizer)


def test_a_prompt_token_outside_the_table_is_refused(target: Target, monkeypatch):
    grown: PreTrainedTokenizerFast = tiny_tokenizer()
    grown.add_special_tokens({"additional_special_tokens": ["<user>", "<bot>", "<a>", "<b>"]})
    monkeypatch.setattr(target, "tokenizer", grown)
    prompts = [*PROMPTS, grown("say <b>").input_ids]
    message = r"a prompt holds token 100 \('<b>'\), and the target's embedding table has 100 rows"
    with pytest.raises(DraftError, match=message):
        rollout(target, None, prompts, Decoding(max_new_tokens=3))
    with pytest.raises(DraftError, match=r"a prompt holds token -1 \(None\)"):
        rollout(target, None, [[5, -1]], Decoding(max_new_tokens=3))
