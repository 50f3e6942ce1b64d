"""What is said of a run where no terminal is, and signals: what stops a run, and what waits until it may."""

import re
import signal
import sys
import time

import pytest

from draftopd import console
from draftopd.console import Deferred, Terminated, duration, greet, lines, progress, say, stage, status, terminable


def test_a_run_says_where_it_is_after_a_while_of_silence(monkeypatch, capsys):
    monkeypatch.setattr(console, "SILENCE", 0.0)
    with lines(), stage("sft (1 of 2)"):
        status.left = lambda: 600.0
        with progress("rollouts", 8) as advance:
            advance(3)
            end = time.monotonic() + 20
            while "3 of 8" not in (said := said_so_far(capsys)) and time.monotonic() < end:
                time.sleep(0.05)
    assert "sft (1 of 2), rollouts 3 of 8, about 10 min left in all" in said.splitlines()
    assert not status.stage
    say("outside of a command nothing is said")
    assert not capsys.readouterr().out


def said_so_far(capsys, said: list[str] = []) -> str:  # noqa: B006
    """Without the time of each line."""
    said.append(capsys.readouterr().out)
    return re.sub(r"^\d\d:\d\d:\d\d ", "", "".join(said), flags=re.MULTILINE)


@pytest.mark.parametrize(
    ("words", "rank", "said"),
    [(["seed=1", "-m"], "0", True), (["--dry-run"], "0", True), (["--cfg", "job"], "0", False), ([], "1", False)],
)
def test_a_command_says_at_once_that_it_starts(monkeypatch, capsys, words, rank, said):
    monkeypatch.setattr(sys, "argv", ["fit.py", *words])
    monkeypatch.setenv("LOCAL_RANK", rank)
    greet("fit")
    assert bool(capsys.readouterr().out) is said


def test_durations_have_the_unit_that_fits():
    assert [duration(s) for s in (40, 720, 12600)] == ["40 s", "12 min", "3.5 h"]


@pytest.fixture
def seen():
    """Signals that their handler has met."""
    met: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: met.append(number))
    yield met
    signal.signal(signal.SIGUSR1, before)


def test_a_signal_waits_while_it_is_held_and_then_happens(seen):
    deferred = Deferred()
    deferred.watch()
    signal.raise_signal(signal.SIGUSR1)
    assert len(seen) == 1
    deferred.hold()
    signal.raise_signal(signal.SIGUSR1)
    assert len(seen) == 1
    deferred.release()
    assert len(seen) == 2
    signal.raise_signal(signal.SIGUSR1)
    assert len(seen) == 3


def test_what_waits_is_dropped_when_the_run_has_stopped(seen):
    deferred = Deferred()
    deferred.watch()
    deferred.hold()
    signal.raise_signal(signal.SIGUSR1)
    deferred.drop()
    deferred.release()
    assert not seen


def test_sigterm_ends_the_program_once_and_only_inside():
    before = signal.getsignal(signal.SIGTERM)
    met = []
    with pytest.raises(Terminated) as stop, terminable():  # noqa: PT012
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGTERM)  # while it saves
            met.append("saved")
    assert (stop.value.code, met) == (143, ["saved"])
    assert signal.getsignal(signal.SIGTERM) == before
