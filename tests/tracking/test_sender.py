"""The thread that sends: nothing is lost or turned round, whatever the store does."""

import json
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

from draftopd.tracking import sender
from draftopd.tracking.entries import Entry, load, save
from draftopd.tracking.sender import Sender
from mlflow_server import wait_for
from pair import full_disk


def metrics(count: int) -> list[Entry]:
    return [Entry("metric", f"m{i}", float(i), 1, i) for i in range(count)]


class Store:
    """Takes what does not match one of the faults."""

    def __init__(self) -> None:
        self.taken: list[Entry] = []
        self.requests: list[int] = []
        self.faults: dict[str, Exception] = {}
        """kind or name of an entry -> what sending it raises"""

    def send(self, entries: Sequence[Entry]) -> None:
        self.requests.append(len(entries))
        for entry in entries:
            if fault := self.faults.get(entry.name) or self.faults.get(entry.kind):
                raise fault
        self.taken += entries


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def sending(store: Store, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(sender, "PAUSE", 0.01)
    monkeypatch.setattr(sender, "PATIENCE", 0.3)
    made = Sender(store.send, tmp_path / "entries.jsonl", "MLflow")
    made.start()
    return made


DOWN = OSError("[Errno 111] Connection refused")
NO = MlflowException("no such value", error_code=INVALID_PARAMETER_VALUE)
END = Entry("end", "FINISHED", milliseconds=5)


def test_everything_arrives_in_order_and_in_few_requests(store, sending):
    sent = [*metrics(2500), Entry("tag", "a", "b"), *metrics(3), Entry("artifact", "", "x.txt"), END]
    sending.put(sent)
    sending.close()
    assert store.taken == sent
    assert store.requests == [1000, 1000, 500, 1, 3, 1, 1]
    assert not sending.waiting


def test_what_a_store_does_not_take_waits_in_the_file_and_arrives_later(store, sending, caplog):
    store.faults["metric"] = DOWN
    sending.put(metrics(2))
    wait_for(lambda: sending.failure)
    sending.put(metrics(5)[2:])
    wait_for(lambda: load(sending.file) == metrics(5))
    assert sending.failure == "Connection refused"
    store.faults.clear()
    wait_for(lambda: not sending.waiting)
    sending.close()
    assert store.taken == metrics(5)
    assert not sending.file.exists()
    (away, back) = [record.message for record in caplog.records]
    assert "fails (Connection refused): the run goes on" in away
    assert str(sending.file) in away
    assert "is back" in back


def test_a_store_that_stays_away_holds_the_end_up_for_no_longer_than_patience(store, sending):
    store.faults = {"metric": DOWN, "end": DOWN}
    sending.put([*metrics(3), END])
    sending.close()
    assert load(sending.file) == sending.waiting == [*metrics(3), END]
    assert not store.taken


def test_a_call_that_never_returns_holds_nothing_up(tmp_path, monkeypatch):
    monkeypatch.setattr(sender, "PATIENCE", 0.1)
    stuck = threading.Event()
    made = Sender(lambda entries: stuck.wait(60) or None, tmp_path / "entries.jsonl", "MLflow")
    made.start()
    for entry in metrics(100):
        made.put([entry])
    made.close()
    assert load(made.file) == metrics(100)
    stuck.set()


def test_files_that_cannot_be_stored_do_not_stop_values(store, sending):
    """They may go to another place than values, whose library or key is missing."""
    store.faults["artifact"] = ModuleNotFoundError("No module named 'boto3'")
    sending.put([Entry("artifact", "", "x.txt"), *metrics(2), END])
    sending.close()
    assert store.taken == [*metrics(2), END]
    assert sending.waiting == load(sending.file) == [Entry("artifact", "", "x.txt")]
    assert sending.failure == "No module named 'boto3'"


def test_what_is_refused_is_told_and_stops_nothing_else(store, sending, caplog):
    store.faults["m1"] = NO
    sending.put([*metrics(4), END])
    sending.close()
    assert store.taken == [metrics(4)[0], *metrics(4)[2:], END]
    assert sending.refused == {metrics(4)[1]: "no such value"}
    assert "MLflow refuses m1: no such value" in caplog.text


def test_a_fault_of_the_database_is_no_refusal(store, sending):
    """MLflow gives such errors the code of a bad request."""
    fault = MlflowException("malformed", error_code=INVALID_PARAMETER_VALUE)
    fault.__cause__ = OSError("database disk image is malformed")
    store.faults["metric"] = fault
    sending.put(metrics(2))
    sending.close()
    assert not sending.refused
    assert sending.waiting == metrics(2)


def test_on_a_full_disk_values_wait_in_memory(store, sending):
    store.faults["metric"] = DOWN
    with full_disk(room=100):
        sending.put(metrics(50))
        wait_for(lambda: sending.failure)
        assert not sending.saved
        store.faults.clear()
        wait_for(lambda: not sending.waiting)
    sending.close()
    assert store.taken == metrics(50)


def test_the_file_holds_every_kind_of_value(tmp_path):
    sent = [Entry("metric", "loss", float("inf"), 3, 4), Entry("artifact", "traces", "/a/b.html"), END]
    save(sent, tmp_path / "f.jsonl")
    assert load(tmp_path / "f.jsonl") == sent
    assert all(json.loads(line)["kind"] for line in (tmp_path / "f.jsonl").read_text().splitlines())
    assert load(tmp_path / "none.jsonl") == []
