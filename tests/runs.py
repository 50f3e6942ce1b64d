"""What runs of the command leave in a folder."""

from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Run

FIRST = "objective.rejected_slots=first"
UNTIMED = ("logger=none", "test.speedup_prompts=0")
UNTESTED = ("logger=none", "test.prompts=0")  # a third less: for what looks at training alone


def outputs(folder: Path) -> Path:
    return max((p.parent for p in folder.rglob("results.json")), key=lambda p: p.stat().st_mtime)


def texts_of(folder: Path) -> list[Path]:
    """The folders of texts that were written."""
    return sorted({path.parent for path in folder.rglob("*.safetensors")})


def called(run: Run) -> str:
    """A run's name without the letters that tell it from others of that name."""
    return str(run.info.run_name).rpartition(" ")[0]


def runs(folder: Path, name: str | None = None, **tags: str):
    if not (folder / "mlflow.db").exists():
        return []
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name("draftopd")
    found = client.search_runs([experiment.experiment_id]) if experiment else []
    return [r for r in found if name in (None, called(r)) and all(r.data.tags.get(k) == v for k, v in tags.items())]
