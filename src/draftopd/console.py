"""What is seen of a run: bars in a terminal, plain lines elsewhere; and the signals by which a run is stopped.

Nothing heavy is imported here: a command says its first line before all else.
"""

import logging
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from rich import get_console
from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

SILENCE = 55.0  # seconds after which a run says where it is
LOG = "draftopd.lines"
"""logger of the plain lines: conf/fit.yaml sends it into the run's log"""
RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")  # by which launchers number processes
ASIDE = ("-m", "--multirun", "--dry-run", "-cd", "--config-dir", "-cn", "--config-name", "-cp", "--config-path")
"""flags of commands that do something; the others show something, which may be read by programs"""


@dataclass
class Task:
    """Work on so many items."""

    title: str
    total: int
    done: int = 0


@dataclass
class Status:
    """What this process is doing. Commands set it; in notebooks it stays empty and no line is said."""

    speaks: bool = False
    stage: str = ""
    """and which of how many"""
    place: Callable[[], str] = str
    """the epoch, in words"""
    share: Callable[[], float] = float
    """of the stage's training that is done, 0..1, since `began`"""
    left: Callable[[], float | None] = lambda: None
    """seconds of the whole run; None = not known"""
    began: float = 0.0
    said: float = 0.0
    tasks: list[Task] = field(default_factory=list)

    @property
    def where(self) -> str:
        return ", ".join(filter(None, (self.stage, self.place())))

    @property
    def time_left(self) -> str:
        left = self.left()
        return "" if left is None else f"about {duration(left)} left in all"

    @property
    def line(self) -> str:
        tasks = [f"{task.title} {task.done} of {task.total}" for task in self.tasks[-1:]]
        return ", ".join(filter(None, (self.where, *tasks, self.time_left)))


status = Status()
"""of this process"""


def duration(seconds: float) -> str:
    """In words: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def greet(command: str) -> None:
    """Says at once that a command has started, before it imports what takes seconds; nothing where it only shows."""
    shows = any(word.startswith("-") and word not in ASIDE for word in sys.argv[1:])
    if not shows and all(os.environ.get(name, "0") == "0" for name in RANKS):
        print(f"{time.strftime('%H:%M:%S')} draftopd {command}: starting", flush=True)


@contextmanager
def lines(speaks: bool = True) -> Iterator[None]:
    """Inside, a run says where it is at least once a minute."""
    stop = threading.Event()
    vars(status).update(vars(Status(speaks=speaks, said=time.monotonic())))

    def beat() -> None:
        while not stop.wait(1.0):
            if time.monotonic() - status.said > SILENCE:
                say(status.line)

    thread = threading.Thread(target=beat, name="lines", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        vars(status).update(vars(Status()))


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Inside, bars and lines name this stage; what they knew of it is forgotten after it."""
    status.stage = name
    try:
        yield
    finally:
        status.stage, status.place, status.share = "", str, float


def say(text: str) -> None:
    """A line for the run's log, and for the output where that is no terminal."""
    if not status.speaks:
        return
    status.said = time.monotonic()
    logging.getLogger(LOG).info(text)
    if not get_console().is_interactive:
        print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


@contextmanager
def progress(title: str, total: int, said: bool = True) -> Iterator[Callable[[int], None]]:
    """A progress bar, or a line where there is no terminal; yields the function that advances it by some items.

    Args:
        said: nothing else says that the work begins, or how it has ended.
    """
    task = Task(title, total)
    if said:
        say(", ".join(filter(None, (status.where, f"{title}: {total}"))))
    status.tasks.append(task)
    columns = (SpinnerColumn(), *Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    left, hidden = TextColumn("{task.fields[run].time_left}"), status.speaks and not get_console().is_interactive
    try:
        with Progress(*columns, left, console=get_console(), transient=True, disable=hidden) as bar:
            shown = bar.add_task(", ".join(filter(None, (status.where, title))), total=total, run=status)

            def advance(finished: int) -> None:
                task.done += finished
                bar.advance(shown, finished)

            yield advance
    finally:
        status.tasks.remove(task)


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
