import json
import logging
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from draftopd.errors import DraftError
from draftopd.prompts import HubPrompts, JsonlPrompts, Prompt, Prompts, ReasoningGymPrompts, TinyPrompts, encode

CONF = Path(__file__).parents[1] / "conf" / "prompts"
TASKS: dict[str, dict[str, Any] | None] = {"gcd": {"max_value": 200}, "lcm": None, "chain_sum": {}}
SPLITS = ("train", "val", "test")
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] + ' ' + m['content'] + ' ' }}{% endfor %}"
    "{% if enable_thinking is defined %}{{ 'think ' if enable_thinking else 'direct ' }}{% endif %}"
    "{% if add_generation_prompt %}{{ 'assistant' }}{% endif %}"
)


def texts(prompts: Prompts, split: str) -> list[str]:
    return [prompt.text for prompt in prompts.split(split)]


def asked(prompts: Prompts, split: str = "train") -> list[str]:
    return [prompt.messages[-1]["content"] for prompt in prompts.split(split)]


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def questions(number: int) -> list[Any]:
    return [{"prompt": f"question {index}", "answer": index} for index in range(number)]


def config(name: str, *overrides: str) -> Any:
    with initialize_config_dir(str(CONF), version_base=None):
        return instantiate(compose(name, overrides=list(overrides)))


@pytest.fixture
def file(tmp_path: Path) -> str:
    return write(tmp_path / "mine.jsonl", questions(20))


# What holds for every source


@pytest.mark.parametrize("source", ["gym", "tiny", "jsonl"])
def test_splits_are_deterministic_disjoint_and_have_unique_ids(source: str, file: str) -> None:
    def make() -> Prompts:
        if source == "gym":
            return ReasoningGymPrompts(TASKS, train=40, val=6, test=9)
        return TinyPrompts(train=40, val=6, test=9) if source == "tiny" else JsonlPrompts(file, val=3, test=4)

    first, second = make(), make()
    sizes = {"train": 13, "val": 3, "test": 4} if source == "jsonl" else {"train": 40, "val": 6, "test": 9}
    everything = [prompt for split in SPLITS for prompt in first.split(split)]
    assert {split: len(first.split(split)) for split in SPLITS} == sizes
    assert len({prompt.text for prompt in everything}) == len({prompt.id for prompt in everything}) == len(everything)
    assert all(first.split(split) == second.split(split) for split in SPLITS)
    assert first.fingerprint == second.fingerprint


@pytest.mark.parametrize("change", [{"seed": 1}, {"train": 9}, {"val": 3}])
def test_fingerprint_follows_the_settings(change: dict[str, int]) -> None:
    settings = {"train": 8, "val": 2, "test": 2, "seed": 0}
    assert TinyPrompts(**settings).fingerprint != TinyPrompts(**settings | change).fingerprint


def test_changing_a_returned_list_changes_nothing() -> None:
    prompts = TinyPrompts()
    prompts.split("train").clear()
    assert len(prompts.split("train")) == 16


def test_unknown_and_empty_splits() -> None:
    with pytest.raises(DraftError, match="there is no split 'dev': it is train, val or test"):
        TinyPrompts().split("dev")
    with pytest.raises(DraftError, match=r"no prompts in split val \(test 4, val 0, train 16\): raise prompts.val"):
        TinyPrompts(val=0).split("val")


# reasoning_gym and tiny


def test_tasks_take_turns() -> None:
    prompts = ReasoningGymPrompts(TASKS, train=7, val=2, test=4)
    assert [prompt.set for prompt in prompts.split("test")] == ["gcd", "lcm", "chain_sum", "gcd"]
    sets = [prompt.set for prompt in prompts.split("train")]
    assert sorted(sets.count(task) for task in TASKS) == [2, 2, 3]
    assert all(prompt.id.startswith(f"{prompt.set}/") and prompt.answer for prompt in prompts.split("train"))


def test_more_training_prompts_leave_the_others_as_they_are() -> None:
    few, many = (ReasoningGymPrompts(TASKS, train=train, val=4, test=4) for train in (5, 50))
    assert few.split("test") == many.split("test")
    assert few.split("val") == many.split("val")
    assert few.split("train") == many.split("train")[:5]


def test_another_seed_asks_other_questions() -> None:
    first, second = (ReasoningGymPrompts({"gcd": None}, train=60, val=1, test=1, seed=seed) for seed in (0, 1))
    assert not set(texts(first, "train")) & set(texts(second, "train"))


def test_repeated_questions_are_left_out() -> None:
    tasks = {"lcm": {"min_value": 1, "max_value": 3}}
    assert len(set(texts(ReasoningGymPrompts(tasks, train=5, val=2, test=2), "train"))) == 5
    with pytest.raises(DraftError, match=r"lcm has no more different prompts: lower prompts\.train"):
        ReasoningGymPrompts(tasks, train=50, val=2, test=2).split("test")


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ({}, "no reasoning_gym task: name at least one"),
        ({"simple_equation": None}, r"no task 'simple_equation' \(close matches: simple_equations"),
        ({"zzzzzz": None}, r"close matches: none"),
        ({"gcd": {"biggest": 3}}, "refuses the options of prompts.tasks.gcd: .*biggest"),
        ({"gcd": {"min_numbers": 1}}, "refuses the options of prompts.tasks.gcd: min_numbers must be at least 2"),
    ],
)
def test_wrong_tasks(tasks: dict[str, dict[str, Any] | None], message: str) -> None:
    with pytest.raises(DraftError, match=message):
        ReasoningGymPrompts(tasks, train=1, val=1, test=1).split("train")


# JSON Lines


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


def test_limit_reads_the_first_lines_only(file: str) -> None:
    prompts = JsonlPrompts(file, limit=4)
    assert {text for split in SPLITS for text in asked(prompts, split)} == {f"question {index}" for index in range(4)}


def test_blank_and_repeated_prompts_are_dropped_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "mine.jsonl", [*questions(5), "", {"prompt": " question 1 "}, {"prompt": "  "}])
    with caplog.at_level(logging.WARNING):
        assert sum(len(JsonlPrompts(path).split(split)) for split in SPLITS) == 5
    assert "dropped 2 of 7, blank or repeated" in caplog.text


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{'prompt': 1}", r"mine.jsonl:2 is not JSON \(.*\): write one JSON object a line"),
        ("[1]", "mine.jsonl:2 is not an object: write one with the field 'prompt'"),
        ({"question": "a", "n": 1}, r"mine.jsonl:2 has no text in field 'prompt' \(fields: question, n\): set prompts"),
        ({"prompt": 3}, "mine.jsonl:2 has no text in field 'prompt'"),
        ({}, r"mine.jsonl:2 has no text in field 'prompt' \(fields: none\)"),
        ({"prompt": "a", "id": "x"}, "mine.jsonl:2: id mine/x is taken: make ids unique or set prompts.id_field=null"),
        ({"messages": "hello"}, "mine.jsonl:2: wrong messages: give role"),
        ({"messages": []}, "wrong messages"),
        ({"messages": [{"from": "human", "value": "a"}]}, "wrong messages"),
        ({"messages": [{"role": "human", "content": "a"}]}, "wrong messages"),
        ({"messages": [{"role": "user", "content": ["a"]}]}, "wrong messages"),
        ({"messages": [{"role": "system", "content": "a"}, {"role": "assistant", "content": "b"}]}, "wrong messages"),
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


def test_missing_empty_and_too_small_files(tmp_path: Path) -> None:
    with pytest.raises(DraftError, match=r"no prompt file .*none.jsonl: give the path of a .jsonl file"):
        JsonlPrompts(str(tmp_path / "none.jsonl")).split("train")
    with pytest.raises(DraftError, match=r"empty\.jsonl is empty: give at least 3 prompts"):
        JsonlPrompts(write(tmp_path / "empty.jsonl", ["", " "])).split("train")
    with pytest.raises(DraftError, match=r"no prompts in split train \(test 1, val 1, train 0\): .* give more prompts"):
        JsonlPrompts(write(tmp_path / "two.jsonl", questions(2))).split("train")


def test_wrong_settings(file: str) -> None:
    with pytest.raises(DraftError, match=r"mine\.jsonl:1 has no text in field 'topic' .*: set prompts.set_field"):
        JsonlPrompts(file, set_field="topic").split("train")
    with pytest.raises(DraftError, match=r"prompts\.template 'Solve' leaves the prompt out: put {prompt} in it"):
        JsonlPrompts(file, template="Solve").split("train")


# The hub


def install_datasets(monkeypatch: pytest.MonkeyPatch, rows: list[Any] | Exception) -> list[Any]:
    """Put a stand-in for the `datasets` library in place; the calls it got are returned."""
    calls: list[Any] = []

    def load_dataset(path: str, name: str | None, split: str, revision: str | None) -> list[Any]:
        calls.append((path, name, split, revision))
        if isinstance(rows, Exception):
            raise rows
        return rows

    module = ModuleType("datasets")
    monkeypatch.setattr(module, "load_dataset", load_dataset, raising=False)
    monkeypatch.setitem(sys.modules, "datasets", module)
    return calls


def test_hub_reads_records_like_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = install_datasets(monkeypatch, [{"question": f"q{index}", "answer": "1"} for index in range(12)])
    prompts: HubPrompts = config(
        "hub", "path=openai/gsm8k", "name=main", "prompt_field=question", "val=2", "test=3", "template='{prompt} Why?'"
    )
    assert [len(prompts.split(split)) for split in SPLITS] == [7, 2, 3]
    assert {prompt.set for prompt in prompts.split("train")} == {"gsm8k"}
    assert all(text.endswith(" Why?") for text in asked(prompts))
    assert calls == [("openai/gsm8k", "main", "train", None)]


def test_hub_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    install_datasets(monkeypatch, [{"question": "q"}])
    with pytest.raises(DraftError, match=r"o/d row 0 has no text in field 'prompt' \(fields: question\)"):
        HubPrompts("o/d").split("train")
    install_datasets(monkeypatch, ValueError("Config name is missing.\nPick one"))
    with pytest.raises(DraftError, match=r"cannot load o/d from the hub: Config name is missing\. Pick one"):
        HubPrompts("o/d").split("train")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DraftError, match=r"pip install draftopd\[hub\]"):
        HubPrompts("o/d").split("train")


# Configuration


def test_configurations(file: str) -> None:
    assert [len(config("tiny").split(split)) for split in SPLITS] == [16, 4, 4]
    assert len(config("jsonl", f"path={file}", "val=2").split("val")) == 2
    gym = config("reasoning_gym", "train=8", "val=4", "test=4", "~tasks.lcm", "+tasks.chain_sum={}")
    assert "chain_sum" in {prompt.set for prompt in gym.split("test")}
    assert "lcm" not in {prompt.set for prompt in gym.split("train")}


def test_default_mix_has_room_to_grow() -> None:
    prompts = config("reasoning_gym", "train=6000")
    assert len(set(texts(prompts, "train"))) == 6000


# Encoding


def tokenizer(template: str | None) -> PreTrainedTokenizerFast:
    words = ["[UNK]", "system", "user", "assistant", "think", "direct", "be", "brief", "one", "two"]
    model = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    model.pre_tokenizer = Whitespace()
    made = PreTrainedTokenizerFast(tokenizer_object=model, unk_token="[UNK]")
    made.chat_template = template
    return made


PROMPT = Prompt("p/1", "p", ({"role": "system", "content": "be brief"}, {"role": "user", "content": "one two"}))


def decoded(template: str | None, enable_thinking: bool | None = None) -> str:
    made = tokenizer(template)
    ids = encode(PROMPT, made, enable_thinking)
    assert isinstance(ids, list)
    return " ".join(made.convert_ids_to_tokens(ids))


def test_encode_ends_with_the_generation_prompt() -> None:
    assert decoded(TEMPLATE) == "system be brief user one two assistant"


def test_encode_without_a_chat_template() -> None:
    assert decoded(None) == decoded(None, enable_thinking=True) == "be brief one two"


def test_encode_hands_thinking_over_only_when_set() -> None:
    assert decoded(TEMPLATE, enable_thinking=True).endswith("think assistant")
    assert decoded(TEMPLATE, enable_thinking=False).endswith("direct assistant")


def test_encode_refuses_long_prompts() -> None:
    assert encode(PROMPT, tokenizer(TEMPLATE), max_length=6) is None
    assert len(encode(PROMPT, tokenizer(TEMPLATE), max_length=7) or []) == 7
