"""The file of an SQLite store: made once and whole, and every fault of it is one line with the file and a remedy."""

import os
import shutil
import signal
import socket
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from mlflow import MlflowClient

from draftopd.errors import DraftError
from draftopd.tracking import sender, store
from draftopd.tracking.run import Run
from mlflow_server import wait_for
from pair import full_disk


def in_children(*works: Callable[[], object]) -> list[int]:
    """Each in a process of its own, at the same time: exit codes."""
    children = []
    for work in works:
        children.append(os.fork())
        if not children[-1]:
            try:
                work()
                os._exit(0)
            finally:
                os._exit(1)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that two first starts made; tests take copies, since making one takes a second or more."""
    folder = tmp_path_factory.mktemp("store")
    uri = f"sqlite:///{folder}/mlflow.db"

    def first_start() -> None:
        Run(uri, "draftopd", "first", str(folder / str(os.getpid()))).start().end("FINISHED")

    assert in_children(first_start, first_start) == [0, 0]
    return folder / "mlflow.db"


def test_first_starts_at_the_same_time_share_one_store(made):
    client = MlflowClient(f"sqlite:///{made}")
    found = client.search_runs([client.get_experiment_by_name("draftopd").experiment_id])
    assert [run.info.status for run in found] == ["FINISHED", "FINISHED"]
    assert [path.name for path in made.parent.glob("mlflow*")] == ["mlflow.db"]


def folder(path: Path, made: Path) -> None:
    path.mkdir()


def text(path: Path, made: Path) -> None:
    path.write_text("no database " * 100)


def half_made(path: Path, made: Path) -> None:
    shutil.copy(made, path)
    with closing(sqlite3.connect(path)) as database:
        database.execute("DROP TABLE metrics")
        database.execute("DELETE FROM alembic_version")
        database.commit()


def of_another_version(path: Path, made: Path) -> None:
    shutil.copy(made, path)
    with closing(sqlite3.connect(path)) as database:
        database.execute("UPDATE alembic_version SET version_num = 'ffffffffffff'")
        database.commit()


FAULTS = {
    folder: "is a folder: name a file",
    text: "file is not a database.*move the file away",
    half_made: "it is half made or of another MLflow version: .*mlflow db upgrade",
    of_another_version: "it is half made or of another MLflow version: .*mlflow db upgrade",
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_bad_file_is_one_line_with_its_name_and_a_remedy(made, tmp_path, monkeypatch, fault):
    fault(path := tmp_path / "mlflow.db", made)
    with pytest.raises(DraftError, match=FAULTS[fault]) as raised:
        store.check_store(f"sqlite:///{path}", "draftopd")
    assert str(path) in str(raised.value)
    assert str(raised.value).endswith("logger=none")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("lock", ["EXCLUSIVE", "IMMEDIATE"])
def test_a_locked_file_is_one_line(made, tmp_path, monkeypatch, lock):
    monkeypatch.setattr(store, "BUSY", 0.1)
    shutil.copy(made, path := tmp_path / "mlflow.db")
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute(f"BEGIN {lock}")
        with pytest.raises(DraftError, match=f"{path} cannot be used .*is locked.*end the program that holds it"):
            store.check_store(f"sqlite:///{path}", "draftopd")
    store.check_store(f"sqlite:///{path}", "draftopd")


def test_a_full_disk_is_one_line(made, tmp_path, monkeypatch):
    shutil.copy(made, path := tmp_path / "mlflow.db")
    tracked = Run(f"sqlite:///{path}", "draftopd", "first", str(tmp_path / "out"))
    with full_disk(), pytest.raises(DraftError, match=f"{path} cannot be used .*free some space.*logger=none"):
        tracked.start()
    assert not list((tmp_path / "out").iterdir())


def logged(path: Path, tracked: Run) -> list[float]:
    return [value.value for value in MlflowClient(f"sqlite:///{path}").get_metric_history(tracked.id, "loss")]


def test_a_disk_that_is_full_for_a_while_loses_nothing_of_a_run(made, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(sender, "PAUSE", 0.01)
    shutil.copy(made, path := tmp_path / "mlflow.db")
    tracked = Run(f"sqlite:///{path}", "draftopd", "first", str(tmp_path / "out")).start()
    with full_disk():
        tracked.log_metrics({"loss": 1.0}, 1)
        wait_for(lambda: "the run goes on" in caplog.text)
    tracked.end("FINISHED")
    assert logged(path, tracked) == [1.0]
    assert not list((tmp_path / "out").glob("mlflow_unsent-*"))


@pytest.mark.slow
def test_a_file_that_is_locked_for_a_while_loses_nothing_of_a_run(made, tmp_path, monkeypatch, caplog):
    """MLflow waits 20 seconds for a lock."""
    monkeypatch.setattr(sender, "PAUSE", 0.01)
    shutil.copy(made, path := tmp_path / "mlflow.db")
    tracked = Run(f"sqlite:///{path}", "draftopd", "first", str(tmp_path / "out")).start()
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("BEGIN EXCLUSIVE")
        tracked.log_metrics({"loss": 1.0}, 1)
        wait_for(lambda: "the run goes on" in caplog.text, 120)
    tracked.end("FINISHED")
    assert logged(path, tracked) == [1.0]


def test_a_check_makes_no_file(tmp_path):
    store.check_store(f"sqlite:///{tmp_path}/new/mlflow.db", "draftopd")
    assert not list(tmp_path.iterdir())


def test_a_process_that_is_killed_in_the_making_leaves_no_half_of_it(tmp_path, monkeypatch):
    path = tmp_path / "mlflow.db"

    def half_way(uri: str) -> None:
        Path(uri.removeprefix("sqlite:///")).write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patch:
        patch.setattr(store, "MlflowClient", half_way)
        assert in_children(lambda: store.open_store(f"sqlite:///{path}")) == [-signal.SIGKILL]
    assert not path.exists()
    assert list(tmp_path.glob("mlflow.db.*.new"))
    monkeypatch.setattr(store, "MlflowClient", lambda uri: Path(uri.removeprefix("sqlite:///")).write_text("whole"))
    monkeypatch.setattr(store, "_ask", lambda *_: None)
    store.open_store(f"sqlite:///{path}")
    assert path.read_text() == "whole"
    assert [found.name for found in tmp_path.iterdir()] == ["mlflow.db"]


def test_a_deleted_experiment_is_one_line(made, tmp_path):
    shutil.copy(made, path := tmp_path / "mlflow.db")
    MlflowClient(f"sqlite:///{path}").delete_experiment("1")
    with pytest.raises(DraftError, match=r"'draftopd' was deleted: restore it \(mlflow experiments restore .*-id 1\)"):
        Run(f"sqlite:///{path}", "draftopd", "first", str(tmp_path / "out")).start()
    with pytest.raises(DraftError, match="'draftopd' was deleted"):
        store.check_store(f"sqlite:///{path}", "draftopd")


def test_a_dead_run_is_found_in_a_real_store(made, tmp_path):
    shutil.copy(made, path := tmp_path / "mlflow.db")
    client = MlflowClient(f"sqlite:///{path}")
    hosts = (socket.gethostname(), "x" + socket.gethostname())
    tags = [{"process": f"{host}:1", "unsent": str(tmp_path / "gone"), "mlflow.runName": host} for host in hosts]
    dead, elsewhere = (client.create_run("1", tags=of_run).info.run_id for of_run in tags)
    Run(f"sqlite:///{path}", "draftopd", "next", str(tmp_path / "out")).start().end("FINISHED")
    assert client.get_run(dead).info.status == "KILLED"
    assert client.get_run(elsewhere).info.status == "RUNNING"


def test_a_run_that_is_not_there_is_told_from_a_store_that_cannot_be_read(made, tmp_path):
    with pytest.raises(DraftError, match=r"no MLflow run 0{32} in .*give its id or a checkpoint file"):
        store.run_tags(f"sqlite:///{made}", "0" * 32)
    with pytest.raises(DraftError, match="Connection refused"):
        store.run_tags("http://127.0.0.1:9", "0" * 32)
