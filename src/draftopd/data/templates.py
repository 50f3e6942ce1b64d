"""How a target's chat template writes messages: always with the same date, and never without what the user says."""

import logging
from datetime import date
from functools import cache
from typing import Any, cast

from transformers import PreTrainedTokenizerBase

from draftopd.data.prompts import Messages
from draftopd.errors import DraftError

log = logging.getLogger(__name__)
DATE = date(2026, 1, 1)
"""today, for templates that ask: texts, their cache and comparisons of runs then do not depend on the day"""
CLOCK = "strftime_now"  # how templates ask transformers for it
LETTERS = "aAbBcdDeFGHIjmMpSTuUVwWxXyYzZ"  # of strftime's directives


@cache
def dated(template: str) -> str:
    """A chat template in which `strftime_now` gives DATE; the same where it does not ask for the date."""
    if CLOCK not in template:
        return template
    log.warning("the target's chat template writes today's date: prompts get %s, whatever the day", DATE)
    values = {f"%{letter}": DATE.strftime(f"%{letter}") for letter in LETTERS}
    values |= {f"%-{letter}": values[f"%{letter}"].lstrip("0") for letter in "djm"}  # of the C library: without zeros
    given = "".join(f" | replace({name!r}, {value!r})" for name, value in values.items())
    # the line break belongs to the tag: transformers drops the first one after each
    return f"{{%- macro {CLOCK}(format) -%}}{{{{ format{given} }}}}{{%- endmacro %}}\n{template}"


def token_ids(messages: Messages, tokenizer: PreTrainedTokenizerBase, enable_thinking: bool | None) -> list[int]:
    """Messages up to where the answer begins, whatever errors template and tokenizer raise."""
    if tokenizer.chat_template is None:
        return cast(list[int], tokenizer("\n".join(message["content"] for message in messages)).input_ids)
    # Only when asked for: some templates have a default of their own.
    options: dict[str, Any] = {} if enable_thinking is None else {"enable_thinking": enable_thinking}
    options["chat_template"] = dated(tokenizer.get_chat_template())
    ids = tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, return_dict=False, **options)
    return cast(list[int], ids)


def check_reads_text(messages: Messages, tokenizer: PreTrainedTokenizerBase, enable_thinking: bool | None) -> None:
    """Raises DraftError where what the user says makes no difference to the ids of these messages."""
    twice = tuple({**m, "content": 2 * m["content"]} if m["role"] == "user" else m for m in messages)
    same = token_ids(twice, tokenizer, enable_thinking) == token_ids(messages, tokenizer, enable_thinking)
    if same and twice != messages:
        raise DraftError(
            "the target's chat template leaves out what users say (it may want their content as a list of parts): "
            "take a tokenizer whose template reads text"
        )


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """What the tokenizer reads as a control token wherever it stands."""
    added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    return sorted({*added, *tokenizer.all_special_tokens})
