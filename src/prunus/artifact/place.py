"""Folders that are written beside their place, and put there whole."""

import os
import shutil
from pathlib import Path


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
