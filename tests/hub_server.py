"""A stand-in for the Hugging Face hub: what creating a repository and uploading a folder ask of it."""

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

TOKEN = "hf_stand_in"


class Hub(ThreadingHTTPServer):
    """Repositories: name -> whether it is private, and its files by path."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.private: dict[str, bool] = {}
        self.files: dict[str, dict[str, bytes]] = {}

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answers(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        known = self.headers["Authorization"] == f"Bearer {TOKEN}"
        if self.path == "/api/whoami-v2" and known:
            return self._give({"name": "me", "type": "user"})
        self._give({"error": "Invalid credentials"}, 401)

    def do_POST(self) -> None:
        sent = self.rfile.read(int(self.headers["Content-Length"]))
        place = self.path.split("?")[0].removeprefix("/api/")
        if place == "repos/create":
            return self._create(json.loads(sent))
        if place == "validate-yaml":
            return self._give({"errors": [], "warnings": []})
        name, _, rest = place.removeprefix("models/").rpartition("/")
        name = name.removesuffix("/preupload").removesuffix("/commit")
        if name not in self.server.files or rest != "main":
            return self._give({"error": "Repository not found"}, 404)
        if "/preupload/" in place:
            modes = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(sent)["files"]
            ]
            return self._give({"files": modes})
        for line in map(json.loads, sent.splitlines()):
            if line["key"] == "file":
                self.server.files[name][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        self._give({"commitUrl": f"{self.server.endpoint}/{name}/commit/1", "commitOid": "1"})

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked.get('organization', 'me')}/{asked['name']}"
        if not name.startswith("me/"):
            return self._give({"error": f"You don't have the rights to create a model under {name}"}, 403)
        if name in self.server.files:
            return self._give({"error": "You already created this model repo", "url": f"/{name}"}, 409)
        self.server.private[name], self.server.files[name] = _private(asked), {}
        self._give({"url": f"{self.server.endpoint}/{name}", "name": name, "id": "1"})

    def _give(self, answer: dict[str, Any], status: int = 200) -> None:
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


def _private(asked: dict[str, Any]) -> bool:
    """As newer and older versions of the hub's client ask."""
    return asked.get("visibility") == "private" or bool(asked.get("private"))


@contextmanager
def hub() -> Iterator[Hub]:
    with Hub() as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()
