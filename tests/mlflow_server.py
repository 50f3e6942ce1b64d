"""The part of MLflow's REST interface that a run uses, as a server that can go away, come back, be slow and refuse."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse
from uuid import uuid4

Json = dict[str, Any]


class Server:
    """What it holds outlives `down()` and `up()`, as the files of a real one do."""

    def __init__(self, artifacts: Path) -> None:
        self.artifacts = artifacts
        self.runs: dict[str, Json] = {}
        self.models: list[Json] = []
        self.calls: list[str] = []
        """last word of every request's path"""
        self.meet: Callable[[str, Json], int] = lambda call, body: 200
        """called with each request; another status than 200 is the answer"""
        self.port = 0
        self.up()

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def up(self) -> None:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.reply({name: values[0] for name, values in parse_qs(urlparse(self.path).query).items()})

            def do_POST(self) -> None:
                self.reply(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def reply(self, body: Json) -> None:
                status, out = server.answer(urlparse(self.path).path.split("mlflow/")[1], body)
                data = json.dumps(out).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_PATCH = do_POST  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self.http.daemon_threads = True
        self.port = self.http.server_port
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def down(self) -> None:
        self.http.shutdown()
        self.http.server_close()

    def answer(self, call: str, body: Json) -> tuple[int, Json]:
        self.calls.append(call)
        status = self.meet(call, body)
        if status != 200:
            code = "INVALID_PARAMETER_VALUE" if status == 400 else "TEMPORARILY_UNAVAILABLE"
            return status, {"error_code": code, "message": "not today"}
        if call.startswith("logged-models"):
            return 200, self.model(call, body)
        if call.startswith("experiments"):
            return 200, {"experiment": {"experiment_id": "1", "name": "draftopd", "lifecycle_stage": "active"}}
        if call == "runs/create":
            body |= {"run_id": uuid4().hex, "status": "RUNNING", "metrics": []}
            self.runs[body["run_id"]] = body
        if call == "runs/search":
            return 200, {"runs": [self.shown(run) for run in self.runs.values() if run["status"] == "RUNNING"]}
        run = self.runs[body["run_id"]]
        if call == "runs/log-batch":
            for kind in ("metrics", "params", "tags"):
                run.setdefault(kind, []).extend(body.get(kind, []))
        if call in ("runs/log-inputs", "runs/outputs"):
            run.setdefault(call, []).append(body)
        if call == "runs/set-tag":
            run["tags"].append({"key": body["key"], "value": body["value"]})
        if call == "metrics/get-history":
            return 200, {"metrics": [metric for metric in run["metrics"] if metric["key"] == body["metric_key"]]}
        if call == "runs/update":
            run["status"] = body["status"]
        return 200, {"run": self.shown(run), "run_info": self.shown(run)["info"]}

    def model(self, call: str, body: Json) -> Json:
        if call == "logged-models/search":
            return {
                "models": [
                    m for m in self.models if body["filter"] == f"source_run_id = '{m['info']['source_run_id']}'"
                ]
            }
        if call == "logged-models":
            info = {"model_id": uuid4().hex, "status": 1, "creation_timestamp_ms": 0, "last_updated_timestamp_ms": 0}
            keys = ("name", "experiment_id", "source_run_id", "model_type")
            info |= {key: body[key] for key in keys} | {"artifact_uri": "none", "tags": body["tags"]}
            self.models.append({"info": info, "data": {"params": body["params"]}})
        return {"model": self.models[-1]}

    def shown(self, run: Json) -> Json:
        info = {
            "run_id": run["run_id"],
            "run_name": self.tags(run["run_id"])["mlflow.runName"],
            "experiment_id": "1",
            "status": run["status"],
            "lifecycle_stage": "active",
            "artifact_uri": (self.artifacts / run["run_id"]).as_uri(),
        }
        return {"info": info, "data": {"tags": run["tags"], "metrics": run["metrics"]}}

    def tags(self, run_id: str) -> dict[str, str]:
        return {tag["key"]: tag["value"] for tag in self.runs[run_id]["tags"]}

    def values(self, run_id: str, metric: str) -> dict[int, float]:
        """Step -> value; each was sent once or always alike."""
        return {int(m.get("step", 0)): m["value"] for m in self.runs[run_id]["metrics"] if m["key"] == metric}

    def files(self, run_id: str) -> set[str]:
        folder = self.artifacts / run_id
        return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}


@contextmanager
def running(folder: Path) -> Iterator[Server]:
    server = Server(folder)
    try:
        yield server
    finally:
        server.down()


def wait_for(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """For what a thread does in its own time.

    Raises:
        TimeoutError: it did not come.
    """
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError
        time.sleep(0.01)
