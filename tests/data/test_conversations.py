"""Shapes of records that are read without an option; training on every turn of the assistant."""

from pathlib import Path
from typing import Any

import pytest

from draftopd.data.sources import JsonlPrompts
from prompt_sources import SPLITS, asked, write

N = 20
SHARE = {"user": "human", "assistant": "gpt", "system": "system"}


def chat(number: int) -> list[dict[str, str]]:
    said = [("system", "short"), ("user", f"q{number}"), ("assistant", f"a{number}"), ("user", f"r{number}")]
    return [{"role": role, "content": text} for role, text in [*said, ("assistant", f"b{number}")]]


def share(number: int) -> list[dict[str, str]]:
    return [{"from": SHARE[turn["role"]], "value": turn["content"]} for turn in chat(number)]


CONVERSATIONS = {
    "messages": [{"messages": chat(n)} for n in range(N)],
    "UltraChat": [{"prompt": f"q{n}", "prompt_id": str(n), "messages": chat(n)} for n in range(N)],
    "ShareGPT": [{"conversations": share(n)} for n in range(N)],
    "LMSYS": [{"conversation": chat(n)} for n in range(N)],
}
SINGLE = {
    "prompt": [{"prompt": f"do {n}\n\n{n}"} for n in range(N)],
    "Alpaca": [{"instruction": f"do {n}", "input": str(n), "output": "x"} for n in range(N)],
    "Dolly": [{"instruction": f"do {n}", "context": str(n), "response": "x"} for n in range(N)],
    "no input": [{"instruction": f"do {n}\n\n{n}", "input": "", "output": "x"} for n in range(N)],
}


def read(path: Path, rows: list[Any], **settings: Any) -> JsonlPrompts:
    return JsonlPrompts(write(path / "mine.jsonl", rows), **settings)


@pytest.mark.parametrize("shape", CONVERSATIONS)
def test_every_turn_is_trained_on_and_each_conversation_measured_once(tmp_path: Path, shape: str) -> None:
    prompts = read(tmp_path, CONVERSATIONS[shape], val=4, test=4)
    train, held = asked(prompts), asked(prompts, "val") + asked(prompts, "test")
    assert sorted(train)[:12] == sorted(f"q{text[1:]}" for text in train if text[0] == "r")
    assert len(train) == 24
    assert sorted({text[0] for text in held}) == ["r"]
    assert {text[1:] for text in train}.isdisjoint(text[1:] for text in held)
    assert len(held) == 8
    (later,) = [prompt for prompt in prompts.split("train") if prompt.messages[-1]["content"] == train_r(train)]
    assert list(later.messages) == chat(int(train_r(train)[1:]))[:-1]


def train_r(train: list[str]) -> str:
    return next(text for text in train if text[0] == "r")


@pytest.mark.parametrize("shape", SINGLE)
def test_instructions_are_prompts(tmp_path: Path, shape: str) -> None:
    prompts = read(tmp_path, SINGLE[shape], template="Please {prompt}")
    assert sorted(asked(prompts, "train") + asked(prompts, "val") + asked(prompts, "test")) == sorted(
        f"Please do {n}\n\n{n}" for n in range(N)
    )


def test_a_whole_file_is_measured_and_a_file_for_the_test_instead_of_it(tmp_path: Path) -> None:
    prompts = read(tmp_path, CONVERSATIONS["ShareGPT"])
    assert sorted(prompt.messages[-1]["content"] for prompt in prompts.measured()) == sorted(f"r{n}" for n in range(N))
    test = write(tmp_path / "exam.jsonl", [{"prompt": "one"}, {"prompt": "two"}])
    own = read(tmp_path, CONVERSATIONS["ShareGPT"], test_path=test)
    assert [prompt.messages[-1]["content"] for prompt in own.measured()] == ["one", "two"]


def test_what_is_left_out_is_counted_in_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    answer, question = {"from": "gpt", "value": "a0"}, {"from": "human", "value": "q"}
    rows = [
        {"conversations": []},
        {"conversations": [answer]},
        {"conversations": [answer, question, answer]},  # the rest of a conversation that was cut
        {"conversations": [question, answer, {"from": "human", "value": "other"}]},
        {"conversations": [{"from": "human", "value": " "}, answer]},
        *({"conversations": share(n)} for n in range(4)),
    ]
    prompts = read(tmp_path, rows)
    found = [text for split in SPLITS for text in asked(prompts, split)]
    assert {"q", "other"} <= set(found)
    (line,) = [line for line in caplog.messages if "left out" in line]
    assert line.endswith("mine.jsonl: 4 of 14 prompts left out: 2 without a question, 1 repeated, 1 blank")


def test_ids_name_the_turn(tmp_path: Path) -> None:
    rows = [{"id": f"x{n}", "messages": chat(n)} for n in range(8)]
    prompts = read(tmp_path, rows, val=1, test=1)
    ids = sorted(prompt.id for prompt in prompts.split("train"))
    assert len(ids) == 12
    assert ids[1] == f"{ids[0]}/turn2"
    assert prompts.split("test")[0].id.endswith("/turn2")


def test_messages_field_null_reads_the_prompt_alone(tmp_path: Path) -> None:
    prompts = read(tmp_path, CONVERSATIONS["UltraChat"], messages_field=None)
    assert sorted(prompt.messages[-1]["content"] for prompt in prompts.measured()) == sorted(f"q{n}" for n in range(N))
