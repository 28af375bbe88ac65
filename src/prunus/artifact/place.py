"""Folders that are written beside their place, and put there whole."""

import os
import shutil
from pathlib import Path

from prunus.errors import InputError, first_line


class UnwritableError(InputError):
    """The system refuses to write somewhere; its cause says why."""


def replace_folder(part: Path, folder: Path) -> None:
    """Put ``part`` where ``folder`` is; the old one comes back where that fails.

    Args:
        part: In the same folder as ``folder``, written to its end.
        folder: May be there, or not.

    Raises:
        OSError: The system refuses.
    """
    if not folder.exists() or not any(folder.iterdir()):
        part.replace(folder)
        return
    old = folder.with_name(f".{folder.name}.old-{os.getpid()}")
    shutil.rmtree(old, ignore_errors=True)  # of a killed process with the same number
    folder.rename(old)
    try:
        part.rename(folder)
    except OSError:
        old.rename(folder)
        raise
    shutil.rmtree(old)


def unwritable(place: Path, error: BaseException, argument: str = "folder") -> UnwritableError:
    """What to say where the system refuses; libraries tell what it said in their own words.

    Args:
        place: As the user named it.
        error: Of the system, of a library, or told of a place that the user did not name.
        argument: That the place was given as.
    """
    while isinstance(error, UnwritableError) and error.__cause__ is not None:
        error = error.__cause__
    said = error.strerror if isinstance(error, OSError) else None
    return UnwritableError(
        f"{argument}={str(place)!r} cannot be written: {said or first_line(error)}"
    )
