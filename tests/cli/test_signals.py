"""Signals that ask to end: heard at once, or again where code swallowed what the handler raised."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from prunus.cli.signals import Ended, ending_tidily

SIGNALS = [signal.SIGTERM, signal.SIGHUP]


@pytest.fixture(autouse=True)
def _unhandled() -> Iterator[None]:
    """As in a new process: libraries of other tests handle signals, a background job ignores some."""
    before = {number: signal.getsignal(number) for number in (*SIGNALS, signal.SIGINT)}
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class _AsksWhileItGoes:
    """Gets a signal in its finalizer, where Python ignores what a handler raises."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        os.kill(os.getpid(), self.number)
        for _ in range(1000):  # the handler runs between two steps
            pass


class _RaisesWhileItGoes:
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __del__(self) -> None:
        raise self.error


def _wait_s(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.01)


def _is_asked(number: int) -> None:
    os.kill(os.getpid(), number)
    _wait_s(5)


def _loses_what_it_is_asked(number: int) -> None:
    _AsksWhileItGoes(number)
    _wait_s(20)  # reached: the finalizer kept the exception
    pytest.fail("the signal was lost")


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_what_runs(number: signal.Signals) -> None:
    with pytest.raises(Ended) as told, ending_tidily():
        _is_asked(number)
    assert told.value.number == number
    assert signal.getsignal(number) == signal.SIG_DFL


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_whose_exception_was_lost_comes_again(
    number: signal.Signals, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(Ended) as told, ending_tidily():
        _loses_what_it_is_asked(number)
    assert told.value.number == number
    assert "ignored" not in capfd.readouterr().err


def test_a_lost_ctrl_c_comes_again() -> None:
    with pytest.raises(KeyboardInterrupt), ending_tidily():
        _loses_what_it_is_asked(signal.SIGINT)


def test_what_ended_meanwhile_gets_no_signal() -> None:
    heard: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))
    hook = sys.unraisablehook
    with ending_tidily():
        _RaisesWhileItGoes(Ended(signal.SIGTERM))
    assert sys.unraisablehook is hook
    _wait_s(0.5)
    assert not heard
    assert not [one for one in threading.enumerate() if isinstance(one, threading.Timer)]


def test_other_exceptions_that_are_ignored_are_told_as_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[type[BaseException]] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda lost: told.append(lost.exc_type))
    with ending_tidily():
        _RaisesWhileItGoes(ValueError("of a finalizer"))
    assert told == [ValueError]
