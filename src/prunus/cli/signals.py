"""How a command ends when it is asked to: by Ctrl-C, a closed terminal or a time limit. No torch."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Timer
from types import FrameType

_ENDING = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
_AGAIN_S = 0.1


class Ended(KeyboardInterrupt):
    """Asked to end by another signal than Ctrl-C's, of that ``number``."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


@contextmanager
def ending_tidily() -> Iterator[None]:
    """End as by Ctrl-C where a closed terminal or a time limit asks to: folders of workers are removed.

    A signal that is ignored, as by ``nohup``, or handled already stays so.

    Raises:
        Ended: in the main thread, on such a signal.
    """

    def end(number: int, _: FrameType | None) -> None:
        raise Ended(number)

    mine = [number for number in _ENDING if signal.getsignal(number) == signal.SIG_DFL]
    try:
        for number in mine:
            signal.signal(number, end)
    except ValueError:  # handlers are the main thread's
        mine = []
    try:
        with _asking_again():
            yield
    finally:
        for number in mine:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def _asking_again() -> Iterator[None]:
    """Send a signal again whose exception was lost.

    A handler raises in whatever the main thread runs at that moment. In a finalizer, or where C code
    asks Python something and takes no error for an answer (an instance check by pydantic), the
    exception is told as ignored, and the run would go on to its end.
    """
    before = sys.unraisablehook
    waiting: list[Timer] = []

    def ignored(lost: "sys.UnraisableHookArgs") -> None:
        if not isinstance(lost.exc_value, KeyboardInterrupt):
            before(lost)
            return
        number = lost.exc_value.number if isinstance(lost.exc_value, Ended) else signal.SIGINT
        # Later, and from another thread: here and now it would be lost once more.
        again = Timer(_AGAIN_S, os.kill, (os.getpid(), number))
        again.daemon = True
        again.start()
        waiting.append(again)

    sys.unraisablehook = ignored
    try:
        yield
    finally:
        sys.unraisablehook = before
        for again in waiting:
            again.cancel()
