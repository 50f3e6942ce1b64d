"""The official evaluation sets: which records, asked how, under which names; follow-up turns; sources joined."""

from dataclasses import replace
from typing import Any

import pytest

from draftopd.command import CONFIG_DIR
from draftopd.data.benchmarks import HubEvaluation, UnionPrompts
from draftopd.data.prompts import Prompt, ask, continued
from draftopd.data.sources import TinyPrompts
from draftopd.errors import DraftError
from prompt_sources import Rows, asked, config, install_datasets

BOXED = "q\nPlease reason step by step, and put your final answer within \\boxed{}."
STUB = "Write a solution to the following problem and make sure that it passes the tests:\n```python\nq\n```"
ISSUE = "Problem Statement:\nq\nPlease fix the issue described above."
OFFICIAL = {  # call of load_dataset, field of the prompt, what is asked, number of prompts: METHOD 6.4
    "gsm8k": (("openai/gsm8k", "main", "test", None), "question", BOXED, 128),
    "math500": (("HuggingFaceH4/MATH-500", None, "test", None), "problem", BOXED, 128),
    "aime25": (("math-ai/aime25", None, "test", None), "problem", BOXED, 30),
    "mbpp": (("google-research-datasets/mbpp", "sanitized", "test", None), "prompt", "q", 128),
    "humaneval": (("openai/openai_humaneval", None, "test", None), "prompt", STUB, 128),
    "swe_lite": (("princeton-nlp/SWE-bench_Lite", None, "test", None), "problem_statement", ISSUE, 128),
    "mt_bench": (("HuggingFaceH4/mt_bench_prompts", None, "train", None), "prompt", "q", 80),
}
FIRST = Prompt("mt_bench/7", "mt_bench", ask("one"), "reference", ("two", "three"))


def rows(number: int) -> list[Any]:
    return [{"prompt": f"question {index}", "id": index} for index in range(number)]


def evaluation(**settings: Any) -> HubEvaluation:
    return HubEvaluation(path="o/d", set="mine", **settings)


SPEED = {  # as a row of the hub has it
    "question_id": "s1",
    "category": "coding",
    "sub_category": "x",
    "turns": ["one", "two"],
    "source": "y",
    "src_id": "3",
    "difficulty": "easy",
    "multiturn": True,
}
HIDDEN = ["FULL BENCHMARK DATA SHOULD BE FETCHED FROM THE SOURCE USING SPECDEC_BENCH"]


def test_speed_bench(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A set for each category; placeholders are counted, and refused where there is nothing else."""
    rows = [SPEED, {**SPEED, "question_id": "s2", "category": "qa", "turns": ["three"]}]
    calls = install_datasets(monkeypatch, [*rows, {**SPEED, "question_id": "s3", "turns": HIDDEN}])
    first, second = config("eval/speed_bench").split("test")
    assert calls == [("nvidia/SPEED-Bench", "qualitative", "test", None)]
    assert (first.id, first.set, first.messages, first.followups) == ("speed_bench/s1", "coding", ask("one"), ("two",))
    assert (second.id, second.set, second.messages, second.followups) == ("speed_bench/s2", "qa", ask("three"), ())
    assert "nvidia/SPEED-Bench: 1 of 3 samples left out: placeholders instead of texts" in caplog.text
    install_datasets(monkeypatch, [{**SPEED, "turns": HIDDEN}])
    with pytest.raises(DraftError, match="has only placeholders instead of texts: give the path of a folder"):
        config("eval/speed_bench").split("test")


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_settings(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    call, field, question, number = OFFICIAL[name]
    calls = install_datasets(monkeypatch, [{field: "q"}])
    prompts = config(f"eval/{name}")
    assert not calls  # nothing is loaded before it is asked for
    (prompt,) = prompts.split("test")
    assert calls == [call]
    assert (prompt.messages, prompt.set, prompt.followups) == (ask(question), name, ())
    assert prompt.id.startswith(f"{name}/")
    assert (prompts.test, prompts.shuffle_seed) == (number, 0)


def test_all_is_every_set_under_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = {path.stem for path in (CONFIG_DIR / "prompts" / "eval").glob("*.yaml")} - {"common", "all"}
    assert shipped == {*OFFICIAL, "speed_bench"}  # which is none of the paper's
    calls = install_datasets(monkeypatch, [{field: "q" for _, field, _, _ in OFFICIAL.values()}])
    prompts = config("eval/all")
    assert not calls
    assert [(prompt.set, prompt.messages) for prompt in prompts.split("test")] == [
        (name, ask(question)) for name, (_, _, question, _) in OFFICIAL.items()
    ]
    assert {key: source.test for key, source in prompts.sources.items()} == {k: v[3] for k, v in OFFICIAL.items()}
    alone = [config(f"eval/{name}").split("test")[0] for name in OFFICIAL]
    assert prompts.split("test") == alone
    assert "swe_lite" not in config("eval/all", "~prompts.sources.swe_lite").sources


def test_a_subset_is_the_head_of_the_librarys_own_shuffle(monkeypatch: pytest.MonkeyPatch) -> None:
    install_datasets(monkeypatch, rows(50))
    drawn = [row["prompt"] for row in Rows(rows(50)).shuffle(seed=3)[:8]]
    assert asked(evaluation(test=8, shuffle_seed=3), "test") == drawn
    assert asked(evaluation(test=8), "test") == [f"question {index}" for index in range(8)]


@pytest.mark.parametrize("test", [None, 5, 9])
def test_a_set_that_is_small_enough_stays_in_order(test: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    install_datasets(monkeypatch, rows(5))
    prompts = evaluation(test=test, shuffle_seed=0)
    assert [prompt.id for prompt in prompts.split("test")] == [f"mine/{index}" for index in range(5)]


def test_there_is_nothing_to_train_on(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = install_datasets(monkeypatch, rows(5))
    for prompts in (evaluation(), UnionPrompts({"other": evaluation()})):
        for split in ("train", "val"):
            with pytest.raises(DraftError, match=f"^mine is for evaluation and has no split {split}: choose other.*$"):
                prompts.split(split)
        with pytest.raises(DraftError, match="there is no split 'dev'"):
            prompts.split("dev")
    assert not calls


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "a"}, r"o/d sample 1 has no text in field 'prompt' \(fields: text\): set prompts.prompt_field"),
        ({"prompt": []}, "o/d sample 1 has no text in field 'prompt'"),
        ({"prompt": ["a", 3]}, "o/d sample 1 has no text in field 'prompt'"),
        ({"prompt": "a", "id": 0}, "o/d sample 1: id mine/0 is taken"),
    ],
)
def test_malformed_rows(row: Any, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    install_datasets(monkeypatch, [*rows(1), row])
    with pytest.raises(DraftError, match=message):
        evaluation().split("test")


# Several user turns


def test_a_list_of_turns_is_one_prompt_with_followups(monkeypatch: pytest.MonkeyPatch) -> None:
    install_datasets(monkeypatch, [{"prompt": ["one", "two"]}, {"prompt": ["one", "other"]}])
    first, second = evaluation(template="Say: {prompt}").split("test")
    assert first.messages == second.messages == ask("Say: one")
    assert (first.followups, second.followups) == (("two",), ("other",))


def test_the_next_turn_follows_the_targets_answer() -> None:
    second = continued(FIRST, "first answer")
    assert second.messages == (*FIRST.messages, {"role": "assistant", "content": "first answer"}, *ask("two"))
    assert (second.id, second.set, second.answer, second.followups) == (
        "mt_bench/7/turn2",
        "mt_bench",
        None,
        ("three",),
    )
    third = continued(second, "second answer")
    assert [message["content"] for message in third.messages] == [
        "one",
        "first answer",
        "two",
        "second answer",
        "three",
    ]
    assert (third.id, third.followups) == ("mt_bench/7/turn3", ())
    with pytest.raises(ValueError, match="mt_bench/7/turn3 has no follow-ups"):
        continued(third, "third answer")


def test_followups_count_in_the_fingerprint_and_tell_prompts_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    prints = []
    for second in ("two", "other"):
        install_datasets(monkeypatch, [{"prompt": ["one", second], "id": 1}])
        prints.append((evaluation().fingerprint, UnionPrompts({"a": evaluation()}).fingerprint))
    assert len({fingerprint for pair in prints for fingerprint in pair}) == 4
    assert replace(FIRST, followups=("two",)).text != FIRST.text


# Sources joined


def test_a_union_names_its_sets_and_takes_turns() -> None:
    prompts = UnionPrompts({"tiny": TinyPrompts(test=1), "b": TinyPrompts(test=3)})
    assert [(prompt.id, prompt.set) for prompt in prompts.split("test")] == [
        ("tiny/0", "tiny"),
        ("b/tiny/0", "b"),
        ("b/tiny/1", "b"),
        ("b/tiny/2", "b"),
    ]
    assert len(prompts.split("train")) == 32
    assert prompts.measured() == prompts.split("test")


def test_the_fingerprint_of_a_union_follows_names_and_sources() -> None:
    unions = [{"a": TinyPrompts()}, {"b": TinyPrompts()}, {"a": TinyPrompts(seed=1)}]
    assert len({UnionPrompts(sources).fingerprint for sources in unions}) == 3
    assert UnionPrompts({"a": TinyPrompts()}).fingerprint == UnionPrompts({"a": TinyPrompts()}).fingerprint
