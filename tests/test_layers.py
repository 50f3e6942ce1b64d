"""Who may import whom: downwards only, drafters never each other (docs/architecture.md)."""

import ast
from pathlib import Path

import draftopd

FLOORS = [
    {"errors", "trace", "blocks", "decoding", "sampling", "acceptance", "rows", "metrics", "stats", "placements"}
    | {"curves", "divergences", "losses", "block_losses", "one_token", "terms", "processes", "linear"},
    {
        "cache",
        "head",
        "frozen",
        "target",
        "smollm2",
        "load",
        "drafters",
        "splits",
        "records",
        "prompts",
        "evaluation_sets",
    }
    | {"stored", "kept"},
    {
        "ledger",
        "batch",
        "rollout",
        "redraft",
        "free_running",
        "texts",
        "text_quality",
        "measure",
        "scores",
        "speed",
        "diagnosis",
    }
    | {"pictures", "run_pictures"},
    {
        "module",
        "datamodule",
        "data",
        "on_policy",
        "callbacks",
        "diagnostics",
        "record",
        "compare",
        "exchange",
        "checkpoints",
    },
    {"command", "report", "stages", "restore", "evaluation", "evaluation_tables", "evaluation_report", "fit"}
    | {"evaluate", "export", "lint", "ui"},
]
HEAVY = {"transformers": 1, "lightning": 3, "hydra": 4}
SOURCES = sorted(Path(draftopd.__file__).parent.rglob("*.py"))


def room(path: Path) -> str:
    parts = path.relative_to(Path(draftopd.__file__).parent).parts
    return parts[0] if len(parts) > 1 else path.stem


def floor(name: str) -> int:
    return next(i for i, names in enumerate(FLOORS) if name in names)


def imports(path: Path) -> list[str]:
    tree = ast.parse(path.read_text())
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            names += [f"{node.module}.{a.name}" if node.module == "draftopd" else node.module for a in node.names]
    return names


def test_every_room_has_a_floor():
    assert {room(p) for p in SOURCES} - {"__init__"} == set().union(*FLOORS)


def test_rooms_import_downwards_only():
    for path in SOURCES:
        if path.stem == "__init__":
            continue
        for name in imports(path):
            parts = name.split(".")
            if parts[0] == "draftopd" and parts[1] != room(path):
                assert floor(parts[1]) <= floor(room(path)), f"{path.name} imports {name}"
            if parts[0] in HEAVY:
                assert floor(room(path)) >= HEAVY[parts[0]], f"{path.name} imports {name}"


def test_drafters_do_not_know_each_other():
    for path in SOURCES:
        if room(path) == "drafters":
            others = {n for n in imports(path) if n.startswith("draftopd.drafters.")}
            assert others <= {"draftopd.drafters.base", "draftopd.drafters.layers"}, path.name


def test_files_and_functions_stay_short():
    for path in SOURCES:
        text = path.read_text()
        assert len(text.splitlines()) <= 290, path.name
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert (node.end_lineno or 0) - node.lineno <= 60, f"{path.name}: {node.name}"
