"""The thread that sends what a run logs. The run itself never waits for MLflow, and no error there reaches it."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from draftopd.tracking.entries import Entry, group, refused, save
from draftopd.tracking.store import reason

log = logging.getLogger(__name__)

PAUSE, LONGEST = 1.0, 15.0  # seconds from one attempt to the next: doubled while the store does not take anything
PATIENCE = 15.0  # seconds without any progress after which the end of a run waits no longer


class Sender:
    """Sends entries in their order, and again until they are taken. Meanwhile they wait in memory and in a file.

    Args:
        send: takes entries of one kind to the store, or raises.
        file: where they wait while the store does not take them.
        store: what the store is called in messages.
    """

    def __init__(self, send: Callable[[Sequence[Entry]], None], file: Path, store: str) -> None:
        self.file, self.store = file, store
        self.refused: dict[Entry, str] = {}
        """what the store will never take, and why"""
        self.failure = ""
        """of the last attempt; empty where it succeeded"""
        self.saved = True
        """Does the file hold what waits?"""
        self._send = send
        self._entries: list[Entry] = []
        self._changed = threading.Condition()  # of what follows
        self._saving = threading.Lock()
        self._closing = threading.Event()
        self._given_up = False
        self._moved = time.monotonic()
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)

    @property
    def waiting(self) -> list[Entry]:
        with self._changed:
            return list(self._entries)

    def start(self) -> None:
        self._thread.start()

    def put(self, entries: Sequence[Entry]) -> None:
        with self._changed:
            self._entries += entries
            self._changed.notify()

    def close(self) -> None:
        """Waits until everything is sent, but no longer than `PATIENCE` seconds in which nothing is; saves the rest."""
        self._moved = time.monotonic()
        with self._changed:
            self._closing.set()
            self._changed.notify()
        try:
            while self._thread.is_alive() and time.monotonic() - self._moved < PATIENCE:
                self._thread.join(0.1)
        finally:  # Ctrl-C, too
            self._given_up = True
            if self.waiting:
                self._save()

    def _work(self) -> None:
        pause = PAUSE
        while not self._given_up:
            with self._changed:
                self._changed.wait_for(lambda: self._entries or self._closing.is_set())
            failure = self._attempt()
            if failure is None:
                self._note("")
                pause = PAUSE
                if self._closing.is_set() and not self.waiting:
                    return
            else:
                self._save()
                self._note(reason(failure))
                if self._closing.is_set():
                    time.sleep(PAUSE)
                else:
                    self._closing.wait(pause)
                pause = min(2 * pause, LONGEST)

    def _attempt(self) -> Exception | None:
        """Tries everything that waits; the first failure. Files may have their own store: its faults stop no values."""
        first, at = None, 0
        while not self._given_up:
            with self._changed:
                entries = group(self._entries[at:])
            if not entries:
                break
            failure = self._try(entries)
            if failure is None:
                with self._changed:
                    del self._entries[at : at + len(entries)]
                self._moved = time.monotonic()
                continue
            first = first or failure
            if entries[0].kind != "artifact":
                break
            at += 1
        return first

    def _try(self, entries: Sequence[Entry]) -> Exception | None:
        """None: they are done with. Of several that are refused together, each is tried alone."""
        try:
            self._send(entries)
        except Exception as error:
            if not refused(error):
                return error
            if len(entries) > 1:
                return next((failure for entry in entries if (failure := self._try([entry])) is not None), None)
            self.refused[entries[0]] = reason(error)
            log.warning(f"{self.store} refuses {entries[0].name}: {reason(error)}")
        return None

    def _note(self, failure: str) -> None:
        """Says when sending stops and when it works again, once each."""
        if failure and not self.failure and not self._closing.is_set():
            place = self.file if self.saved else "memory"
            log.warning(f"{self.store} fails ({failure}): the run goes on, and what it logs waits in {place}")
        elif self.failure and not failure:
            log.warning(f"{self.store} is back, and has what waited")
            self.file.unlink(missing_ok=True)
        self.failure = failure

    def _save(self) -> None:
        with self._saving:
            try:
                save(self.waiting, self.file)
                self.saved = True
            except OSError:
                self.saved = False  # it waits in memory
