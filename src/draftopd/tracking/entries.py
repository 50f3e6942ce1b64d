"""What a run logs, piece by piece: how it is sent to MLflow, and how it waits in a file."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import takewhile
from pathlib import Path
from typing import Literal

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, LoggedModelOutput, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

AT_ONCE = {
    "metric": 1000,
    "param": 100,
    "tag": 100,
    "dataset": 1,
    "model": 1,
    "artifact": 1,
    "end": 1,
}  # MLflow's limits


@dataclass(frozen=True)
class Entry:
    """One value, one file, one data set, one model, or the end of the run."""

    kind: Literal["metric", "param", "tag", "dataset", "model", "artifact", "end"]
    key: str
    """name; of a data set what it is for; of an artifact its folder in MLflow; of the end the status"""
    value: float | str = ""
    """of an artifact the file to send; of a data set and a model what MLflow shows of it, as JSON"""
    milliseconds: int = 0
    """since 1970"""
    step: int = 0

    @property
    def name(self) -> str:
        return Path(str(self.value)).name if self.kind == "artifact" else self.key


def now() -> int:
    """Milliseconds since 1970."""
    return int(time.time() * 1000)


def group(entries: Sequence[Entry]) -> list[Entry]:
    """The first ones, as many as one request takes."""
    if not entries:
        return []
    kind = entries[0].kind
    return list(takewhile(lambda entry: entry.kind == kind, entries[: AT_ONCE[kind]]))


def send(client: MlflowClient, run_id: str, entries: Sequence[Entry]) -> None:
    """One request with entries of one kind. Repeating it changes nothing."""
    first = entries[0]
    match first.kind:
        case "metric":
            metrics = [Metric(e.key, float(e.value), e.milliseconds, e.step) for e in entries]
            client.log_batch(run_id, metrics=metrics)
        case "param":
            client.log_batch(run_id, params=[Param(e.key, str(e.value)) for e in entries])
        case "tag":
            client.log_batch(run_id, tags=[RunTag(e.key, str(e.value)) for e in entries])
        case "dataset":
            about = Dataset(**json.loads(str(first.value)))
            client.log_inputs(run_id, [DatasetInput(about, [InputTag(MLFLOW_DATASET_CONTEXT, first.key)])])
        case "model":
            _send_model(client, run_id, first)
        case "artifact":
            client.log_artifact(run_id, str(first.value), first.key or None)
        case "end":
            client.set_terminated(run_id, first.key, first.milliseconds)


def _send_model(client: MlflowClient, run_id: str, entry: Entry) -> None:
    """MLflow makes a new one at each call: a model that an earlier attempt has made is taken."""
    experiment = client.get_run(run_id).info.experiment_id
    made = client.search_logged_models([experiment], f"source_run_id = '{run_id}'", max_results=1)
    model = (
        made[0] if made else client.create_logged_model(experiment, entry.key, run_id, **json.loads(str(entry.value)))
    )
    client.finalize_logged_model(model.model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, entry.step)])


def refused(error: Exception) -> bool:
    """By a store that answers: sending the same again is useless."""
    # a database's own errors come as causes, whatever code MLflow gives them
    return (
        isinstance(error, MlflowException)
        and error.__cause__ is None
        and error.get_http_status_code() in (400, 404, 409)
    )


def count(entries: Sequence[Entry]) -> str:
    """In words: "812 values and 2 files"."""
    files = sum(entry.kind == "artifact" for entry in entries)
    values = sum(entry.kind not in ("artifact", "end") for entry in entries)
    parts = [f"{n} {word}{'' if n == 1 else 's'}" for n, word in ((values, "value"), (files, "file")) if n]
    return " and ".join(parts) or "the end"


def save(entries: Sequence[Entry], path: Path) -> None:
    """One JSON object a line; the file is replaced as a whole.

    Raises:
        OSError: it cannot be written.
    """
    part = path.with_suffix(".part")
    part.write_text("".join(json.dumps(asdict(entry)) + "\n" for entry in entries))
    part.replace(path)


def load(path: Path) -> list[Entry]:
    """Nothing where there is no file."""
    return [Entry(**json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []
