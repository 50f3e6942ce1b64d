"""Servers with OpenAI's completions interface: requests to many at a time, tried again until one of them answers."""

import logging
import random
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

import requests
from requests.adapters import HTTPAdapter

from draftopd.data.first_texts import Source
from draftopd.errors import DraftError

log = logging.getLogger(__name__)
CONNECT = 10.0  # seconds
FIRST_DELAY, LONGEST_DELAY = 0.5, 30.0  # seconds between tries, doubled each time
LOOK = 0.2  # seconds after which a thread looks whether it should end


class UnavailableError(Exception):
    """No answer now; perhaps later.

    Args:
        lost: the server may have been started anew since.
    """

    def __init__(self, reason: str, lost: bool) -> None:
        super().__init__(reason)
        self.lost = lost


@dataclass(frozen=True, eq=False)
class Served(Source):
    """A server since its last start."""

    facts: Mapping[str, str | None]
    """engine, version, model as served, dtype; None where it does not say"""


Job = tuple[int, dict[str, Any]]
"""a text and its request, without the model's name"""
Reply = tuple[int, dict[str, Any], Served]


class Server:
    """One address, asked by several threads at a time.

    Args:
        url: without or with `/v1`.
        model: as served; None = the first that the server names.
        length: tokens of the longest text, prompt included.
        timeout: seconds for one text.
        patience: seconds of failures after which `given_up` is set; it goes on all the same.
    """

    def __init__(
        self, url: str, model: str | None, length: int, timeout: float, patience: float, concurrency: int
    ) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        self.model, self.length, self.timeout, self.patience = model, length, timeout, patience
        self.session = requests.Session()
        self.session.trust_env = False  # engines stand beside us: no proxy between
        for scheme in ("http://", "https://"):
            self.session.mount(scheme, HTTPAdapter(pool_maxsize=concurrency))
        self.given_up, self.fault = False, ""
        self._lock = threading.Lock()
        self._served: Served | None = None
        self._failures = 0
        self._failed_at = self._failing_since = self._not_before = 0.0

    def ready(self, stop: threading.Event) -> Served | None:
        """Waits until the server can be asked; None once `stop` is set.

        Raises DraftError where it is no such server.
        """
        with self._lock:  # one thread tries, the others wait for it
            while not stop.wait(max(0.0, self._not_before - time.monotonic())):
                if self._served is not None:
                    return self._served
                try:
                    self._served = self._identify()
                except UnavailableError as error:
                    self._failed(error)
        return None

    def ask(self, request: Mapping[str, Any], served: Served) -> dict[str, Any]:
        """The answer to a completions request.

        Raises:
            UnavailableError: there was none.
            DraftError: the server refuses the request.
        """
        body = {"model": served.facts["model"], **request}
        if served.facts["engine"] != "sglang":  # there it would switch off stop_token_ids too
            body["ignore_eos"] = True
        return self._json("POST", "/v1/completions", (CONNECT, self.timeout), body)

    def answered(self) -> None:
        with self._lock:
            if self._failures:
                log.warning("%s answers again", self.url)
            self._failures, self.given_up = 0, False

    def failed(self, error: UnavailableError, asked_at: float) -> None:
        """A request of that time has failed."""
        with self._lock:
            if asked_at > self._failed_at:  # else it is one of several that failed together
                self._failed(error)

    def _failed(self, error: UnavailableError) -> None:
        now, self.fault = time.monotonic(), str(error)
        if not self._failures:
            self._failing_since = now
            log.warning("%s: %s; trying again for %g s at least", self.url, error, self.patience)
        delay = min(LONGEST_DELAY, FIRST_DELAY * 2 ** min(self._failures, 16)) * random.uniform(0.5, 1.0)
        self._failures, self._failed_at, self._not_before = self._failures + 1, now, now + delay
        self.given_up = now - self._failing_since > self.patience
        if error.lost:
            self._served = None

    def _identify(self) -> Served:
        listed = [entry for entry in self._json("GET", "/v1/models").get("data", ()) if "id" in entry]
        found = next((entry for entry in listed if self.model in (None, entry["id"])), None)
        if found is None:
            names = ", ".join(entry["id"] for entry in listed) or "none"
            raise DraftError(f"{self.url} serves no model {self.model} (it has {names}): change texts.writer.model")
        longest = found.get("max_model_len")
        if longest is not None and longest < self.length:
            raise DraftError(
                f"{self.url} takes texts of {longest} tokens, and prompts with their responses may have {self.length}: "
                f"serve it with a longer context (vLLM: --max-model-len {self.length})"
            )
        engine = found.get("owned_by")
        told = self._json("GET", "/server_info" if engine == "sglang" else "/version", missing={})
        facts = {"engine": engine, "version": told.get("version"), "model": found["id"], "dtype": told.get("dtype")}
        return Served(self.url, facts)

    def _json(
        self,
        method: str,
        path: str,
        timeout: tuple[float, float] = (CONNECT, CONNECT),
        body: Mapping[str, Any] | None = None,
        missing: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """A JSON object; `missing` where there is no such page."""
        try:
            reply = self.session.request(method, self.url + path, json=body, timeout=timeout)
            if reply.status_code >= 500 or reply.status_code in (408, 429):
                raise UnavailableError(f"HTTP {reply.status_code} {_start(reply.text)}", lost=False)
            if reply.status_code == 404 and missing is not None:
                return missing
            if not reply.ok:
                raise DraftError(f"{self.url}{path} refuses: HTTP {reply.status_code} {_start(reply.text)}")
            content = reply.json()
        except requests.RequestException as error:  # a body that is cut, or no JSON, is one too
            raise UnavailableError(f"{type(error).__name__}: {_start(str(error))}", lost=True) from error
        if not isinstance(content, dict):
            raise DraftError(f"{self.url}{path} answers with no JSON object: it is no server of OpenAI's interface")
        return content


def _start(text: str) -> str:
    return " ".join(text.split())[:200]


def ask_all(servers: Sequence[Server], jobs: Iterable[Job], concurrency: int) -> Iterator[Reply]:
    """Every job's reply once, as they come; a job whose server fails goes to whoever is free.

    Args:
        concurrency: requests at a time to each server.

    Raises:
        DraftError: a server refuses a request, or all of them have failed for longer than their patience.
    """
    waiting, replies = SimpleQueue[Job](), SimpleQueue[Reply | DraftError]()
    count = 0
    for job in jobs:
        waiting.put(job)
        count += 1
    stop = threading.Event()
    for server in servers:
        for _ in range(min(concurrency, count)):
            # daemons: a request that is under way does not hold up the end of the process
            threading.Thread(target=_work, args=(server, waiting, replies, stop), daemon=True).start()
    try:
        while count:
            try:
                reply = replies.get(timeout=LOOK)
            except Empty:
                if all(server.given_up for server in servers):
                    faults = "; ".join(f"{server.url}: {server.fault}" for server in servers)
                    raise DraftError(
                        f"no server answers ({faults}): start them and run again, texts so far are stored"
                    ) from None
                continue
            if isinstance(reply, DraftError):
                raise reply
            count -= 1
            yield reply
    finally:
        stop.set()


def _work(
    server: Server, waiting: SimpleQueue[Job], replies: SimpleQueue[Reply | DraftError], stop: threading.Event
) -> None:
    try:
        while (served := server.ready(stop)) is not None:
            try:
                index, request = waiting.get(timeout=LOOK)
            except Empty:
                continue  # another server's may come back
            asked_at = time.monotonic()
            try:
                answer = server.ask(request, served)
            except UnavailableError as error:
                waiting.put((index, request))
                server.failed(error, asked_at)
            else:
                replies.put((index, answer, served))
                server.answered()  # may wait while another thread waits for the server
    except DraftError as error:
        replies.put(error)
