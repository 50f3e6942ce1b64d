"""Notebooks run from their first cell to their last, here on the tiny pair."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"


def execute(name: str, folder: Path, parameters: str) -> nbformat.NotebookNode:
    notebook = nbformat.read(NOTEBOOKS / name, as_version=4)
    (cell,) = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    cell.source = parameters
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(folder)}}).execute()
    return notebook


def outputs_of(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [o for cell in notebook.cells if cell.cell_type == "code" for o in cell.outputs]


@pytest.mark.slow
def test_the_trace_notebook_renders_traces(command, tmp_path):
    assert command("experiment=smoke/sft", "budget.epochs=2") == 0
    (checkpoint,) = tmp_path.rglob("last.ckpt")
    parameters = f'CHECKPOINT = "{checkpoint}"\nTRACKING_URI = None\nPROMPTS = 2'
    outputs = outputs_of(execute("trace.ipynb", tmp_path, parameters))
    assert any("image/png" in o.get("data", {}) for o in outputs)
    (page,) = [o.data["text/html"] for o in outputs if "<iframe" in o.get("data", {}).get("text/html", "")]
    assert "accepted, position 1, target" in page


@pytest.mark.slow
def test_the_ablations_notebook_compares_runs(command, tmp_path):
    few = ["scale=tiny", "budget.epochs=null", "budget.steps=2", "prompts.train=8", "data.decoding.batch_size=64"]
    assert command("experiment=ablations/sft_continued,ablations/paper", *few, "-m") == 0
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    parameters = f'TRACKING_URI, RUNS, REFERENCE = "{uri}", ["draftopd"], "sft_continued"'
    outputs = outputs_of(execute("ablations.ipynb", tmp_path, parameters))
    assert sum("image/png" in o.get("data", {}) for o in outputs) == 3
    (table,) = [o.data["text/html"] for o in outputs if "text/html" in o.get("data", {})]
    assert table.count("<th>paper</th>") == table.count("<th>sft_continued</th>") == 1
    assert "τ - sft_continued [95 %]" in table
    assert any("2 runs against sft_continued, 4 test prompts" in str(o) for o in outputs)
    assert any("python -m draftopd.fit" in o.get("text", "") for o in outputs)


@pytest.mark.slow
def test_the_plateau_notebook_compares_the_stages_of_a_run(command, tmp_path):
    assert command("experiment=smoke", "logger=none", f"hydra.run.dir={tmp_path}/run") == 0
    parameters = f'RUNS, TRACKING_URI = ["{tmp_path}/run"], None\nSTART = REFERENCE = "sft"'
    outputs = outputs_of(execute("plateau.ipynb", NOTEBOOKS, parameters))  # it shows a picture of docs/
    assert sum("image/png" in o.get("data", {}) for o in outputs) == 5  # the map of when to switch too
    assert any("for every tenth of the compute" in o.get("text", "") for o in outputs)


@pytest.mark.slow
def test_the_objectives_notebook_shows_positions(command, tmp_path):
    words = ["experiment=smoke/sft", "budget.epochs=2", "logger=none", f"hydra.sweep.dir={tmp_path}/sweep"]
    assert command(*words, "objective=cross_entropy,d_pace", "-m") == 0
    parameters = f'RUNS, TRACKING_URI, REFERENCE = ["{tmp_path}/sweep"], None, "fit (objective=cross_entropy)"'
    outputs = outputs_of(execute("objectives.ipynb", tmp_path, parameters))
    assert sum("image/png" in o.get("data", {}) for o in outputs) == 2
    assert sum("(objective=d_pace)" in o.get("data", {}).get("text/html", "") for o in outputs) == 2


@pytest.mark.slow
def test_the_block_size_notebook_times_the_sizes(command, tmp_path):
    assert command("experiment=smoke/sft", "budget.epochs=2", "logger=none") == 0
    (checkpoint,) = tmp_path.rglob("last.ckpt")
    parameters = f'CHECKPOINT = "{checkpoint}"\nTRACKING_URI = None\nSIZES, PROMPTS = [2, 4], 2'
    outputs = outputs_of(execute("block_size.ipynb", tmp_path, parameters))
    assert sum("image/png" in o.get("data", {}) for o in outputs) == 1
    assert any("fastest here: block size" in o.get("text", "") for o in outputs)


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda p: p.stem)
def test_committed_notebooks_are_executed_and_define_nothing_long(path: Path):
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert "def " not in cell.source or len(cell.source.splitlines()) <= 6
            assert cell.execution_count
            assert not [o for o in cell.outputs if o.get("name") == "stderr" or o.output_type == "error"]
            texts = [str(o.get("text", "")) + str(o.get("data", {}).get("text/html", "")) for o in cell.outputs]
            assert not any(f"{place}/" in text for text in texts for place in ("/home", "/root", "/tmp", "/work"))
