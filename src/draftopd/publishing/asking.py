"""An engine that a command of the user's starts, and what it makes of prompts: by its server, or through files.

The words of a command may hold names in braces, which are replaced: {target}, {drafter}, {method}, {drafts}, {length},
{dtype}, and {port}, or {request} and {answer}. With {port} it starts a server of OpenAI's completions interface, which
is asked and then ended; with {request} and {answer} it reads and writes these files, as benchmarks/serve_vllm.py does.
"""

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from draftopd.data.engine import response_ids
from draftopd.data.servers import Server, ask_all
from draftopd.errors import DraftError

NAMES = {"target": "target", "drafter": "drafter", "method": "method", "dtype": "dtype"} | {
    "drafts": "num_speculative_tokens",
    "length": "max_model_len",
}
"""in a command, and in a request"""
AT_A_TIME = 4  # requests to a server
LOOK = 0.2  # seconds between looks at a server that starts


class Process:
    """A command with all the processes that it starts; what they print goes into a file."""

    def __init__(self, command: Sequence[str], log: Path, settings: Mapping[str, str] | None = None) -> None:
        self.command, self.log, self.settings = list(command), log, settings or {}

    def start(self) -> None:
        """Raises DraftError where there is no such program."""
        # without our Python's paths, which lead to packages that an engine's environment does not want
        ours = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
        with self.log.open("a") as log:
            try:
                self.process = subprocess.Popen(
                    self.command, stdout=log, stderr=log, env=ours | dict(self.settings), start_new_session=True
                )
            except OSError as error:
                raise DraftError(f"cannot run {self.command[0]}: {error}") from error

    @property
    def over(self) -> bool:
        return self.process.poll() is not None

    def kill(self) -> None:
        with suppress(ProcessLookupError):  # all have ended
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@contextmanager
def running(process: Process) -> Iterator[None]:
    process.start()
    try:
        yield
    finally:
        process.kill()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def ask(command: Sequence[str], request: Mapping[str, Any], patience: float, log: Path) -> list[dict[str, Any]]:
    """The `tokens` of each prompt's response, and the `accepted` drafts of its verifications.

    Args:
        command: see above.
        request: of `audit.request`.
        patience: seconds within which a server must start, and a command with files must end.
        log: what the engine prints.

    Raises:
        DraftError: it does not start, ends too early, or does not answer as it has to.
    """
    if any("{port}" in word for word in command):
        return _served(command, request, patience, log)
    if all(any(name in word for word in command) for name in ("{request}", "{answer}")):
        return _through_files(command, request, patience, log)
    raise DraftError(f"the command {' '.join(command)} names neither {{port}} nor {{request}} and {{answer}}")


def _filled(command: Sequence[str], values: Mapping[str, Any]) -> list[str]:
    words = list(command)
    for name, value in values.items():
        words = [word.replace(f"{{{name}}}", str(value)) for word in words]
    return words


def _served(command: Sequence[str], request: Mapping[str, Any], patience: float, log: Path) -> list[dict[str, Any]]:
    port = free_port()
    process = Process(_filled(command, {n: request[key] for n, key in NAMES.items()} | {"port": port}), log)
    server = Server(f"http://127.0.0.1:{port}", None, request["max_model_len"], patience, patience, AT_A_TIME)
    asked = {"max_tokens": request["max_new_tokens"], "temperature": 0.0, "stop_token_ids": request["stop"]}
    jobs = [
        (i, {"prompt": ids, "return_token_ids": True, "repetition_penalty": 1.0, **asked})
        for i, ids in enumerate(request["prompts"])
    ]
    answers: dict[int, dict[str, Any]] = {}
    with running(process):
        _wait(process, port, patience)
        for i, answer, served in ask_all([server], jobs, AT_A_TIME):
            ids = response_ids(answer, request["prompts"][i], served.name)
            answers[i] = {"tokens": ids, "accepted": _accepted(answer, len(ids))}
    return [answers[i] for i in range(len(jobs))]


def _wait(process: Process, port: int, patience: float) -> None:
    """Until the server listens; raises DraftError where it ends, or takes too long."""
    until = time.monotonic() + patience
    while not process.over:
        with socket.socket() as door:
            if door.connect_ex(("127.0.0.1", port)) == 0:
                return
        if time.monotonic() > until:
            raise DraftError(f"{process.command[0]} does not listen at its port after {patience:g} s: {process.log}")
        time.sleep(LOOK)
    raise DraftError(f"{process.command[0]} has ended with exit code {process.process.returncode}: {process.log}")


def _accepted(answer: Mapping[str, Any], tokens: int) -> list[int]:
    """vLLM's figures; raises DraftError where a response of several tokens has none."""
    found = ((answer.get("metrics") or {}).get("speculative_decoding") or {}).get("per_step_accepted")
    if found is None and tokens > 1:
        raise DraftError("the server tells no steps: it takes --per-request-spec-decode-metrics detailed (vLLM 0.32)")
    return list(found or [])


def _through_files(
    command: Sequence[str], request: Mapping[str, Any], patience: float, log: Path
) -> list[dict[str, Any]]:
    with TemporaryDirectory(prefix="served-audit-") as scratch:
        source, answer = Path(scratch, "request.json"), Path(scratch, "answer.json")
        source.write_text(json.dumps(request))
        values = {name: request[key] for name, key in NAMES.items()} | {"request": source, "answer": answer}
        process = Process(_filled(command, values), log)
        with running(process):
            try:
                process.process.wait(patience)
            except subprocess.TimeoutExpired:
                raise DraftError(f"{process.command[0]} has not ended within {patience:g} s: {log}") from None
        if process.process.returncode or not answer.exists():
            raise DraftError(f"{process.command[0]} stopped with exit code {process.process.returncode}: {log}")
        answers = json.loads(answer.read_text())
        # where vLLM's kernels had to be mended, the export is judged by the mended pass
        return list(answers.get("vllm_mended", answers["vllm"]))
