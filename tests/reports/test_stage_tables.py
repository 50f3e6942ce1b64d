"""The table of a run's end: what it holds, in 80 columns and in Markdown."""

import io

import pytest
import torch
from rich.console import Console

from draftopd.decoding.settings import Decoding
from draftopd.evaluation.curves import Point
from draftopd.evaluation.measure import Clock
from draftopd.evaluation.metrics import Counts
from draftopd.evaluation.results import Result, Results, Training
from draftopd.evaluation.scores import Answer
from draftopd.reports.stages import Cells, best, differences, scaled, tables
from draftopd.trace import Trace

CLOCKS = (Clock(120, 3, 1.0, 0.9), Clock(120, 0, 2.0, 1.9))


def answers(*kept: int) -> list[Answer]:
    """A prompt each, whose three blocks of four drafts kept so many."""
    out = []
    for number, accepted in enumerate(kept):
        anchors = 2 + torch.arange(3) * (accepted + 1)
        tokens = torch.zeros(int(anchors[-1]) + accepted + 2, dtype=torch.long)
        trace = Trace(tokens, 2, anchors, torch.zeros(3, 4, dtype=torch.long), torch.full((3,), accepted))
        out.append(Answer(str(number), "set", "", [Counts.of(trace)], *CLOCKS))
    return out


def trained(name: str, *kept: int, start: str | None = None, before: float | None = 0.0) -> Result:
    curve = [Point(1.0, 1.0, 1.0, 2.5)]
    return Result(name, answers(*kept), training=Training(start, 5.5e13, 90.0, curve, before))


def results(*parts: Result) -> Results:
    return Results("", Decoding(64), parts)


def rows(cells: Cells) -> dict[str, list[str]]:
    return {name: rest for name, *rest in cells.rows}


def test_a_stage_is_compared_with_its_start_and_pays_for_it():
    (cells,) = tables(results(trained("sft", 0, 1, 2), trained("draft_opd", 1, 2, 4, start="sft", before=5.5e13)))
    assert rows(cells)["sft"] == ["2.00 [1.00, 3.00]", "-", "2.00x", "55 T", "1.5"]
    assert rows(cells)["draft_opd"] == ["3.33 [2.00, 5.00]", "+1.33 [+1.00, +2.00]", "2.00x", "110 T", "1.5"]


@pytest.mark.parametrize(("before", "own", "start"), [(1.1e14, "165 T", "110 T"), (None, "55 T + ?", "?")])
def test_a_start_from_elsewhere_has_a_row_without_training(before: float | None, own: str, start: str):
    given = results(Result("start a", answers(1, 1, 1)), trained("b", 1, 2, 4, start="start a", before=before))
    (cells,) = tables(given)
    assert rows(cells)["start a"] == ["2.00 [2.00, 2.00]", "-", "2.00x", start, "-"]
    assert rows(cells)["b"][-2] == own
    assert [line.split(":")[0] for line in differences(given)] == ["b - start a"]
    assert given.own.name == best(given).name == "b"


def test_a_file_of_an_older_version_pays_for_the_stages_in_it():
    (cells,) = tables(results(trained("a", 1), trained("b", 2, start="a", before=None)))
    assert rows(cells)["b"][-2] == "110 T"


def test_what_was_not_tested_shows_its_validations():
    untested = trained("a")
    (cells,) = tables(results(untested))
    assert rows(cells)["a"] == ["2.500", "2.500", "55 T", "1.5"]
    assert [cells.title.split(";")[0] for cells in tables(results(untested, trained("b", 1, 2)))] == [
        "validation prompts",
        "2 held-out prompts, greedy",
    ]


def test_the_table_fits_80_columns_and_is_markdown_too():
    (cells,) = tables(results(trained("sft", 0, 1, 2), trained("sft_continued", 1, 2, 4, start="sft")))
    console = Console(file=io.StringIO(), width=80, color_system=None)
    console.print(cells.terminal())
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    for cell in (*rows(cells)["sft_continued"], "sft_continued"):
        assert f"{cell} " in printed.replace("\n", " "), printed
    title, empty, head, rule, *lines = cells.markdown().splitlines()
    assert title.startswith("3 held-out prompts, greedy; τ = acceptance length")
    assert (empty, len(lines)) == ("", 2)
    assert [cell.strip() for cell in head.split("|")[1:4]] == ["stage", "τ [95 %]", "τ - start's [95 %]"]
    assert set(rule) == set("|-:")
    assert len({len(line) for line in (head, rule, *lines)}) == 1


def test_large_numbers_get_a_letter():
    assert [scaled(n) for n in (12, 1500, 5.51e13, 2e15)] == ["12", "1.5 k", "55.1 T", "2 P"]
