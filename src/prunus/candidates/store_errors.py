"""What SQLite says of a store's file, as one line with a remedy."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prunus.errors import InputError, PrunusError, StorageError

_DAMAGE = {
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_FORMAT,
    sqlite3.SQLITE_ERROR,  # a table that is not there: the statements here are right
    None,  # text that is not UTF-8
}
_CLOSED_DOORS = {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM}


def damaged(path: Path, detail: str) -> InputError:
    """What to say of a store in which something is not as it was written."""
    return InputError(
        f"'{path}' is damaged ({detail}): move it away and start again; the scores in it are lost, "
        "as far as sqlite3's '.recover' does not bring them back"
    )


@contextmanager
def explained(path: Path, safe: int) -> Iterator[None]:
    """Turn what SQLite says into one line with a remedy; wrong use of the store stays as it is.

    Args:
        path: Of the store.
        safe: Number of results on the disk.
    """
    try:
        yield
    except sqlite3.ProgrammingError:
        raise
    except sqlite3.Error as error:
        raise _explanation(path, safe, error) from error
    except UnicodeDecodeError as error:  # of a message that quotes what is in the file
        raise damaged(path, "unreadable text") from error


def _explanation(path: Path, safe: int, error: sqlite3.Error) -> PrunusError:
    code: int | None = getattr(error, "sqlite_errorcode", None)
    code = code if code is None else code & 0xFF  # the upper bits refine it
    if code in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
        return InputError(
            f"'{path}' is in use by another process: wait for it, or name another folder"
        )
    if code in _CLOSED_DOORS:
        return InputError(
            f"'{path}' cannot be written ({error}): let this user write the file and its folder, "
            "or name another folder"
        )
    if code in _DAMAGE:
        return damaged(path, str(error))
    if code == sqlite3.SQLITE_FULL:
        return StorageError(
            f"'{path}': disk is full: free some space and resume; {safe} results are safe"
        )
    return StorageError(
        f"'{path}': {error}: check the disk and its quota, then resume; {safe} results are safe"
    )
