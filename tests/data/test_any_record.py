"""Whatever JSON stands in a line of a prompt file: prompts, or one line of error that names the file and the line."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from draftopd.data.prompts import Prompt
from draftopd.data.sources import JsonlPrompts
from draftopd.errors import DraftError
from prompt_sources import SPLITS
from strategies import json_values

KEYS = ("prompt", "messages", "id", "answer", "topic", "tools", "role", "content", "tool_calls")
ROLES = st.sampled_from(["system", "user", "assistant", "tool"])
TURNS = st.lists(st.fixed_dictionaries({"role": ROLES, "content": st.text(max_size=9)}), min_size=1, max_size=3)
RECORDS = json_values(*KEYS) | st.fixed_dictionaries(
    {},
    optional={
        **{key: json_values(*KEYS) for key in KEYS},
        "prompt": st.text(max_size=9) | json_values(*KEYS),
        "messages": TURNS | st.lists(json_values(*KEYS), max_size=3),
    },
)
SETTINGS = st.fixed_dictionaries(
    {},
    optional={
        "messages_field": st.none(),
        "id_field": st.none(),
        "answer_field": st.none(),
        "set_field": st.just("topic"),
        "template": st.just("Solve {prompt}"),
    },
)


def outcome(path: Path, content: bytes, **settings: Any) -> tuple[list[Prompt], str]:
    """All prompts of a file, or the error."""
    path.write_bytes(content)
    prompts = JsonlPrompts(str(path), val=1, test=1, **settings)
    try:
        return [prompt for split in SPLITS for prompt in prompts.split(split)], ""
    except DraftError as error:
        return [], str(error)


@given(RECORDS, st.integers(1, 5), SETTINGS)
@example({"a\nb": 1}, 2, {})
@example({"prompt": "x", "id": "\x1b[31m\n"}, 5, {})
def test_any_record_is_a_prompt_or_is_named_with_its_line(record: Any, line: int, settings: dict[str, Any]):
    sound = [{"prompt": f"question {index}", "id": f"sound {index}", "topic": "a"} for index in range(4)]
    lines = [json.dumps(row) for row in (*sound[: line - 1], record, *sound[line - 1 :])]
    with TemporaryDirectory() as folder:
        path = Path(folder) / "mine.jsonl"
        found, error = outcome(path, "\n".join(lines).encode(), **settings)
    assert error.isprintable()
    if error:
        assert error.startswith((f"{path}:{line} ", f"{path}:{line}: "))
        return
    assert len(found) in (4, 5)
    assert len({prompt.id for prompt in found}) == len({prompt.text for prompt in found}) == len(found)
    assert {prompt.where for prompt in found} <= {f"{path}:{number}" for number in range(1, 6)}
    assert all(prompt.text.encode() and prompt.messages[-1]["content"].strip() for prompt in found)


@given(st.binary(max_size=30) | st.text(max_size=30).map(str.encode), st.integers(1, 4))
def test_any_bytes_are_blank_or_named_with_their_line(noise: bytes, line: int):
    sound = [json.dumps({"prompt": f"question {index}"}).encode() for index in range(3)]
    noise = noise.replace(b"\n", b"")
    with TemporaryDirectory() as folder:
        path = Path(folder) / "mine.jsonl"
        found, error = outcome(path, b"\n".join([*sound[: line - 1], noise, *sound[line - 1 :]]))
    assert error.isprintable()
    if error:
        assert error.startswith((f"{path}:{line} ", f"{path}:{line}: "))
    else:
        assert (len(found), noise.strip()) == (3, b"")
