"""The disk that a run's folder lies on: whether it can be written, is in use, is full."""

import errno
import importlib
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType

from safetensors import SafetensorError

from prunus.errors import InputError, StorageError, TemporaryFolderError

LOCK_FILE = ".lock"
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}
_RUST_ERROR = re.compile(r"os error (\d+)")


def require_writable(path: Path) -> None:
    """Make the folder and a file in it, and take both away: nothing else tells for sure.

    Raises:
        InputError: It is a file, or cannot be written.
    """
    made: list[Path] = []
    try:
        if path.exists() and not path.is_dir():
            raise InputError(f"out='{path}' is a file; name a new folder")
        for folder in reversed([path, *path.parents]):
            if not folder.is_dir():
                folder.mkdir()
                made.append(folder)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise InputError(
            f"out='{path}' cannot be written: {error.strerror or error}; name a folder that can"
        ) from error
    finally:
        for folder in reversed(made):
            with suppress(OSError):  # another process may have begun there
                folder.rmdir()


def _lock_module() -> ModuleType | None:
    """``fcntl``, where the system has it; elsewhere two processes are not kept apart."""
    try:
        return importlib.import_module("fcntl")
    except ImportError:
        return None


@contextmanager
def full_disk_told(path: Path) -> Iterator[None]:
    """One line where the disk takes no more: every file of a run is written in one step or redone.

    Raises:
        StorageError: It is full or fails.
    """
    try:
        yield
    except Exception as error:
        number = _disk_error(error)
        if number is None:
            raise
        raise StorageError(
            f"out='{path}': {os.strerror(number)}: free some space and resume (--resume); what the "
            "folder says is done is safe"
        ) from error


def _disk_error(error: BaseException | None) -> int | None:
    """The system's number for what a disk has said, however deep it lies; None for all else.

    The folder for temporary files may be on another disk, and its own message says so.
    """
    while error is not None and not isinstance(error, TemporaryFolderError):
        number = error.errno if isinstance(error, OSError) else None
        if isinstance(error, SafetensorError):  # names it in its text alone
            found = _RUST_ERROR.search(str(error))
            number = int(found.group(1)) if found else None
        if number in _DISK:
            return number
        # torch says "unexpected pos" while it handles what the system said.
        error = error.__cause__ or error.__context__
    return None


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the folder's lock. The system gives it back when the process ends, however it ends.

    Raises:
        InputError: Another process holds it, or the folder cannot be written.
    """
    fcntl = _lock_module()
    try:
        # Unbuffered: what a full disk has refused is not written once more when the file is closed.
        handle = (path / LOCK_FILE).open("a+b", buffering=0)
    except OSError as error:
        raise InputError(f"out='{path}' cannot be written: {error.strerror}") from error
    with handle:
        if fcntl is not None:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                handle.seek(0)
                owner = handle.read().decode(errors="replace").strip() or "unknown"
                raise InputError(
                    f"out='{path}' is in use by process {owner}; wait for it, or name a new folder"
                ) from error
        handle.seek(0)
        handle.truncate()
        handle.write(str(os.getpid()).encode())
        yield
