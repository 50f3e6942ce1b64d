"""The stages of a run side by side: what each has reached, how much more than its start, and what that took."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from rich import box
from rich.table import Table

from draftopd.evaluation.headline import flops, gain, headline
from draftopd.evaluation.results import Result, Results
from draftopd.evaluation.scores import compare
from draftopd.tracking.pages import TAU_DELTA

UNITS = {"E": 1e18, "P": 1e15, "T": 1e12, "G": 1e9, "M": 1e6, "k": 1e3}


def scaled(number: float) -> str:
    """To three digits, with the unit's letter: 55.1 T."""
    for letter, size in UNITS.items():
        if number >= size:
            return f"{number / size:.3g} {letter}"
    return f"{number:.3g}"


@dataclass(frozen=True)
class Cells:
    """A table, for the terminal and for Markdown. A newline in a column's name is for the terminal only."""

    title: str
    columns: Sequence[str]
    rows: list[list[str]] = field(default_factory=list)

    def terminal(self) -> Table:
        """80 columns wide at most where names are short."""
        table = Table(
            title=self.title,
            title_justify="left",
            box=box.SIMPLE_HEAD,
            show_edge=False,
            pad_edge=False,
            padding=(0, 1, 0, 0),
        )
        table.add_column(self.columns[0], overflow="fold")
        for column in self.columns[1:]:
            table.add_column(column, justify="right", no_wrap=True)
        for row in self.rows:
            table.add_row(*row)
        return table

    def markdown(self) -> str:
        """Padded, so that it is read as well where nothing renders it."""
        lines = [[column.replace("\n", " ") for column in self.columns], *self.rows]
        widths = [max(len(cell) for cell in cells) for cells in zip(*lines, strict=True)]
        rule = ["-" * width + (":" if number else "-") for number, width in enumerate(widths)]
        first, *rest = (_padded(cells, widths) for cells in lines)
        return "\n".join([self.title, "", first, f"|-{'|-'.join(rule)}|", *rest])


def _padded(cells: Sequence[str], widths: Sequence[int]) -> str:
    """A line of a table in Markdown: the name at the left, numbers at the right."""
    first, *rest = zip(cells, widths, strict=True)
    return f"| {' | '.join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in rest)])} |"


def tables(results: Results) -> Iterator[Cells]:
    """Of what was tested; and of the validations, where something was not."""
    tested = [result for result in results.results if result.answers]
    if len(tested) < len(results.results):
        yield _validated(results)
    if tested:
        yield _tested(results, tested)


def differences(results: Results) -> Iterator[str]:
    """Of stages and what they started from, and of stages of the same start; a line each."""
    for late, early in results.pairs:
        d = compare(late.scores, early.scores)["mean"]["acceptance_length"].estimate()
        p_value = f"p {'' if d.p_text.startswith('<') else '= '}{d.p_text}, " if d.p_text else ""
        yield f"{late.name} - {early.name}: {d.text('+.3f')}, {p_value}paired over {d.count} prompts"


def best(results: Results) -> Result:
    """The trained one of the greatest τ, of those that were tested; else the last one."""
    trained = [result for result in results.results if result.training]
    tested = [result for result in trained if result.answers]
    return max(tested, key=lambda r: r.scores["mean"]["acceptance_length"].value) if tested else trained[-1]


def of_all(results: Results) -> dict[str, float]:
    """Metrics of a run with stages: those of its best one; where that has no start, the greatest gain of another."""
    chosen = best(results)
    gains = [gain(result, results) for result in results.results if result.answers]
    known = [found.value for found in gains if found is not None]
    return ({TAU_DELTA: max(known)} if known else {}) | headline(chosen, results)


def _tested(results: Results, tested: Sequence[Result]) -> Cells:
    title = (
        f"{len(tested[0].answers)} held-out prompts, {results.decoding.words}; τ = acceptance length, bonus included; "
        "FLOPs of training, the start's included"
    )
    cells = Cells(title, ["stage", "τ [95 %]", "τ - start's\n[95 %]", "speedup", "FLOPs\nin all", "minutes"])
    for result in tested:
        means = result.scores["mean"]
        speedup = f"{means['speedup'].value:.2f}x" if "speedup" in means else "-"
        tau = str(means["acceptance_length"].estimate())
        delta = gain(result, results)
        less = "-" if delta is None else delta.estimate().text("+.2f")
        cells.rows.append([result.name, tau, less, speedup, *_costs(result, results)])
    return cells


def _validated(results: Results) -> Cells:
    title = "validation prompts; τ = acceptance length, bonus included; FLOPs of training, the start's included"
    cells = Cells(title, ["stage", "τ at the end", "best τ", "FLOPs\nin all", "minutes"])
    for result in results.results:
        reached = [point.acceptance_length for point in result.curve.points]
        ends = [f"{reached[-1]:.3f}", f"{max(reached):.3f}"] if reached else ["-", "-"]
        cells.rows.append([result.name, *ends, *_costs(result, results)])
    return cells


def _costs(result: Result, results: Results) -> tuple[str, str]:
    total = flops(result, results)
    minutes = f"{result.training.seconds / 60:.1f}" if result.training else "-"
    if total is None and result.training:
        return f"{scaled(result.training.flops)} + ?", minutes
    return "?" if total is None else scaled(total), minutes
