"""Who may import whom: packages only those to their left, drafters only one that they extend (docs/architecture.md)."""

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

import draftopd

ROOT = Path(draftopd.__file__).parent
COMMANDS = {"fit", "evaluate", "compare", "chat", "export", "check", "ui"}
# from left to right; rooms of one set do not know each other
ORDER: list[set[str]] = [
    {"errors", "console"},
    {"tracking"},
    {"values"},
    {"trace"},
    {"blocks"},
    {"objectives", "target"},
    {"drafters"},
    {"decoding"},
    {"data"},
    {"checkpoints"},
    {"evaluation"},
    {"comparison", "publishing"},
    {"training"},
    {"reports"},
    {"config"},
    {"command"},
    COMMANDS,
]
# the leftmost room that may import it
HEAVY = {"transformers": "target", "lightning": "checkpoints", "hydra": "checkpoints", "matplotlib": "evaluation"}
MODULES = 16
SOURCES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


def place(room: str) -> int:
    return next(i for i, rooms in enumerate(ORDER) if room in rooms)


def room(path: Path) -> str:
    parts = path.relative_to(ROOT).parts
    return parts[0] if len(parts) > 1 else path.stem


def imported(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            top = node.module == "draftopd"
            yield from (f"draftopd.{alias.name}" if top else node.module for alias in node.names)


def wrong(room: str, names: Iterable[str]) -> list[str]:
    """Imports that go from a room to one that is not on its left, or to a library that it may not have."""
    out = []
    for name in names:
        top, *rest = name.split(".")
        up = top == "draftopd" and rest[0] != room and place(rest[0]) >= place(room)
        if up or (top in HEAVY and place(room) < place(HEAVY[top])):
            out.append(f"{room} imports {name}")
    return out


def test_every_room_has_its_place():
    assert {room(path) for path in SOURCES} == set().union(*ORDER)


def test_rooms_import_what_is_on_their_left():
    assert [fault for path in SOURCES for fault in wrong(room(path), imported(path.read_text()))] == []


@pytest.mark.parametrize(
    ("room", "line"),
    [
        ("target", "from draftopd.drafters.base import Drafter"),
        ("decoding", "from draftopd.training import module"),
        ("objectives", "from draftopd.target.head import Head"),
        ("blocks", "from draftopd import fit"),
        ("data", "import lightning as L"),
    ],
)
def test_an_arrow_turned_round_is_found(room: str, line: str):
    assert wrong(room, imported(line))


def test_no_figure_touches_the_backend_of_a_notebook():
    names = [name for path in SOURCES for name in imported(path.read_text())]
    assert "matplotlib.figure" in names
    assert not [name for name in names if name.startswith("matplotlib.pyplot")]


def test_drafters_do_not_know_each_other():
    for path in (ROOT / "drafters").glob("*.py"):
        others = {name for name in imported(path.read_text()) if name.startswith("draftopd.drafters.")}
        extended = {"markov": {"dflash"}, "dspark": {"markov"}, "dflash2": {"dflash", "markov"}}.get(path.stem, set())
        assert others <= {f"draftopd.drafters.{name}" for name in {"base", "layers"} | extended}, path.name


def test_packages_are_small_and_so_is_the_top():
    folders = {path.parent for path in SOURCES} - {ROOT}
    assert {folder.name: n for folder in folders if (n := len(list(folder.glob("[!_]*.py")))) > MODULES} == {}
    assert len([path for path in ROOT.iterdir() if path.is_file()]) <= 16


def test_files_and_functions_stay_short():
    for path in SOURCES:
        text = path.read_text()
        assert len(text.splitlines()) <= 290, path.name
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert (node.end_lineno or 0) - node.lineno <= 60, f"{path.name}: {node.name}"
