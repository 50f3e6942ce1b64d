"""The command for MLflow's pages: its links lead to our view of the experiment, and its server ends with it."""

import os
import signal
import socket
import subprocess
import sys
from ipaddress import ip_address
from pathlib import Path

import pytest
from mlflow import MlflowClient

from draftopd import ui
from draftopd.tracking import pages


class Server:
    """In place of MLflow's."""

    def __init__(self, command: list[str], **_: object) -> None:
        self.command, self.pid = command, 0

    def wait(self) -> int:
        return 0


@pytest.fixture
def started(tmp_path: Path, monkeypatch):
    """Runs the command; the server that it starts."""
    servers: list[Server] = []

    def popen(command: list[str], **words: object) -> Server:
        servers.append(Server(command, **words))
        return servers[-1]

    monkeypatch.setattr(ui.subprocess, "Popen", popen)
    monkeypatch.setattr(ui, "_answers", lambda *_: True)
    monkeypatch.setattr(ui, "_end", lambda _: None)
    monkeypatch.setattr(ui.signal, "signal", lambda *_: None)

    def run(*words: str) -> tuple[int, list[Server]]:
        monkeypatch.setattr(sys, "argv", ["draftopd.ui", "--no-browser", *words])
        return ui.main(), servers

    return run


def test_links_lead_to_our_view_of_a_store_for_this_machine_only(started, tmp_path, capsys):
    code, (server,) = started("--store", str(tmp_path / "a.db"), "--port", "5099")
    assert code == 0
    words = dict(zip(server.command, server.command[1:], strict=False))
    assert ip_address(words["--host"]).is_loopback
    assert (words["--port"], words["--backend-store-uri"]) == ("5099", f"sqlite:///{tmp_path}/a.db")
    runs, curves = capsys.readouterr().out.splitlines()
    assert runs == f"runs: {pages.link('http://127.0.0.1:5099', '1')}"
    assert curves.endswith("viewStateShareKey=draftopd-curves&compareRunsMode=CHART")
    experiment = MlflowClient(f"sqlite:///{tmp_path}/a.db").get_experiment("1")
    assert pages.TAGS.items() <= experiment.tags.items()


def test_a_port_that_is_taken_is_one_line(started, tmp_path, capsys):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        code, servers = started("--store", str(tmp_path / "a.db"), "--port", str(other.getsockname()[1]))
    assert (code, servers) == (2, [])
    assert "choose another with --port" in capsys.readouterr().err


def test_views_fit_into_a_tag_of_mlflow():
    assert all(len(value) <= 5000 for value in pages.TAGS.values())  # the limit of its older versions


@pytest.mark.slow
def test_sigterm_ends_the_server_with_the_command(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["-m", "draftopd.ui", "--no-browser", "--store", str(tmp_path / "a.db"), "--port", str(port)]
    with subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, text=True, env=os.environ) as command:
        assert command.stdout is not None
        assert any(line.startswith("curves: ") for line in command.stdout)
        command.send_signal(signal.SIGTERM)
        assert command.wait(60) == 0
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))
