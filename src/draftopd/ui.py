"""MLflow's pages of our runs: `python -m draftopd.ui [--port 5001] [--store FILE]`."""

import argparse
import os
import re
import signal
import socket
import subprocess
import sys
import time
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING
from urllib.request import urlopen

from omegaconf import DictConfig, OmegaConf

from draftopd.config.places import HOME
from draftopd.errors import DraftError

if TYPE_CHECKING:
    from mlflow import MlflowClient

PATIENCE = 300.0  # seconds that the server has to come up


def main() -> int:
    facts = OmegaConf.load(HOME / "mlflow.yaml")
    assert isinstance(facts, DictConfig)
    asked = _parser(facts).parse_args()
    try:
        store, links = _open(asked.store, facts, asked.port)
    except DraftError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if store.startswith("http"):
        _tell(links)
        return 0
    return _serve(store, facts.ui.host, asked.port, links, asked.browser)


def _open(named: str, facts: DictConfig, port: int) -> tuple[str, list[str]]:
    """The store, which has our experiment then, and the links to its runs.

    Raises:
        DraftError: the store cannot be used, or the port is taken.
    """
    from draftopd.tracking import pages  # imports MLflow, for which --help need not wait
    from draftopd.tracking.store import connect, experiment_id, public

    def prepare(client: "MlflowClient") -> str:
        found = experiment_id(client, facts.experiment_name, facts.artifact_location)
        pages.show(client, client.get_experiment(found))
        return found

    store = named if re.match(r"[\w+]+:", named) else f"sqlite:///{Path(named).expanduser()}"
    experiment = connect(store, prepare)
    served = store.startswith("http")
    if not served:
        _require_free(facts.ui.host, port)
    address = public(store) if served else f"http://{facts.ui.host}:{port}"
    return store, [pages.link(address, experiment, view) for view in pages.VIEWS]


def _require_free(host: str, port: int) -> None:
    with socket.socket() as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            free.bind((host, port))
        except OSError as error:
            raise DraftError(
                f"port {port} of {host} cannot be had ({error.strerror}): choose another with --port"
            ) from error


def _parser(facts: DictConfig) -> argparse.ArgumentParser:
    uri = os.environ.get("MLFLOW_TRACKING_URI", facts.tracking_uri)
    parser = argparse.ArgumentParser("draftopd.ui", description="Serves MLflow's pages of our runs, and opens them.")
    parser.add_argument("--port", type=int, default=facts.ui.port, help=f"default: {facts.ui.port}, of mlflow.yaml")
    parser.add_argument("--store", default=uri, help=f"an SQLite file, or an address as in mlflow.yaml; default: {uri}")
    parser.add_argument("--no-browser", dest="browser", action="store_false", help="print the address alone")
    return parser


def _serve(store: str, host: str, port: int, links: Sequence[str], browser: bool) -> int:
    """Until Ctrl-C or SIGTERM; its exit code, 0 after these."""
    words = ["--backend-store-uri", store, "--host", host, "--port", str(port), "--workers", "1"]
    command = [sys.executable, "-m", "mlflow", "ui", *words, "--uvicorn-opts", "--log-level warning"]
    # a session of its own, which is ended as a whole: MLflow has not always ended its server when it was ended
    jobs_off = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # seven processes more that runs have no use for
    server = subprocess.Popen(command, start_new_session=True, env=os.environ | jobs_off)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        if _answers(server, f"http://{host}:{port}/"):
            _tell(links)
            if browser and (sys.platform == "darwin" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
                webbrowser.open(links[0])
        return server.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        _end(server)


def _tell(links: Sequence[str]) -> None:
    for name, link in zip(("runs", "curves"), links, strict=True):
        print(f"{name}: {link}", flush=True)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _answers(server: subprocess.Popen[bytes], address: str) -> bool:
    """Waits until it does; False where it ends before."""
    end = time.monotonic() + PATIENCE
    while server.poll() is None and time.monotonic() < end:
        try:
            urlopen(address, timeout=10).close()
            return True
        except OSError:
            time.sleep(0.2)
    return False


def _end(server: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(server.pid, number)
            server.wait(10)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


if __name__ == "__main__":
    sys.exit(main())
