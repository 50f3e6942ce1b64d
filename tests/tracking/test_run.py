"""A run against a server that fails in every way: the work goes on, and nothing is lost without a word."""

import os
import signal
import threading
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from draftopd.errors import DraftError
from draftopd.tracking import dead_runs, load, run, sender, store
from draftopd.tracking.run import Run
from mlflow_server import Server, running, wait_for
from pair import full_disk


@pytest.fixture
def server(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(sender, "PAUSE", 0.01)
    for module in (sender, run):
        monkeypatch.setattr(module, "PATIENCE", 0.5)
    with running(tmp_path / "artifacts") as made:
        yield made


def started(server: Server, folder: Path, name: str = "first") -> Run:
    return Run(server.uri, "draftopd", name, str(folder)).start()


def left(folder: Path) -> list[Path]:
    """What waits in a run's folder."""
    return sorted(folder.glob("mlflow_unsent-*"))


def test_a_run_logs_everything_and_leaves_no_file(server, tmp_path, capsys):
    tracked = Run(server.uri, "draftopd", "first", str(tmp_path / "out"), tags={"mlflow.parentRunId": "p"}).start()
    assert left(tmp_path / "out")
    tracked.log_metrics({"val/loss": 1.5, "val/humaneval+/tau": 2.0}, 3)
    tracked.log_params({"seed": 0})
    tracked.log_tags({"command": "x"})
    tracked.log_text("page", "traces/examples.html")
    tracked.log_figure(Figure(), "own.png")
    (tmp_path / "results.json").write_text("{}")
    tracked.log_artifact(tmp_path / "results.json")
    tracked.end("FINISHED")
    assert server.runs[tracked.id]["status"] == "FINISHED"
    assert server.values(tracked.id, "val/loss") == {3: 1.5}
    assert server.values(tracked.id, "val/humaneval/tau") == {3: 2.0}
    assert server.runs[tracked.id]["params"] == [{"key": "seed", "value": "0"}]
    tags = server.tags(tracked.id)
    assert tags["mlflow.runName"] == f"first {tracked.id[:4]}"
    assert {"mlflow.parentRunId": "p", "command": "x"}.items() <= tags.items()
    assert tags["process"].endswith(f":{os.getpid()}")
    assert server.files(tracked.id) == {"traces/examples.html", "own.png", "results.json"}
    assert not left(tmp_path / "out")
    assert (tmp_path / "results.json").exists()
    assert "warning" not in capsys.readouterr().out


def test_a_server_that_goes_and_comes_back_gets_everything(server, tmp_path, capsys):
    tracked = started(server, tmp_path)
    tracked.log_metrics({"loss": 0.0}, 0)
    wait_for(lambda: server.values(tracked.id, "loss"))
    server.down()
    for step in range(1, 30):
        tracked.log_metrics({"loss": float(step)}, step)
    tracked.log_text("page", "traces/examples.html")
    (folder,) = left(tmp_path)
    wait_for(lambda: (folder / dead_runs.FILE).exists())
    server.up()
    tracked.end("FINISHED")
    assert server.values(tracked.id, "loss") == {step: float(step) for step in range(30)}
    assert server.files(tracked.id) == {"traces/examples.html"}
    assert server.runs[tracked.id]["status"] == "FINISHED"
    assert not left(tmp_path)
    assert "warning" not in capsys.readouterr().out


@pytest.mark.parametrize("fault", ["busy", "silent"])
def test_a_server_that_fails_or_hangs_holds_nobody_up(server, tmp_path, fault):
    tracked, hang = started(server, tmp_path), threading.Event()
    server.meet = lambda call, body: 503 if fault == "busy" else (hang.wait(60), 200)[1]
    done = threading.Thread(target=lambda: [tracked.log_metrics({"loss": float(i)}, i) for i in range(500)])
    done.start()
    done.join(5)
    assert not done.is_alive()
    server.meet = lambda call, body: 200
    hang.set()
    wait_for(lambda: len(server.values(tracked.id, "loss")) == 500)
    tracked.end("FINISHED")
    assert server.runs[tracked.id]["status"] == "FINISHED"


def test_what_a_dead_server_did_not_get_is_told_and_sent_by_the_next_run(server, tmp_path, capsys):
    tracked = started(server, tmp_path / "one")
    (checkpoint := tmp_path / "last.ckpt").touch()
    server.down()
    tracked.log_metrics({"loss": 1.0, "tau": 2.0}, 7)
    tracked.log_text("page", "config.yaml")
    tracked.end("FINISHED", checkpoint)
    said = capsys.readouterr().out
    assert said.count("\n") == 1
    assert "has not got 2 values and 1 file (Connection refused), which wait in" in said
    assert f"the next run on this machine sends them; last checkpoint: {checkpoint}" in said
    gone(tracked)
    server.up()
    assert server.runs[tracked.id]["status"] == "RUNNING"
    started(server, tmp_path / "two").end("FINISHED")
    assert server.runs[tracked.id]["status"] == "FINISHED"
    assert server.values(tracked.id, "loss") == {7: 1.0}
    assert server.files(tracked.id) == {"config.yaml"}
    assert not left(tmp_path / "one")


def gone(run: Run) -> None:
    """As if its process had ended: its threads are through."""
    run._sender._thread.join()
    run._dead_runs.join()


def killed(server: Server, folder: Path) -> None:
    """A process starts a run, logs a value, and is killed with SIGKILL."""
    child = os.fork()
    if child == 0:
        try:
            tracked = started(server, folder, "killed")
            tracked.log_metrics({"loss": 1.0}, 1)
            wait_for(lambda: not tracked._sender.waiting)
            os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


@pytest.mark.parametrize("folder_stays", [True, False])
def test_a_killed_run_ends_as_killed_at_the_next_start(server, tmp_path, folder_stays):
    killed(server, tmp_path / "one")
    (dead,) = server.runs
    assert server.runs[dead]["status"] == "RUNNING"
    assert left(tmp_path / "one")
    if not folder_stays:
        os.rename(tmp_path / "one", tmp_path / "moved")
    started(server, tmp_path / "two").end("FINISHED")
    assert server.runs[dead]["status"] == "KILLED"
    assert server.values(dead, "loss") == {1: 1.0}
    assert not left(tmp_path / "one")


def test_living_runs_and_those_of_other_machines_are_left_alone(server, tmp_path, monkeypatch):
    first = started(server, tmp_path, "parent")
    second = started(server, tmp_path, "child")
    monkeypatch.setattr(run.socket, "gethostname", lambda: "elsewhere")
    other = started(server, tmp_path / "other", "other")
    other._dead_runs.join()
    other._lock.release()  # as if it were dead
    monkeypatch.undo()
    started(server, tmp_path / "third", "third").end("FINISHED")
    assert {i: server.runs[i]["status"] for i in (first.id, second.id, other.id)} == dict.fromkeys(
        (first.id, second.id, other.id), "RUNNING"
    )
    for tracked in (second, first, other):
        tracked.end("FINISHED")


def test_a_server_that_is_down_is_one_line_that_names_the_way_without(server, tmp_path):
    server.down()
    for start in (lambda: store.check_store(server.uri, "draftopd"), lambda: started(server, tmp_path)):
        with pytest.raises(DraftError, match=r"127.0.0.1:\d+ cannot be used \(Connection refused\).*logger=none$"):
            start()
    assert not left(tmp_path)
    server.up()


def test_a_server_that_does_not_answer_is_given_up_within_30_seconds(server, tmp_path, monkeypatch):
    assert store.REQUEST * (1 + store.RETRIES) <= store.START <= 30
    hang = threading.Event()
    server.meet = lambda call, body: (hang.wait(60), 200)[1]
    monkeypatch.setattr(store, "START", 0.2)
    for start in (lambda: store.check_store(server.uri, "draftopd"), lambda: started(server, tmp_path)):
        with pytest.raises(DraftError, match=r"did not answer within 0 s.*logger=none$"):
            start()
    hang.set()
    assert not left(tmp_path)


def test_no_password_is_shown(monkeypatch):
    with pytest.raises(DraftError) as raised:
        store.check_store("http://me:secret@127.0.0.1:9", "draftopd")
    assert "secret" not in str(raised.value)


def test_a_file_that_cannot_be_written_for_mlflow_does_not_stop_the_run(server, tmp_path, capsys):
    tracked = started(server, tmp_path)
    with full_disk(room=10):
        tracked.log_text("long" * 100, "traces/examples.html")
    tracked.end("FINISHED")
    assert server.runs[tracked.id]["status"] == "FINISHED"
    assert "never gets 1 file (examples.html: it cannot be written: File too large)" in capsys.readouterr().out


def test_a_run_goes_on_under_its_own_id_without_gaps_or_doubles(server, tmp_path):
    first = started(server, tmp_path)
    for step in (1, 2, 3):
        first.log_metrics({"loss": float(step)}, step)
    first.end("KILLED")
    again = Run(server.uri, "draftopd", "first", str(tmp_path)).start(goes_on=True)
    assert again.id == first.id
    assert server.runs[again.id]["status"] == "RUNNING"
    for step in (2, 3, 4):
        again.log_metrics({"loss": float(step), "tau": 1.0}, step)
    again.end("FINISHED")
    logged = [(m["key"], int(m["step"])) for m in server.runs[again.id]["metrics"]]
    assert sorted(logged) == [("loss", 1), ("loss", 2), ("loss", 3), ("loss", 4), ("tau", 2), ("tau", 3), ("tau", 4)]
    assert server.runs[again.id]["status"] == "FINISHED"
    assert len(server.runs) == 1


def test_a_run_that_goes_on_sends_what_its_dead_process_left(server, tmp_path):
    first = started(server, tmp_path)
    server.down()
    first.log_metrics({"loss": 1.0}, 1)
    first.log_text("page", "page.html")
    first.end("KILLED")
    gone(first)
    server.up()
    again = Run(server.uri, "draftopd", "first", str(tmp_path)).start(goes_on=True)
    for step in (1, 2):
        again.log_metrics({"loss": float(step)}, step)
    again.end("FINISHED")
    assert [(m["key"], m["value"]) for m in server.runs[first.id]["metrics"]] == [("loss", 1.0), ("loss", 2.0)]
    assert server.files(first.id) == {"page.html"}
    assert server.runs[first.id]["status"] == "FINISHED"
    assert not left(tmp_path)


def test_in_another_store_a_new_run_begins(server, tmp_path):
    first = started(server, tmp_path)
    first.end("KILLED")
    with running(tmp_path / "artifacts") as other:
        again = Run(other.uri, "draftopd", "first", str(tmp_path)).start(goes_on=True)
        again.end("FINISHED")
    assert again.id != first.id


def test_data_sets_and_models_wait_like_all_else_and_come_once(server, tmp_path, capsys):
    tracked = started(server, tmp_path)
    for name in ("runs/log-inputs", "logged-models", "runs/outputs"):  # each fails once
        failing = [name]

        def meet(call: str, body: object, failing: list[str] = failing) -> int:
            return 503 if call in failing and not failing.clear() else 200

        server.meet = meet
        if name == "runs/log-inputs":
            tracked.log_dataset("training", "mine train", "7a", {"path": "mine.jsonl"}, 16)
        else:
            tracked.log_model("a/b", {"checkpoint": "last.ckpt"}, 3)
        wait_for(lambda: not tracked._sender.waiting)
    tracked.end("FINISHED")
    logged = server.runs[tracked.id]
    (data,) = logged["runs/log-inputs"][0]["datasets"]
    assert data["dataset"]["source"] == '{"path": "mine.jsonl"}'
    assert data["tags"] == [{"key": "mlflow.data.context", "value": "training"}]
    (model,) = server.models
    assert (model["info"]["name"], model["data"]["params"]) == ("a_b", [{"key": "checkpoint", "value": "last.ckpt"}])
    assert {out["models"][0]["model_id"] for out in logged["runs/outputs"]} == {model["info"]["model_id"]}
    assert "warning" not in capsys.readouterr().out


def test_the_machines_load_is_logged_until_the_end_and_goes_on_from_its_last_step(server, tmp_path):
    for goes_on in (False, True):
        tracked = Run(server.uri, "draftopd", "first", str(tmp_path), system_metrics=0.01).start(goes_on)
        wait_for(lambda: len(server.values(tracked.id, "system/cpu_utilization_percentage")) > 2 + 2 * goes_on)  # noqa: B023
        tracked.end("FINISHED")
    steps = server.values(tracked.id, "system/cpu_utilization_percentage")
    assert sorted(steps) == list(range(len(steps)))
    assert len(server.runs) == 1


def test_a_driver_that_fails_ends_the_machines_load_alone(server, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(load.CPUMonitor, "collect_metrics", lambda self: 1 / 0)
    tracked = Run(server.uri, "draftopd", "first", str(tmp_path), system_metrics=0.01).start()
    wait_for(lambda: "the machine's load is not logged any more: division by zero" in caplog.text)
    tracked.end("FINISHED")
    assert server.runs[tracked.id]["status"] == "FINISHED"
