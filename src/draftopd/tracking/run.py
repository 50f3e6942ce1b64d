"""One MLflow run: started with a clear error or not at all; from then on nothing that MLflow does reaches the work."""

import json
import os
import re
import shutil
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from tempfile import mkdtemp
from threading import Thread
from typing import Any, Literal, Self

from filelock import FileLock, Timeout
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.tracking.context.registry import resolve_tags
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NAME

from draftopd.tracking import dead_runs
from draftopd.tracking.entries import Entry, count, load, now, send
from draftopd.tracking.load import PREFIX, Load
from draftopd.tracking.sender import PATIENCE, Sender
from draftopd.tracking.store import connect, experiment_id, public

Status = Literal["FINISHED", "FAILED", "KILLED"]
DESCRIPTION = "mlflow.note.content"
"""tag that MLflow's pages show as the run's description, in Markdown"""
IS_EXTERNAL = "mlflow.model.isExternal"
"""tag of a logged model: MLflow has no files of it"""
KNOWN = "mlflow_run"
"""file in the folder: the store and the run's id there"""


class Run:
    """What is logged goes to MLflow in the background; while MLflow is away, it waits in the run's folder.

    Args:
        tracking_uri: a server's address, or `sqlite:///<file>`.
        folder: the run's. It has one folder more while the run goes on, and after it where something was not sent.
            None where no run is started, as in an export.
        artifact_location: of a new experiment; None = MLflow's default.
        tags: beside MLflow's own, the name, and those by which `dead_runs` finds the run.
        system_metrics: seconds from one sample of the machine's load to the next; None = none.
    """

    def __init__(
        self,
        tracking_uri: str,
        experiment_name: str,
        run_name: str,
        folder: str | None,
        artifact_location: str | None = None,
        tags: Mapping[str, str] | None = None,
        system_metrics: float | None = None,
    ) -> None:
        self.tracking_uri, self.experiment_name, self.run_name = tracking_uri, experiment_name, run_name
        self.folder, self.artifact_location, self.tags = folder, artifact_location, dict(tags or {})
        self.system_metrics = system_metrics
        self.id = ""
        self.experiment_id = ""
        """both of MLflow; empty before the start"""
        self._logged: dict[str, int] = {}  # last step of each metric, where the run goes on

    def start(self, goes_on: bool = False) -> Self:
        """Makes the run in MLflow, and ends there those whose processes are gone.

        Args:
            goes_on: it is the run that its folder had before, if the store has that. Values that it has logged already
                are not logged again, and those that its process left unsent are sent.

        Raises:
            DraftError: the store cannot be used; after 30 seconds where a server does not answer.
            OSError: the folder cannot be written.
        """
        folder = self._place
        folder.mkdir(parents=True, exist_ok=True)
        before = self._before() if goes_on else ""
        if not before or not self._take_over():
            self._unsent = Path(mkdtemp(prefix="mlflow_unsent-", dir=folder)).resolve()
            self._lock = FileLock(self._unsent / dead_runs.LOCK)
            self._lock.acquire()  # the system lets go of it when the process ends, however it ends
        left = [entry for entry in load(self._unsent / dead_runs.FILE) if entry.kind != "end"]
        try:
            client, self.experiment_id, self.id = connect(self.tracking_uri, partial(self._create, before))
            (folder / KNOWN).write_text(f"{public(self.tracking_uri)}\n{self.id}\n")
        except BaseException:
            if not left:
                self._leave()
            raise
        store = f"MLflow ({public(self.tracking_uri)})"
        self._sender = Sender(partial(send, client, self.id), self._unsent / dead_runs.FILE, store)
        self._sender.put(left)
        for entry in left:
            self._logged[entry.key] = max(entry.step, self._logged.get(entry.key, -1))
        self._sender.start()
        self._load: Load | None = None
        if self.system_metrics:
            first = max((step for key, step in self._logged.items() if key.startswith(PREFIX)), default=-1) + 1
            self._load = Load(self.log_metrics, self.system_metrics, first)
        self._dead_runs = Thread(target=dead_runs.end, args=(client, self.experiment_id, store), daemon=True)
        self._dead_runs.start()
        return self

    @property
    def _place(self) -> Path:
        assert self.folder is not None
        return Path(self.folder)

    def _before(self) -> str:
        """Id of the run that was in the folder before; empty where there was none, or in another store."""
        path = self._place / KNOWN
        store, _, run_id = path.read_text().strip().partition("\n") if path.exists() else ("", "", "")
        return run_id if store == public(self.tracking_uri) else ""

    def _take_over(self) -> bool:
        """Takes the folder in which a dead process of this run has left something."""
        for folder in sorted(self._place.glob("mlflow_unsent-*/")):
            self._unsent, self._lock = folder.resolve(), FileLock(folder.resolve() / dead_runs.LOCK, timeout=0)
            with suppress(Timeout):
                self._lock.acquire()
                return True
        return False

    def _create(self, before: str, client: MlflowClient) -> tuple[MlflowClient, str, str]:
        experiment = experiment_id(client, self.experiment_name, self.artifact_location)
        own = {
            MLFLOW_RUN_NAME: self.run_name,
            dead_runs.PROCESS: f"{socket.gethostname()}:{os.getpid()}",
            dead_runs.UNSENT: str(self._unsent),
        }
        known = bool(before) and self._go_on(client, before, own)
        run_id = before if known else client.create_run(experiment, tags=resolve_tags(self.tags | own)).info.run_id
        client.set_tag(run_id, MLFLOW_RUN_NAME, f"{self.run_name} {run_id[:4]}")  # no two runs are called the same
        return client, experiment, run_id

    def _go_on(self, client: MlflowClient, run_id: str, tags: Mapping[str, str]) -> bool:
        """Whether the store has the run."""
        try:
            run = client.get_run(run_id)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise
        if run.info.lifecycle_stage == "deleted":
            return False
        for name, value in tags.items():
            client.set_tag(run_id, name, value)
        client.update_run(run_id, status="RUNNING")
        steps = {key: [metric.step for metric in client.get_metric_history(run_id, key)] for key in run.data.metrics}
        self._logged = {key: max(known) for key, known in steps.items()}
        return True

    def log_metrics(self, values: Mapping[str, float], step: int) -> None:
        time = now()
        names = {name: re.sub(r"[^\w/. -]+", "", name, flags=re.ASCII) for name in values}  # what MLflow takes
        new = {names[name]: value for name, value in values.items() if step > self._logged.get(names[name], -1)}
        self._sender.put([Entry("metric", name, float(value), time, step) for name, value in new.items()])

    def log_params(self, values: Mapping[str, Any]) -> None:
        self._sender.put([Entry("param", name, str(value)) for name, value in values.items()])

    def log_tags(self, values: Mapping[str, str]) -> None:
        self._sender.put([Entry("tag", name, value) for name, value in values.items()])

    def log_dataset(self, context: str, name: str, digest: str, source: Mapping[str, Any], size: int) -> None:
        """
        Args:
            context: what the run does with it: training, validation, test.
            source: the settings that make it.
        """
        profile = json.dumps({"prompts": size})
        about = {"name": name, "digest": digest, "source_type": "config", "source": json.dumps(source)}
        self._sender.put([Entry("dataset", context, json.dumps(about | {"profile": profile}))])

    def log_model(self, name: str, params: Mapping[str, str], step: int) -> None:
        """A model whose weights stay where they are."""
        about = {"tags": {IS_EXTERNAL: "true"}, "params": dict(params), "model_type": "drafter"}
        self._sender.put([Entry("model", re.sub(r"[/:.%\"']", "_", name), json.dumps(about), step=step)])

    def log_text(self, text: str, path: str) -> None:
        """As the file `path` of the run's artifacts."""
        self._log_file(path, lambda file: file.write_text(text, encoding="utf-8"))

    def log_figure(self, figure: Any, path: str) -> None:
        """A matplotlib figure, as the file `path` of the run's artifacts."""
        self._log_file(path, figure.savefig)

    def log_artifact(self, file: Path) -> None:
        """A file that stays where it is."""
        self._sender.put([Entry("artifact", "", str(file.resolve()))])

    def _log_file(self, path: str, write: Callable[[Path], object]) -> None:
        name = Path(path)
        entry = Entry("artifact", "" if name.parent == Path() else name.parent.as_posix(), path)
        try:
            file = Path(mkdtemp(dir=self._unsent)) / name.name
            write(file)
        except OSError as error:
            self._sender.refused[entry] = f"it cannot be written: {error.strerror}"
        else:
            self._sender.put([Entry(entry.kind, entry.key, str(file))])

    def end(self, status: Status, checkpoint: Path | None = None) -> None:
        """Waits until MLflow has everything; where it is away, for 15 seconds, then says what it has not got.

        Args:
            checkpoint: named then, to show that the work is not lost.
        """
        if self._load is not None:
            self._load.stop()
        self._sender.put([Entry("end", status, milliseconds=now())])
        try:
            self._sender.close()
            if not self._sender.waiting:
                self._dead_runs.join(PATIENCE)  # what it does not get to is left to the next start
        finally:
            missing = self._missing()
            if missing:
                where = f"; last checkpoint: {checkpoint}" if checkpoint is not None and checkpoint.exists() else ""
                print(f"warning: {self._sender.store} {missing}{where}")
            self._leave()

    def _missing(self) -> str:
        """What the store has not got; empty where it has everything."""
        sender, parts = self._sender, []
        if sender.refused:
            entry, why = next(iter(sender.refused.items()))
            parts.append(f"never gets {count(list(sender.refused))} ({entry.name}: {why})")
        if waiting := sender.waiting:
            fate = "are lost" if not sender.saved else "wait in " + str(sender.file)
            if sender.saved and waiting[-1].kind == "end":
                fate += ", and the next run on this machine sends them"
            parts.append(f"has not got {count(waiting)} ({sender.failure or 'it is slow'}), which {fate}")
        return "; it ".join(parts)

    def _leave(self) -> None:
        self._lock.release()
        if not self.id or not self._sender.waiting:
            shutil.rmtree(self._unsent, ignore_errors=True)
