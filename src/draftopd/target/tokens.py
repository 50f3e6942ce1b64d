"""Token ids of a target: its mask token, its stop tokens and those of prompts, all inside its tables."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from draftopd.errors import DraftError

RESERVED = re.compile(r"reserved|unused|placeholder|dummy|extra_?\d|extra_id|special_?\d|control_?\d|empty", re.I)
"""how tokenizers call tokens that their model's training left alone"""


def free_row(tokenizer: PreTrainedTokenizerBase, rows: int) -> int:
    """A row of an embedding table of `rows` rows that is no token: the first after the tokenizer's ids, or else a hole.

    Raises:
        DraftError: the tokenizer knows every row; it names tokens that may serve instead.
    """
    vocabulary = tokenizer.get_vocab()
    known = set(vocabulary.values())
    after = max(known, default=-1) + 1
    free = range(after, rows) or [row for row in range(rows) if row not in known]
    if free:
        return free[0]
    spare = sorted((row, token) for token, row in vocabulary.items() if RESERVED.search(token) and row < rows)
    named = " or ".join(f"{row} ({token})" for row, token in spare[:3])
    raise DraftError(
        f"the tokenizer knows all {rows} rows of the target's embedding table, so none is free for a mask token: "
        f"set target.mask_token_id to a token that never occurs in text{named and ', such as '}{named}"
    )


def stop_ids(given: Any, vocab_size: int) -> list[int]:
    """The ids of an `eos_token_id`: a number, a list or None.

    Raises:
        DraftError: one of them is none of the `vocab_size` tokens that the target chooses from.
    """
    ids = [] if given is None else list(given) if isinstance(given, list | tuple) else [given]
    wrong = [i for i in ids if not 0 <= i < vocab_size]
    if wrong:
        raise DraftError(
            f"stop token {wrong[0]} is none of the target's {vocab_size} tokens: correct eos_token_id in its "
            "generation_config.json"
        )
    return ids


def check_ids(prompts: Iterable[Sequence[int]], rows: int, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises DraftError where a prompt has an id outside an embedding table of `rows` rows."""
    wrong = next((i for prompt in prompts for i in (min(prompt), max(prompt)) if not 0 <= i < rows), None)
    if wrong is not None:
        token = tokenizer.convert_ids_to_tokens(wrong) if wrong >= 0 else None
        raise DraftError(
            f"a prompt holds token {wrong} ({token!r}), and the target's embedding table has {rows} rows: its "
            "tokenizer has tokens that the model lacks; take the model's own, or give the model rows for them"
        )
