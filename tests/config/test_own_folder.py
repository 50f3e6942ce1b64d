"""A user's own folder of YAML files, --config-dir: checked as the shipped ones, and none of it is ignored."""

import sys
from pathlib import Path

import pytest

from draftopd.command import check_words

G = "# @package _global_\n"
GOOD = {
    "objective/mine.yaml": "defaults: [d_pace]\n",
    "experiment/mine.yaml": f"{G}defaults: [/scale/tiny, override /objective: mine]\nbudget: {{steps: 1}}\n",
    "experiment/both.yaml": "# @package _global_\nstages: {a: {experiment: mine, init_from: null}}\nname: both\n",
}


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    """What the check of a command's words prints as its error, with files in a folder of one's own; "" = none."""
    monkeypatch.chdir(tmp_path)

    def said(files: dict[str, str], *words: str, folder: str = "it's my, own") -> str:
        for name, text in files.items():
            (tmp_path / folder / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / folder / name).write_text(text)
        monkeypatch.setattr(sys, "argv", ["fit", "--config-dir", folder, "logger=none", *words])
        try:
            check_words("fit")
        except SystemExit:
            return capsys.readouterr().err
        return ""

    return said


@pytest.mark.parametrize("words", ["experiment=mine", "experiment=both", "experiment=smoke/sft objective=mine"])
def test_own_files_are_read_beside_ours(said, words: str):
    assert said(GOOD, *words.split()) == ""


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "experiment/mine.yaml",
            "# @package _global_\nbudget: {epoch: 3}\n",
            "budget has no setting epoch: did you mean",
        ),
        (
            "experiment/mine.yaml",
            "# @package _global_\nbudget: {epochs: -3}\n",
            "budget.epochs=-3 must be a number above",
        ),
        ("experiment/mine.yaml", "# @package _global_\nbudget: {epochs: 3\n", "mine.yaml"),
        ("experiment/mine.yaml", "budget: {epochs: 3}\n", "begin its file with # @package _global_"),
        (
            "experiment/mien.yaml",
            "# @package _global_\n",
            "there is no experiment=mine: did you mean mien? (choose from ",
        ),
        (
            "objective/d_pace.yaml",
            "x: 1\n",
            "d_pace.yaml has the name of a file of draftopd, which Hydra reads instead",
        ),
    ],
)
def test_mistakes_in_them_are_one_line(said, name: str, text: str, message: str):
    error = said({name: text}, "experiment=mine")
    assert message in error
    assert (error.count("\n"), error[:7]) == (1, "error: ")


def test_a_folder_that_is_not_there_and_one_instead_of_ours(said):
    assert "--config-dir nowhere: there is no such folder" in said({}, folder="nowhere")
    assert "add a folder of yours with --config-dir" in said(GOOD, "--config-path=/tmp")
