"""The terminal's tables fit 80 columns, and say nothing that the numbers do not hold."""

import io
import re

import pytest
import torch
from rich.console import Console

from draftopd.decoding.settings import Decoding
from draftopd.evaluation.measure import Clock
from draftopd.evaluation.metrics import Counts
from draftopd.evaluation.results import Result, Results
from draftopd.evaluation.scores import Answer
from draftopd.evaluation.speed import BlockSize, Costs
from draftopd.evaluation.tables import tables
from draftopd.trace import Trace

LONG = "a_set_of_prompts_whose_name_is_longer_than_a_line"


def answer(number: int, name: str, kept: int) -> Answer:
    """Three blocks of K = 4, each of which kept so many drafts."""
    accepted = torch.full((3,), kept)
    anchors = 2 + torch.arange(3) * (kept + 1)
    tokens = torch.zeros(int(anchors[-1]) + kept + 2, dtype=torch.long)
    trace = Trace(tokens, 2, anchors, torch.zeros(3, 4, dtype=torch.long), accepted)
    return Answer(
        str(number), name, "", [Counts.of(trace)], Clock(120, 3, 1.0 + 0.1 * kept, 0.9), Clock(120, 0, 2.0, 1.9)
    )


def printed(names: list[str], sets: dict[str, list[int]], width: int = 80) -> str:
    costs = Costs(500, {1: 0.1, 2: 0.11, 5: 0.12}, {2: 0.01, 5: 0.02})
    sizes = [BlockSize(2, 1.5, 1.8, 1.5, 1.4), BlockSize(5, float("nan"), 3.0, 2.1, 1.9)]
    answers = [answer(i, name, kept) for name, all_kept in sets.items() for i, kept in enumerate(all_kept)]
    results = [Result(name, answers, costs=costs, block_sizes=sizes) for name in names]
    console = Console(file=io.StringIO(), width=width, color_system=None)
    for part in tables(Results("", Decoding(64), results)):
        console.print(part)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(len(line) for line in text.splitlines()) <= width
    return text


@pytest.mark.parametrize("names", [["drafter"], ["drafter", "against"]])
def test_acceptance_by_position_of_every_set_until_they_are_many(names: list[str]):
    sets = {name: [1, 2, 3] for name in "abcd"}
    few, many = printed(names, dict(list(sets.items())[:3])), printed(names, sets)
    for name in ("a", "b", "c", "mean of sets"):
        assert f"{name}: acceptance by position" in few
        assert (f"{name}: acceptance by position" in many) == (name == "mean of sets")
    assert "results.json" in many
    assert ("k accepted" in few) == (len(names) == 1)


def test_many_drafters_stand_side_by_side_without_intervals():
    text = printed([f"drafter_{number}" for number in range(6)], {"a": [1, 2, 3]})
    positions = text[text.index("a: acceptance by position") :]
    assert re.search(r"^1( │ +1\.00){6}$", positions, re.MULTILINE)
    assert text.count(" and drafter_0, paired") == 5


@pytest.mark.parametrize("names", [["drafter"], ["drafter", "against"]])
def test_long_names_fold_and_no_number_is_cut(names: list[str]):
    text = printed(names, {LONG: [1, 2, 3], "fraction_simplification": [0, 1, 4]})
    assert "…" not in text
    assert "fraction_simplification" in text
    folded = "".join(re.findall(r"^[a-z_]+", text, re.MULTILINE))
    assert LONG in folded
    assert "2.67 [1.00, 5.00]" in text  # of three prompts with 1, 2 and 5 tokens a verification
    assert "5 measured (1.90x)" in text
    assert "-9.5% to -6.7% from the model" in text


def test_one_prompt_has_no_interval_and_no_p_value():
    text = printed(["drafter", "against"], {"short": [1, 2, 3], "single": [2]}, width=120)
    lines = text[text.index("single") :].splitlines()
    assert re.search(r"drafter +│ 1 │ +3\.00 │ +3\.00", lines[1])
    assert re.search(r"mean", lines[3])
    assert re.search(r"drafter +│ 4 │ +3\.00 │ +3\.00", lines[4])  # nor has the mean over sets one
    paired = text[text.index("paired over prompts") :]
    assert len(re.findall(r"│ 1\.000$", paired, re.MULTILINE)) == 2  # short's length and speed, nothing else
    assert "A set of one prompt has no interval" in text
