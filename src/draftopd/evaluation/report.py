"""What a test of drafters ends with: tables; and for `fit` and `evaluate` alike results.json and pictures."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich import get_console

from draftopd.data.storage import replacing
from draftopd.evaluation import plots
from draftopd.evaluation.curves import Curve
from draftopd.evaluation.results import Results
from draftopd.evaluation.tables import set_names, tables


def show(results: Results, folder: Path, extra: Mapping[str, Any] | None = None) -> list[Path]:
    """Prints the tables of an evaluation and writes its files, which it gives back."""
    console = get_console()
    for part in tables(results):
        console.print(part)
        console.print()
    return write(results, folder, extra)


def write(results: Results, folder: Path, extra: Mapping[str, Any] | None = None) -> list[Path]:
    """Writes results.json and the pictures into a folder, says where, and gives back these files."""
    files = [results.save(folder, extra)]
    for name, figure in _pictures(results):
        files.append(folder / f"{name}.png")
        with replacing(files[-1]) as unfinished:
            figure.savefig(unfinished, dpi=150)
    for path in files:
        get_console().print(f"{'numbers' if path.suffix == '.json' else 'picture'}: {path}", soft_wrap=True)
    return files


def _pictures(results: Results) -> Iterator[tuple[str, Figure]]:
    scored = {result.name: result.scores for result in results.results if result.answers}
    if scored:
        yield (
            "acceptance_by_position",
            plots.positions(
                {
                    drafter: {name: {k: v.estimate() for k, v in sets[name].items()} for name in set_names(sets)}
                    for drafter, sets in scored.items()
                }
            ),
        )
    for result in results.results:
        if result.block_sizes:
            yield f"block_sizes_{result.name}", plots.block_sizes(result.block_sizes)
    curves: dict[str | None, Curve] = {}
    for result in results.results:
        curves[result.name] = result.curve.after(curves.get(result.start))
    if any(curve.points for curve in curves.values()):
        yield "acceptance_length", plots.curves(list(curves.values()))
