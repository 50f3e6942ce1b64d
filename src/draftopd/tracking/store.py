"""MLflow's store, a server or an SQLite file: opened so that whatever is wrong with it becomes one line."""

import logging
import re
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Experiment
from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_MAX_RETRIES, MLFLOW_HTTP_REQUEST_TIMEOUT
from mlflow.exceptions import MlflowException

from draftopd.errors import DraftError
from draftopd.tracking import pages

T = TypeVar("T")

REQUEST, RETRIES = 10, 1  # seconds and repetitions of one request; MLflow's own add up to many minutes
START = 25.0  # seconds that a server has for all that a start asks of it
MAKING = 120.0  # seconds that another process has to make a new SQLite file
BUSY = 10.0  # seconds that another program may hold an SQLite file
HALF_MADE = ("already exists", "out-of-date", "no such table", "no such column", "locate revision")
REMEDIES = {
    "is locked": "end the program that holds it, such as a database browser or a process that hangs",
    "disk is full": "free some space",
    "No space left": "free some space",
    "disk I/O error": "free some space, or have the disk checked",
    "not a database": "move the file away",
    "malformed": "move the file away",
    "readonly": "make it writable",
    "Permission denied": "check the rights of its folder",
    "unable to open": "check the rights of its folder",
} | dict.fromkeys(
    HALF_MADE,
    "it is half made or of another MLflow version: copy it and run `mlflow db upgrade {uri}`, or move it away",
)


def open_store(uri: str) -> MlflowClient:
    """MLflow's client of a store; a server is not asked yet.

    A new SQLite file is made under a lock and gets its name when it is whole: processes that start together do not
    disturb each other, and one that is killed leaves no half of it.

    Raises:
        DraftError: the file cannot be used, or MLflow does not know this kind of address.
    """
    for variable, value in ((MLFLOW_HTTP_REQUEST_TIMEOUT, REQUEST), (MLFLOW_HTTP_REQUEST_MAX_RETRIES, RETRIES)):
        if not variable.is_set():  # MLflow's client takes them from nowhere else
            variable.set(value)
    for name in ("mlflow.store.db.utils", "urllib3.connectionpool"):  # what they report, `clear` says in one line
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with clear(uri):
        path = sqlite_file(uri)
        if path is not None:
            _make(path)
            _ask(path, "SELECT count(*) FROM sqlite_master")  # MLflow tries to open a file for minutes
        return MlflowClient(uri)


def check_store(uri: str, experiment: str) -> None:
    """Finds out whether runs can be logged there, before the work that they record. It makes no new file.

    Raises:
        DraftError: they cannot; after 30 seconds at the latest where a server does not answer.
    """
    path = sqlite_file(uri)
    if path is None or path.exists():
        connect(uri, lambda client: _usable(client.get_experiment_by_name(experiment)))


def connect(uri: str, use: Callable[[MlflowClient], T]) -> T:
    """Opens a store that must be writable and calls `use` with it.

    Raises:
        DraftError: one of the two fails, or a server takes too long. The message names the way without MLflow.
    """

    def attempt() -> T:
        client = open_store(uri)
        with clear(uri):
            if path is not None:
                _ask(path, "BEGIN IMMEDIATE", "ROLLBACK")  # it fails where a change would
            return use(client)

    path = sqlite_file(uri)
    try:
        return attempt() if path is not None else _within(START, attempt, f"MLflow at {public(uri)}")
    except DraftError as error:
        raise DraftError(f"{error}; to go on without MLflow: logger=none") from error


def experiment_id(client: MlflowClient, name: str, artifact_location: str | None) -> str:
    """Of the experiment with this name, which is made where there is none.

    Raises:
        DraftError: it was deleted, which reserves its name.
    """
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return client.create_experiment(name, artifact_location, tags=pages.TAGS)
        except MlflowException:
            found = client.get_experiment_by_name(name)  # made by another run in the meantime
            if found is None:
                raise
    _usable(found)
    return str(found.experiment_id)


def run_tags(uri: str, run_id: str) -> dict[str, str]:
    """Tags of a run.

    Raises:
        DraftError: there is no such run, or the store cannot be read.
    """
    client = open_store(uri)
    try:
        return dict(client.get_run(run_id).data.tags)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            raise DraftError(f"no MLflow run {run_id} in {public(uri)}: give its id or a checkpoint file") from error
        raise DraftError(_fault(uri, error)) from error


def sqlite_file(uri: str) -> Path | None:
    """The file of an SQLite store."""
    found = re.match(r"sqlite(?:\+\w+)?:///([^?]+)", uri)
    return Path(found[1]) if found and found[1] != ":memory:" else None


def public(uri: str) -> str:
    """Without user and password."""
    return re.sub(r"//[^/@]*@", "//", uri)


@contextmanager
def clear(uri: str) -> Iterator[None]:
    """What MLflow, SQLAlchemy, alembic, requests or the file system raises becomes a DraftError with the store."""
    try:
        yield
    except DraftError:
        raise
    except Exception as error:
        raise DraftError(_fault(uri, error)) from error


def reason(error: Exception) -> str:
    """An error of MLflow's client in a few words."""
    text = (str(error).splitlines() or [type(error).__name__])[0]
    if found := re.search(r"\[Errno -?\d+\] ([^'\")]+)", text):
        return found[1]
    if "timed out" in text or "timeout" in text:
        return f"no answer within {MLFLOW_HTTP_REQUEST_TIMEOUT.get()} s"
    return re.sub(r"^(\([\w.]+\)|API request to \S+ failed with exception) ", "", text)[:200]


def _usable(experiment: Experiment | None) -> None:
    if experiment is not None and experiment.lifecycle_stage == "deleted":
        raise DraftError(
            f"the MLflow experiment '{experiment.name}' was deleted: restore it (mlflow experiments restore "
            f"--experiment-id {experiment.experiment_id}), or choose another: logger.experiment_name=..."
        )


def _fault(uri: str, error: Exception) -> str:
    path, what = sqlite_file(uri), reason(error)
    if path is None:
        return f"MLflow at {public(uri)} cannot be used ({what}): start it, or correct the address"
    remedy = next((remedy for words, remedy in REMEDIES.items() if words in str(error)), "see to it, or move it away")
    return f"MLflow's file {path} cannot be used ({what}): {remedy.format(uri=uri)}"


def _make(path: Path) -> None:
    if path.is_dir():
        raise DraftError(f"MLflow's file {path} is a folder: name a file in mlflow.yaml, as in sqlite:///mlflow.db")
    if _exists(path):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(f"{path}.lock", timeout=MAKING)
    with lock:
        if not _exists(path):
            for left in path.parent.glob(f"{path.name}.*.new*"):  # by a process that was killed
                left.unlink()
            new = path.with_name(f"{path.name}.{uuid4().hex}.new")
            MlflowClient(f"sqlite:///{new}")
            new.replace(path)
        Path(lock.lock_file).unlink(missing_ok=True)  # whoever waits for it will find the store


def _exists(path: Path) -> bool:
    """With something in it: an empty file is a database without tables."""
    return path.exists() and path.stat().st_size > 0


def _ask(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path, timeout=BUSY, isolation_level=None)) as database:
        for statement in statements:
            database.execute(statement)


def _within(seconds: float, call: Callable[[], T], who: str) -> T:
    """What a call returns or raises, where it ends in time: name servers and databases have limits of their own."""
    results: list[T] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            results.append(call())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise DraftError(f"{who} did not answer within {seconds:.0f} s: start it, or correct the address")
    return results[0]
