"""A server of OpenAI's completions interface over a tiny target, as vLLM answers, with faults on demand."""

import json
from collections.abc import Callable
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Lock, Thread
from typing import Any

from draftopd.decoding.rollout import rollout
from draftopd.decoding.settings import Decoding
from draftopd.drafters.base import Drafter
from draftopd.target.model import Target

Behave = Callable[[int, dict[str, Any]], str | None]
"""number and body of a request -> what goes wrong: "500", "400", "drop", "cut", "hang"; None = nothing"""


class FakeEngine:
    """Use it as a context.

    Args:
        change: edits a choice of a response before it is sent.
        drafter: it serves the target with this one, and tells the accepted drafts of each verification.
    """

    def __init__(
        self,
        target: Target,
        behave: Behave = lambda number, body: None,
        change: Callable[[dict[str, Any]], object] = lambda choice: None,
        *,
        version: str = "0.32.0",
        max_model_len: int = 64,
        drafter: Drafter | None = None,
    ) -> None:
        self.target, self.behave, self.change, self.drafter = target, behave, change, drafter
        self.model = {"id": "tiny", "owned_by": "vllm", "max_model_len": max_model_len}
        self.version, self.port = version, 0
        self.requests: list[dict[str, Any]] = []
        self.answered: list[tuple[int, ...]] = []
        """prompts whose response was sent whole"""
        self._lock, self._over = Lock(), Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> "FakeEngine":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.stop()

    def start(self) -> None:
        """At the address that it had, if it had one."""
        engine = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                pages = {"/v1/models": {"data": [engine.model]}, "/version": {"version": engine.version}}
                send(self, 200 if self.path in pages else 404, pages.get(self.path, {}))

            def do_POST(self) -> None:
                engine.complete(self, json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self.port = self._server.server_port
        Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def complete(self, handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        with self._lock:
            self.requests.append(body)
            fault = self.behave(len(self.requests), body)
        if fault in ("500", "400"):
            return send(handler, int(fault), {"message": "this went wrong"})
        if fault == "drop":
            return handler.connection.close()
        if fault == "hang":
            self._over.wait()
            return handler.connection.close()
        decoding = Decoding(body["max_tokens"], temperature=body["temperature"], seed=body.get("seed", 0))
        with self._lock:
            ids, accepted = response(self.target, self.drafter, tuple(body["prompt"]), decoding)
        choice = {"token_ids": list(ids), "prompt_token_ids": body["prompt"], "finish_reason": "stop"}
        self.change(choice)
        self.answered += [] if fault else [tuple(body["prompt"])]
        content = {"choices": [choice], "metrics": {"speculative_decoding": {"per_step_accepted": accepted}}}
        return send(handler, 200, content, cut=fault == "cut")


@cache
def response(
    target: Target, drafter: Drafter | None, prompt: tuple[int, ...], decoding: Decoding
) -> tuple[list[int], list[int] | None]:
    """Tokens, and the accepted drafts of each verification."""
    (result,) = rollout(target, drafter, [prompt], decoding)
    trace = result.trace
    return trace.tokens[len(prompt) :].tolist(), None if drafter is None else trace.accepted.tolist()


def send(handler: BaseHTTPRequestHandler, status: int, content: dict[str, Any], cut: bool = False) -> None:
    data = json.dumps(content).encode()
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data[: len(data) // 2] if cut else data)
