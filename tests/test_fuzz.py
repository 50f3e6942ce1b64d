"""The first inputs of tests/fuzz.py (`python tests/fuzz.py` loads more of them), and what it takes for a fault."""

import os
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest
import torch

import fuzz
from draftopd.errors import DraftError
from fuzz import Kind, kinds, outcome, run

INPUTS = 16  # of each kind


@pytest.fixture(scope="module")
def made(target, checkpoint, folders) -> dict[str, Kind]:
    return kinds(target, checkpoint, folders)


@pytest.mark.parametrize("name", ["prompts", "checkpoint", "published"])
def test_whatever_is_spoilt_is_read_or_refused_in_one_line(made, tmp_path: Path, name: str):
    first = list(made).index(name)
    found = {number: run(made[name], number, 0, tmp_path / str(number)) for number in range(first, 3 * INPUTS, 3)}
    assert {number: text for number, text in found.items() if text not in ("read", "refused")} == {}
    assert "refused" in found.values()


@pytest.mark.parametrize(
    ("load", "expected"),
    [
        (lambda path: {}["a"], "KeyError"),
        (lambda path: os.system("true"), "os.system"),
        (lambda path: path.parent.with_name("elsewhere").write_text(""), "elsewhere"),
        (lambda path: (path.parent / "ran").touch(), "ran"),
        (lambda path: torch.ones(2**36), "memory"),
        (lambda path: time.sleep(9), "not ready after 0.1 s"),
        (lambda path: any(False for _ in count()), "not ready after 0.1 s"),
        (lambda path: (path.parent / "own").touch(), "read"),
    ],
)
def test_every_kind_of_fault_is_seen(tmp_path: Path, monkeypatch, load: Callable[[Path], object], expected: str):
    monkeypatch.setattr(fuzz, "SECONDS", 0.1)
    place = tmp_path / "place"
    place.mkdir()
    found = outcome(Kind(lambda dice, folder: folder, load), place / "input", place)
    assert expected in found
    assert (found in ("read", "refused")) == (expected == "read")


def test_an_error_is_one_line_whatever_it_quotes(tmp_path: Path):
    def load(path: Path) -> None:
        raise DraftError("no key a\nb\x1b[31m\ud83d\u2028" + "y" * 10_000 + ": write it")

    assert outcome(Kind(lambda dice, folder: folder, load), tmp_path, tmp_path) == "refused"
    with pytest.raises(DraftError, match=r"^no key a b\\x1b\[31m\\ud83d\\u2028y+ \.\.\. y+: write it$"):
        load(tmp_path)
