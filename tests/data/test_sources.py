"""The classes that give prompts, their configurations, and encoding; what records become: test_records.py."""

import sys
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from draftopd.data.prompts import Prompt, Prompts
from draftopd.data.sources import HubPrompts, JsonlPrompts, ReasoningGymPrompts, TinyPrompts, encode
from draftopd.errors import DraftError
from prompt_sources import SPLITS, asked, config, install_datasets, questions, texts, write

TASKS: dict[str, dict[str, Any] | None] = {"gcd": {"max_value": 200}, "lcm": None, "chain_sum": {}}
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] + ' ' + m['content'] + ' ' }}{% endfor %}"
    "{% if enable_thinking is defined %}{{ 'think ' if enable_thinking else 'direct ' }}{% endif %}"
    "{% if add_generation_prompt %}{{ 'assistant' }}{% endif %}"
)


# What holds for every source


@pytest.mark.parametrize("source", ["gym", "tiny", "jsonl"])
def test_splits_are_deterministic_disjoint_and_have_unique_ids(source: str, tmp_path: Path) -> None:
    file = write(tmp_path / "mine.jsonl", questions(20))

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


# JSON Lines and the hub


def test_hub_reads_records_like_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = install_datasets(monkeypatch, [{"question": f"q{index}", "answer": "1"} for index in range(12)])
    prompts: HubPrompts = config(
        "hub",
        "prompts.path=openai/gsm8k",
        "prompts.name=main",
        "prompts.prompt_field=question",
        "prompts.val=2",
        "prompts.test=3",
        "prompts.template='{prompt} Why?'",
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


def test_configurations(tmp_path: Path) -> None:
    file = write(tmp_path / "mine.jsonl", questions(20))
    assert [len(config("tiny").split(split)) for split in SPLITS] == [16, 4, 4]
    assert len(config("jsonl", f"prompts.path={file}", "prompts.val=2").split("val")) == 2
    sizes = ("prompts.train=8", "prompts.val=4", "prompts.test=4")
    gym = config("reasoning_gym", *sizes, "~prompts.tasks.lcm", "+prompts.tasks.chain_sum={}")
    assert "chain_sum" in {prompt.set for prompt in gym.split("test")}
    assert "lcm" not in {prompt.set for prompt in gym.split("train")}


def test_default_mix_has_room_to_grow() -> None:
    prompts = config("reasoning_gym", "prompts.train=6000")
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
