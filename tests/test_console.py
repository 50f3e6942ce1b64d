"""Signals: what stops a run, and what waits until it may."""

import signal

import pytest

from draftopd.console import Deferred, Terminated, terminable


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
