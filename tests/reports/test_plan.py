"""The plan: printed before a run, or instead of one."""

import re
from pathlib import Path

import pytest

SMOKE = ("experiment=smoke", "texts.folder=texts", "logger=none")


def planned(printed: str) -> dict[str, list[str]]:
    """The cells of each stage."""
    found = re.findall(
        r"^(\w+) +(\d+) +([\d,-]+) +([\d.]+ \w) +([\d.]+ (?:s|min|h)) +([\d.]+) +([\d.]+) *$", printed, re.M
    )
    return {name: cells for name, *cells in found}


def test_a_dry_run_prints_the_plan_of_every_stage_and_writes_nothing(command, tmp_path: Path, capsys):
    assert command(*SMOKE, "--dry-run") == 0
    printed = capsys.readouterr().out
    stages = planned(printed)
    assert [stages[name][:2] for name in ("sft", "draft_opd")] == [["20", "80"], ["4", "4"]]  # texts and steps
    assert "All stages: about" in printed
    assert "responses of 24 tokens" in " ".join(printed.split())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "steps"),
    [
        (["budget.epochs=null", "budget.steps=7"], "7"),
        (["budget.epochs=null", "budget.flops=1e9", "data=mixed", "traces=redrafts"], None),
    ],
)
def test_it_knows_every_budget_and_kind_of_data(command, capsys, words: list[str], steps: str | None):
    assert command("experiment=smoke/draft_opd", "logger=none", *words, "--dry-run") == 0
    (cells,) = planned(capsys.readouterr().out).values()
    assert steps in (None, cells[1])
    assert ("budget.flops=1e9" in words) == (cells[2] == "1 G")


def test_a_sweep_has_no_plan(command, capsys):
    assert command(*SMOKE, "seed=1,2", "-m", "--dry-run") == 2
    assert "--dry-run is for single runs" in capsys.readouterr().err
