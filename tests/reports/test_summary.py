"""The end of a run by the command: what it started from is tested beside it, and what it says to type next works."""

import json
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from draftopd import compare, evaluate, export, fit
from draftopd.decoding.settings import Decoding
from draftopd.evaluation.results import FILE, earlier_answers, load
from draftopd.reports.summary import FILE as SUMMARY
from draftopd.reports.summary import Commands, Store, stopped, summary
from runs import UNTIMED, outputs, runs

ONE_STEP = ("experiment=smoke/draft_opd", "budget.epochs=null", "budget.steps=1")


def test_a_run_from_a_checkpoint_is_compared_with_it(command, tested: Path, tmp_path, capsys):
    """The start's answers are those of its own test where that is there, and are made anew where it is not."""
    known = load(tested.parents[1] / FILE)
    args = (known.target_fingerprint, known.decoding)
    assert earlier_answers(tested, *args) == known.own.answers
    assert not earlier_answers(tested, "another target", known.decoding)
    assert not earlier_answers(tested, known.target_fingerprint, Decoding(max_new_tokens=9))

    alone = shutil.copytree(tested.parent, tmp_path / "sft" / "checkpoints") / "last.ckpt"
    assert not earlier_answers(alone, *args)
    assert command(*ONE_STEP, f"init_from={alone}", *UNTIMED) == 0
    start, own = json.loads((outputs(tmp_path) / FILE).read_text())["results"]
    assert start["name"] == own["training"]["start"] == "start sft"
    assert start["answers"] == json.loads((tested.parents[1] / FILE).read_text())["results"][0]["answers"]
    flops = known.own.training.flops  # type: ignore[union-attr]
    assert own["training"]["before"] == pytest.approx(flops)
    text = (outputs(tmp_path) / SUMMARY).read_text()
    assert text.count("| start sft ") == text.count(f"| {own['name']} ") == 1
    assert f"- {own['name']} - start sft: " in text
    commands = [line.strip() for line in text.splitlines() if line.startswith("    ")]
    assert commands == [
        f"python -m draftopd.evaluate checkpoint={own['checkpoint']}",
        f"python -m draftopd.export run={own['checkpoint']} layout=zlab",
        f"python -m draftopd.fit {' '.join(('cache_dir=cache', *ONE_STEP, *UNTIMED))} init_from={own['checkpoint']}",
        f"python -m draftopd.fit {' '.join(('cache_dir=cache', *ONE_STEP, f'init_from={alone}', *UNTIMED))} seed=1",
        f"python -m draftopd.compare {outputs(tmp_path).parent}",
    ]
    printed = capsys.readouterr().out.splitlines()
    assert all(f"    {line}" in printed for line in commands)


@pytest.mark.slow
def test_the_next_commands_work_word_for_word(command, tmp_path, monkeypatch, capsys):
    assert command("experiment=smoke", "test.speedup_prompts=0", "drafter.draft_vocab_size=null") == 0
    said = capsys.readouterr().out
    next_ones = [line.strip() for line in said.splitlines() if line.startswith("    python -m ")]
    for line, main in zip(next_ones, (evaluate.main, export.main, fit.main, fit.main, compare.main), strict=True):
        monkeypatch.setattr(sys, "argv", shlex.split(line)[2:])
        main()
    assert "draftopd/" not in said
    assert (outputs(tmp_path) / SUMMARY).exists()
    assert len(runs(tmp_path)) == 8


def test_pages_and_commands_name_a_store_that_is_not_the_usual_one():
    usual, other = (Store(uri, "sqlite:///a.db", "http://here:1") for uri in ("sqlite:///a.db", "sqlite:///b.db"))
    assert usual.page("7") == "http://here:1/#/runs/7 (after: python -m draftopd.ui)"
    assert "MLFLOW_TRACKING_URI=sqlite:///b.db python -m" in other.page("7")
    known = Store("http://host:5", "", "", "3")
    assert known.page("7") == "http://host:5/#/experiments/3/runs/7?workflowType=machine_learning"
    assert Store("http://me:secret@host:5/", "", "").page("7") == "http://host:5/#/runs/7"


def test_an_interrupted_run_names_what_is_finished_and_the_command(tested: Path):
    done = load(tested.parents[1] / FILE)
    first, last = stopped([done], "python -m draftopd.fit experiment=smoke 'name=a b' resume=old.ckpt")
    assert first.startswith(f"finished: {done.own.name}: τ 1.")
    assert first.endswith(str(done.own.checkpoint))
    assert last == "to go on: python -m draftopd.fit experiment=smoke 'name=a b' resume=auto"


def test_what_was_not_tested_names_its_checkpoint_all_the_same(tested: Path):
    done = load(tested.parents[1] / FILE)
    done.own.answers.clear()
    parts = summary(done, Commands(Store(None, "", ""), {}))
    assert f"checkpoint of {done.own.name}: {done.own.checkpoint}" in str(parts)
