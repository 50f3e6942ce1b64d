"""What records become prompts, by way of JSON Lines files: fields, templates, held-out splits, malformed records.

Shapes of conversations: test_conversations.py.
"""

import logging
from pathlib import Path
from typing import Any

import pytest

from draftopd.data.prompts import Prompt
from draftopd.data.sources import JsonlPrompts
from draftopd.errors import DraftError
from prompt_sources import SPLITS, asked, questions, texts, write


@pytest.fixture
def file(tmp_path: Path) -> str:
    return write(tmp_path / "mine.jsonl", questions(20))


def test_a_prompt_becomes_one_user_message(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.jsonl", [{"id": index, "prompt": f"q{index}", "answer": 0} for index in range(3)])
    prompts = JsonlPrompts(path)
    (prompt,) = prompts.split("train")
    number = prompt.id.removeprefix("mine/")
    assert prompt == Prompt(f"mine/{number}", "mine", ({"role": "user", "content": f"q{number}"},), "0")
    assert len(prompts.split("val")) == len(prompts.split("test")) == 1


def test_a_last_assistant_turn_is_left_for_the_target(tmp_path: Path) -> None:
    turns = [{"role": role, "content": role, "name": "x"} for role in ("system", "user", "assistant")]
    path = write(tmp_path / "chat.jsonl", [{"messages": turns}, *questions(3)])
    found = [prompt.messages for split in SPLITS for prompt in JsonlPrompts(path).split(split)]
    assert ({"role": "system", "content": "system"}, {"role": "user", "content": "user"}) in found


def test_fields_sets_and_template(tmp_path: Path) -> None:
    rows = [{"text": f"{{t}} {index}", "topic": "ab"[index % 2], "gold": f"g{index}"} for index in range(8)]
    path = write(tmp_path / "mine.jsonl", rows)
    prompts = JsonlPrompts(
        path,
        prompt_field="text",
        set_field="topic",
        answer_field="gold",
        template="Solve {prompt} in {}",
        val=1,
        test=1,
    )
    train = prompts.split("train")
    assert {prompt.set for prompt in train} == {"a", "b"}
    assert all(prompt.messages[0]["content"].startswith("Solve {t} ") for prompt in train)
    assert all(prompt.answer and prompt.answer.startswith("g") for prompt in train)


def test_counts_are_cut_so_that_train_keeps_most(file: str, caplog: pytest.LogCaptureFixture) -> None:
    prompts = JsonlPrompts(file)
    assert [len(prompts.split(split)) for split in SPLITS] == [10, 5, 5]
    assert "prompts.val cut from 64 to 5" in caplog.text


def test_held_out_prompts_do_not_depend_on_the_order_of_lines(file: str, tmp_path: Path) -> None:
    other = write(tmp_path / "other.jsonl", questions(20)[::-1])
    for split in SPLITS:
        assert texts(JsonlPrompts(file, val=4, test=4), split) == texts(JsonlPrompts(other, val=4, test=4), split)
    assert texts(JsonlPrompts(file, seed=1, val=4, test=4), "val") != texts(JsonlPrompts(file, val=4, test=4), "val")


def test_files_of_their_own_for_val_and_test(file: str, tmp_path: Path) -> None:
    test = write(tmp_path / "exam.jsonl", [{"prompt": "question 3"}, {"prompt": "other"}])
    prompts = JsonlPrompts(file, test_path=test, val=2)
    assert asked(prompts, "test") == ["question 3", "other"]
    assert prompts.split("test")[0].set == "exam"
    assert [len(prompts.split(split)) for split in SPLITS] == [17, 2, 2]
    assert "question 3" not in asked(prompts) + asked(prompts, "val")


def test_train_takes_the_first_training_prompts_and_leaves_the_held_out_ones(file: str) -> None:
    whole, cut = JsonlPrompts(file, val=1, test=1), JsonlPrompts(file, train=2, val=1, test=1)
    assert cut.split("train") == whole.split("train")[:2] != whole.split("train")
    assert [cut.split(name) for name in ("val", "test")] == [whole.split(name) for name in ("val", "test")]


def test_records_reads_the_first_lines_only(file: str) -> None:
    prompts = JsonlPrompts(file, records=4)
    assert {text for split in SPLITS for text in asked(prompts, split)} == {f"question {index}" for index in range(4)}


def test_blank_and_repeated_prompts_are_dropped_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "mine.jsonl", [*questions(5), "", {"prompt": " question 1 "}, {"prompt": "  "}])
    with caplog.at_level(logging.WARNING):
        assert sum(len(JsonlPrompts(path).split(split)) for split in SPLITS) == 5
    assert "mine.jsonl: 2 of 7 prompts left out: 1 repeated, 1 blank" in caplog.text


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{'prompt': 1}", r"mine.jsonl:2 is not JSON \(.*\): write one JSON object a line, or one array of objects"),
        ("[1]", "mine.jsonl:2 is not an object: write one with the field 'prompt'"),
        (
            {"question": "a", "n": 1},
            r"mine.jsonl:2 has no text .* \(fields: question, n\): set prompts.prompt_field=question$",
        ),
        ({"prompt": 3}, "mine.jsonl:2 has no text in field 'prompt'"),
        ({"n": 1, "said": "a", "dialog": [{"from": "human", "value": "a"}]}, "set prompts.messages_field=dialog$"),
        ({"n": 1, "said": "a"}, "set prompts.prompt_field=said$"),
        ({}, r"mine.jsonl:2 has no text in field 'prompt' \(fields: none\)"),
        ({"prompt": "a", "id": "x"}, "mine.jsonl:2: id mine/x is taken: make ids unique or set prompts.id_field=null"),
        ({"messages": "hello"}, "mine.jsonl:2: wrong messages: give role"),
        ({"messages": [{"from": "human", "content": "a"}]}, "wrong messages"),
        ({"conversations": [{"from": "narrator", "value": "a"}]}, "or from .one of human, .*gpt.* and value"),
        ({"messages": [{"role": "human", "content": "a"}]}, "wrong messages"),
        ({"messages": [{"role": "user", "content": ["a"]}]}, "wrong messages"),
        ({"messages": 7}, "wrong messages"),
    ],
)
def test_malformed_lines_are_named(tmp_path: Path, row: Any, message: str) -> None:
    path = write(tmp_path / "mine.jsonl", [{"prompt": "fine", "id": "x"}, row, *questions(3)])
    with pytest.raises(DraftError, match=message) as caught:
        JsonlPrompts(path).split("train")
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_bytes(b'{"prompt": "a"}\n{"prompt": "\xff"}\n')
    with pytest.raises(DraftError, match=r"mine\.jsonl:2 is not JSON"):
        JsonlPrompts(str(path)).split("train")


def test_json_that_is_nested_too_deep(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text('{"prompt": "a"}\n{"prompt": "b", "more": ' + "[" * 200_000 + "]" * 200_000 + "}\n")
    with pytest.raises(DraftError, match=r"mine\.jsonl:2 is not JSON"):
        JsonlPrompts(str(path)).split("train")


def test_missing_empty_and_too_small_files(tmp_path: Path) -> None:
    with pytest.raises(DraftError, match=r"no prompt file .*none.jsonl: give the path of a .jsonl or .json file"):
        JsonlPrompts(str(tmp_path / "none.jsonl")).split("train")
    with pytest.raises(DraftError, match=r"empty\.jsonl is empty: give at least one prompt"):
        JsonlPrompts(write(tmp_path / "empty.jsonl", ["", " "])).split("train")
    with pytest.raises(DraftError, match=r"no prompts in split train \(test 1, val 1, train 0\): .* give more prompts"):
        JsonlPrompts(write(tmp_path / "two.jsonl", questions(2))).split("train")


def test_wrong_settings(file: str) -> None:
    with pytest.raises(DraftError, match=r"mine\.jsonl:1 has no text in field 'topic' .*: set prompts.set_field"):
        JsonlPrompts(file, set_field="topic").split("train")
    with pytest.raises(DraftError, match=r"template=Solve must be text with \{prompt\} in it"):
        JsonlPrompts(file, template="Solve")


CALL = {"type": "function", "function": {"name": "get_time", "arguments": {"town": "x"}}}
ASKED = {"role": "user", "content": "time in x"}
SAID = {"from": "human", "value": "time in x"}


@pytest.mark.parametrize(
    ("row", "named"),
    [
        ({"messages": [ASKED, {"role": "assistant", "content": "", "tool_calls": [CALL]}]}, "tool_calls"),
        ({"messages": [ASKED, {"role": "assistant", "content": None, "tool_calls": [CALL]}]}, "tool_calls"),
        ({"messages": [ASKED, {"role": "assistant", "content": "", "function_call": {"name": "f"}}]}, "function_call"),
        ({"conversations": [SAID, {"from": "function_call", "value": "{}"}]}, "function_call"),
        ({"messages": [ASKED], "tools": [CALL]}, "tools"),
        ({"messages": [ASKED], "tools": '[{"name": "get_time"}]'}, "tools"),
        ({"messages": [ASKED], "functions": [CALL["function"]]}, "functions"),
        ({"prompt": "time in x", "tools": [CALL]}, "tools"),
    ],
)
def test_tools_and_their_calls_are_refused(tmp_path: Path, row: Any, named: str) -> None:
    path = write(tmp_path / "mine.jsonl", [{"prompt": "fine"}, row, *questions(3)])
    with pytest.raises(DraftError, match=rf"mine\.jsonl:2 has {named}, and only texts are read: write them into"):
        JsonlPrompts(path).split("train")


def test_empty_tools_are_none_and_other_keys_of_messages_are_named(tmp_path: Path, caplog) -> None:
    """As data sets write them whose rows all have the same keys."""
    empty = {"role": "user", "content": "q", "tool_calls": None, "name": None, "thinking": ""}
    rows = [{"messages": [empty], "tools": []}, {"prompt": "hit it", "tools": "hammer", "messages": None}]
    JsonlPrompts(write(tmp_path / "mine.jsonl", [*rows, *questions(6)])).split("train")
    assert "not read" not in caplog.text
    more = {**empty, "content": "r", "name": "Ann", "thinking": "hm"}
    JsonlPrompts(write(tmp_path / "more.jsonl", [{"messages": [more]}, *questions(6)])).split("train")
    assert "more.jsonl: name, thinking of messages not read, only who says what" in caplog.text


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "pick \ud83d"},
        {"messages": [{"role": "system", "content": "\udc00"}, ASKED]},
        {"messages": [ASKED, {"role": "assistant", "content": "a\ud800b"}, ASKED]},
        {"prompt": "fine", "answer": "\ud83d"},
        {"prompt": "fine", "id": "\ud83d"},
    ],
)
def test_half_a_character_is_refused(tmp_path: Path, row: Any) -> None:
    path = write(tmp_path / "mine.jsonl", [{"prompt": "\ud83d\ude00 is whole"}, row, *questions(3)])
    with pytest.raises(DraftError, match=r"mine\.jsonl:2 holds \\u(d83d|dc00|d800), half of a character"):
        JsonlPrompts(path).split("train")


def test_a_prompt_knows_its_place_which_is_no_part_of_it(tmp_path: Path) -> None:
    one = JsonlPrompts(write(tmp_path / "mine.jsonl", questions(20)))
    (tmp_path / "other").mkdir()
    two = JsonlPrompts(write(tmp_path / "other" / "mine.jsonl", ["", *questions(20)]))
    places = {prompt.where for split in SPLITS for prompt in one.split(split)}
    assert places == {f"{tmp_path}/mine.jsonl:{line}" for line in range(1, 21)}
    assert one.split("test") == two.split("test")
    assert one.split("test")[0].where != two.split("test")[0].where
    assert one.fingerprint == two.fingerprint
