"""Folders that are written beside their place, and put there whole."""

import os
import shutil
from pathlib import Path

from prunus.errors import InputError, first_line


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


def unwritable(folder: Path, error: Exception) -> InputError:
    """What to say where the system refuses; libraries tell what it said in their own words."""
    said = error.strerror if isinstance(error, OSError) else None
    return InputError(f"folder={str(folder)!r} cannot be written: {said or first_line(error)}")
