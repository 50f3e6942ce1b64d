"""Runs that MLflow takes for running though their process is gone: killed, or unable to send its end."""

import logging
import shutil
import socket
from contextlib import suppress
from functools import partial
from pathlib import Path

from filelock import FileLock, Timeout
from mlflow import MlflowClient
from mlflow.entities import Run

from draftopd.tracking.entries import Entry, load, now, send
from draftopd.tracking.sender import Sender
from draftopd.tracking.store import reason

log = logging.getLogger(__name__)

PROCESS = "process"
"""tag: host and process id"""
UNSENT = "unsent"
"""tag: the folder of what waits to be sent"""
LOCK = "lock"
"""file in that folder, which the process holds while it lives"""
FILE = "entries.jsonl"
"""file in that folder: what waits"""


def end(client: MlflowClient, experiment: str, store: str) -> None:
    """Ends the dead runs of this machine: with what they left unsent, or as KILLED. Errors are logged, not raised."""
    host = f"{socket.gethostname()}:"
    query = f"attributes.status = 'RUNNING' and tags.{PROCESS} LIKE '{host}%'"
    try:
        for run in client.search_runs([experiment], query, max_results=1000):
            if not run.data.tags[PROCESS].startswith(host):
                continue  # to LIKE, _ is any letter
            folder = Path(run.data.tags[UNSENT])
            if not (folder / LOCK).exists():  # a living run keeps its folder
                if client.get_run(run.info.run_id).info.status == "RUNNING":  # else another start has just ended it
                    _end(client, run, folder, store)
                continue
            with suppress(Timeout), FileLock(folder / LOCK, timeout=0):  # else alive, or another start is at it
                _end(client, run, folder, store)
    except Exception as error:  # none of the run that starts
        log.warning(f"{store} was not searched for runs whose process is gone ({reason(error)})")


def _end(client: MlflowClient, run: Run, folder: Path, store: str) -> None:
    entries = load(folder / FILE)
    if not entries or entries[-1].kind != "end":
        entries.append(Entry("end", "KILLED", milliseconds=now()))
    sender = Sender(partial(send, client, run.info.run_id), folder / FILE, store)
    sender.put(entries)
    sender.start()
    sender.close()
    if not sender.waiting:
        log.warning(f"{store}: the process of run {run.info.run_name} is gone, so it ends as {entries[-1].key}")
        shutil.rmtree(folder, ignore_errors=True)
