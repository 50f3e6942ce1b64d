"""The terminal: progress bars for long work and little else, and the signals by which a run is stopped."""

import logging
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from rich import get_console
from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TimeRemainingColumn


@contextmanager
def progress(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar; yields the function that advances it by a number of items."""
    columns = (SpinnerColumn(), *Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=get_console(), transient=True) as bar:
        task = bar.add_task(title, total=total)
        yield lambda finished: bar.advance(task, finished)


def quiet() -> None:
    """Silences log lines and warnings of other packages that would bury the progress bars; our own warnings stay."""
    for name in ("lightning.pytorch", "lightning.fabric", "mlflow", "alembic", "transformers", "matplotlib"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for words in (
        ".*does not have many workers.*",
        ".*treespec, LeafSpec.*",
        ".*log_every_n_steps.*",
        ".*in eval mode at the start.*",
        ".*recommended to use .self.log.*sync_dist=True.*",  # values are summed over processes before they are logged
        ".*ended before the epoch ended.*",  # the data start where it stopped
        ".*exists and is not empty.*",  # a run that goes on in its own folder
        ".*FSDP2-wrapped module .* returned a view tensor.*",  # nothing is modified in place
    ):
        warnings.filterwarnings("ignore", words)


class Terminated(SystemExit):
    """The process was told to end (SIGTERM)."""

    def __init__(self) -> None:
        super().__init__(128 + signal.SIGTERM)


@contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM raises `Terminated` inside, wherever the program is; a second one changes nothing."""

    def stop(number: int, frame: Any) -> None:
        signal.signal(number, signal.SIG_IGN)
        raise Terminated

    if threading.current_thread() is not threading.main_thread():  # others cannot set handlers
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Deferred:
    """Lets signals wait while something must not be cut in two."""

    def __init__(self) -> None:
        self._held = False
        self._waiting: list[Callable[[], object]] = []

    def watch(self) -> None:
        """Puts itself before the handlers that are there now; whoever restores handlers removes it."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            handler = signal.getsignal(number)
            if callable(handler):
                signal.signal(number, partial(self._meet, handler))

    def hold(self) -> None:
        self._held = True

    def release(self) -> None:
        """What came in the meantime happens now."""
        self._held = False
        while self._waiting:
            self._waiting.pop(0)()

    def drop(self) -> None:
        """As `release`, when the run has stopped already."""
        self._held, self._waiting = False, []

    def _meet(self, handler: Callable[..., object], number: int, frame: Any) -> None:
        if self._held:
            self._waiting.append(partial(handler, number, frame))
        else:
            handler(number, frame)


signals = Deferred()
"""of this process"""
