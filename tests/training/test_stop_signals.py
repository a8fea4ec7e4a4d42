"""Signals and the death of the launcher ask for an end, once each."""

import os
import signal
import threading
import time

import pytest

from training.world import StopSignals


class Ended(Exception):
    pass


@pytest.fixture
def stop(monkeypatch):
    def end(code: int) -> None:
        raise Ended(code)

    handlers = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    monkeypatch.setattr(os, "_exit", end)
    yield StopSignals()
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_a_second_signal_ends_at_once(stop):
    assert stop.received is None
    signal.raise_signal(signal.SIGUSR1)
    assert stop.received == "SIGUSR1"
    with pytest.raises(Ended, match=str(128 + signal.SIGTERM)):
        signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_that_comes_by_two_ways_is_one(stop, monkeypatch, number):
    """From the launcher, and to the process itself."""
    now = time.monotonic()
    for seconds in (0, 0.01, 4.9):
        monkeypatch.setattr(time, "monotonic", lambda at=now + seconds: at)
        signal.raise_signal(number)
        assert stop.received == number.name
    monkeypatch.setattr(time, "monotonic", lambda: now + 5.1)
    with pytest.raises(Ended, match=str(128 + number)):
        signal.raise_signal(number)


@pytest.mark.parametrize("before", [None, "SIGUSR1"])
@pytest.mark.parametrize("heard", [True, False])
def test_a_rank_ends_with_its_launcher(stop, monkeypatch, before, heard):
    parents, slept = iter([7, 7, 1]), []
    monkeypatch.setattr(os, "getppid", lambda: next(parents))
    monkeypatch.setattr(time, "sleep", slept.append)
    stop.received, stop.heard = before, heard
    with pytest.raises(Ended, match="1"):
        stop._watch(7)
    assert stop.received == (before or "SIGTERM")
    assert slept == [0.5, 0.5, *[stop.ORPHAN_S] * heard]


def test_only_what_torchrun_started_has_a_launcher(stop, monkeypatch):
    watched = threading.Event()
    monkeypatch.setattr(StopSignals, "_watch", lambda self, launcher: watched.set())
    StopSignals()
    assert not watched.wait(0.1)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    StopSignals()
    assert watched.wait(10)
