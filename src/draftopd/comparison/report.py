"""What a comparison shows: tables in the terminal; in a folder a page that stands alone, and its pictures."""

import base64
from collections.abc import Sequence
from pathlib import Path

from rich import get_console

from draftopd.comparison.pictures import pictures
from draftopd.comparison.runs import Run, named_apart, reference_run
from draftopd.comparison.sources import in_files
from draftopd.comparison.tables import commands, in_terminal, table
from draftopd.data.storage import replacing
from draftopd.evaluation import plots
from draftopd.evaluation.trace_page import Page, page

PAGE = "comparison.html"


def show(runs: Sequence[Run], reference: Run, folder: Path | None = None) -> list[Path]:
    """Prints the tables; writes page and pictures into a folder, if one is given, and gives back these files.

    Raises:
        DraftError: they cannot be written.
    """
    console = get_console()
    for part in in_terminal(runs, reference):
        console.print(part)
        console.print()
    files = [] if folder is None else _write(runs, reference, folder)
    for path in files:
        console.print(f"{'page' if path.name == PAGE else 'picture'}: {path}", soft_wrap=True)
    return files


def show_folder(folder: Path) -> None:
    """`show` for the runs in a folder, the others against the first; nothing where there are fewer than two.

    Raises:
        DraftError: a results file cannot be read, or the page not be written.
    """
    runs = named_apart(list(in_files(folder)))
    if len(runs) > 1:
        show(runs, reference_run(runs), folder)


def _write(runs: Sequence[Run], reference: Run, folder: Path) -> list[Path]:
    drawn = {name: (title, plots.png(figure)) for name, (title, figure) in pictures(runs, reference).items()}
    contents = {PAGE: comparison_page(runs, reference, list(drawn.values())).html.encode()}
    contents |= {f"{name}.png": picture for name, (_, picture) in drawn.items()}
    for name, content in contents.items():
        with replacing(folder / name) as unfinished:
            unfinished.write_bytes(content)
    return [folder / name for name in contents]


def comparison_page(runs: Sequence[Run], reference: Run, drawn: Sequence[tuple[str, bytes]]) -> Page:
    """Table and pictures, each with its title, as one page."""
    rows = table(runs, reference).reset_index()
    values = {
        "title": f"{len(runs)} drafters, against {reference.name}",
        "decoding": f"{reference.decoding.words}, at most {reference.decoding.max_new_tokens} new tokens",
        "columns": list(rows.columns),
        "rows": rows.to_numpy().tolist(),
        "pictures": [(title, base64.b64encode(picture).decode()) for title, picture in drawn],
        "commands": commands(runs),
    }
    return page("comparison.html", values)
