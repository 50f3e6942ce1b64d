"""Runs from files and folders side by side: same prompts only, costs from the start on, a page that stands alone."""

import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hydra.conf import HydraConf
from omegaconf import OmegaConf

from draftopd import compare
from draftopd.command import SweepTable
from draftopd.comparison.report import PAGE, show
from draftopd.comparison.runs import difference, reference_run
from draftopd.comparison.sources import find
from draftopd.comparison.tables import table
from draftopd.decoding.settings import Decoding
from draftopd.errors import DraftError
from draftopd.evaluation.curves import Point
from draftopd.evaluation.metrics import Counts
from draftopd.evaluation.results import Result, Results, Training
from draftopd.evaluation.scores import Answer
from draftopd.trace import Trace

PICTURES = {"differences.png", "tau_by_flops.png", "tau_by_minutes.png", "acceptance_by_position.png"}


def answers(kept: list[int], first: int = 0) -> list[Answer]:
    """One response a prompt: three blocks of K = 4, each of which kept so many drafts."""
    out = []
    for number, held in enumerate(kept, first):
        anchors = 2 + torch.arange(3) * (held + 1)
        tokens = torch.zeros(int(anchors[-1]) + held + 2, dtype=torch.long)
        trace = Trace(tokens, 2, anchors, torch.zeros(3, 4, dtype=torch.long), torch.full((3,), held))
        out.append(Answer(str(number), "set", "", [Counts.of(trace)]))
    return out


def save(folder: Path, *results: Result, decoding: Decoding | None = None) -> Path:
    folder.mkdir(parents=True)
    return Results("target", decoding or Decoding(64), results).save(folder)


def stage(name: str, kept: list[int], start: str | None, flops: float) -> Result:
    points = [Point(flops * part, 100 * part, part, 1.0 + part) for part in (0.5, 1.0)]
    return Result(name, answers(kept), f"{name}.ckpt", None, Training(start, flops, 60.0, points))


@pytest.fixture
def stages(tmp_path: Path) -> Path:
    """Of a run with two stages, whose own results files lie below the run's."""
    warm, more = stage("warm", [1, 2, 1, 2], None, 2e15), stage("more", [2, 2, 2, 3], "warm", 1e15)
    for result in (warm, more):
        save(tmp_path / "run" / result.name, result)
    return Results("target", Decoding(64), [warm, more]).save(tmp_path / "run")


def test_a_folder_of_stages_and_an_evaluation_side_by_side(stages: Path, tmp_path: Path, capsys):
    evaluated = save(tmp_path / "evaluated", Result("published", answers([3, 3, 3, 3, 3], first=2)))
    runs = find([str(stages.parent), str(evaluated), str(stages)])
    assert [run.name for run in runs] == ["warm", "more", "published"]
    rows = table(runs, reference_run(runs))
    assert list(rows.index) == ["published", "more", "warm"]
    assert list(rows["PFLOPs"]) == ["", "2+1", "2"]
    assert list(rows["τ - warm [95 %]"]) == ["+1.50 [+1.00, +2.00] on 2 common prompts", "+0.75 [+0.25, +1.00]", ""]
    files = show(runs, reference_run(runs), tmp_path / "comparison")
    assert {path.name for path in files} == PICTURES | {PAGE}
    page = files[0].read_text()
    assert page.count("data:image/png;base64,") == len(PICTURES)
    assert not re.search(r"https?:|@import|src=\"(?!data:)", page)
    printed = capsys.readouterr().out
    assert "paired over prompts" in printed
    assert all(line in printed for line in ("published", "+0.75 [+0.25, +1.00]", "2+1"))


def test_a_start_is_there_once(stages: Path, tmp_path: Path):
    """It was tested beside a run that went on from it, and is left out where the run that made it is given too."""
    late = stage("late", [2, 2, 2, 2], "start run", 3e15)
    late = replace(late, training=replace(late.training, before=2e15))
    file = save(tmp_path / "late", Result("start run", answers([1, 2, 1, 2]), "warm.ckpt"), late)
    assert [run.name for run in find([str(file)])] == ["start run", "late"]
    runs = find([str(file), str(stages)])
    assert [run.name for run in runs] == ["late", "warm", "more"]
    assert list(table(runs, runs[0])["PFLOPs"]) == ["2+1", "2+3", "2"]


def test_runs_that_cannot_be_paired_say_why(stages: Path):
    first, second = find([str(stages)])
    others = {
        "other decoding": replace(second, decoding=Decoding(32)),
        "other target": replace(second, target_fingerprint="x"),
        "other prompts": replace(second, result=replace(second.result, answers=answers([1], first=9))),
    }
    for why, other in others.items():
        assert difference(other, first) == why
        assert table([first, other], first)["τ - warm [95 %]"]["more"] == why


def test_a_sweep_ends_with_its_runs_named_by_what_differs(tmp_path: Path, capsys):
    for number in (0, 1, 10):
        save(tmp_path / str(number), stage("sft", [1, 2, number % 4], None, 1e15))
        (tmp_path / str(number) / ".hydra").mkdir()
        OmegaConf.save([f"seed={number}", "logger=none"], tmp_path / str(number) / ".hydra" / "overrides.yaml")
    config = OmegaConf.create({"hydra": HydraConf()})
    config.hydra.sweep.dir = str(tmp_path)
    SweepTable().on_multirun_end(config)
    assert [run.name for run in find([str(tmp_path)])] == ["sft (seed=0)", "sft (seed=1)", "sft (seed=10)"]
    assert "difference of τ to sft (seed=0)" in capsys.readouterr().out
    assert (tmp_path / PAGE).exists()


def test_the_command_takes_words_and_settings(stages: Path, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    stages.parent.rename("it's a run")
    monkeypatch.setattr(sys, "argv", ["compare", "it's a run", "to=page", "against=more"])
    compare.main()
    assert "difference of τ to more" in capsys.readouterr().out
    assert (tmp_path / "page" / PAGE).exists()
    assert not (tmp_path / "mlflow.db").exists()  # nothing was asked of it


def test_what_is_not_there_is_one_clear_line(stages: Path, tmp_path: Path):
    with pytest.raises(DraftError, match="no single run is called 'less': choose one of warm, more"):
        reference_run(find([str(stages)]), "less")
    with pytest.raises(DraftError, match="no file or folder elsewhere"):
        find(["elsewhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DraftError, match="nothing to compare"):
        find([str(tmp_path / "empty")])
