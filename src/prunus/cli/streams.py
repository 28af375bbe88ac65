"""Standard streams that take no more: a full disk, a reader that has gone. No torch."""

import os
from contextlib import suppress
from typing import TextIO


def silence(stream: TextIO) -> None:
    """Let go what a stream did not take: Python would try once more at its end, and fail again."""
    with suppress(OSError, ValueError):  # a stream that is no file of the system
        number = stream.fileno()
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, number)
        os.close(nowhere)
