"""The durable memory of a search: what was scored, in one SQLite file that one process holds.

How it is set up, and why:

- ``locking_mode=EXCLUSIVE``: the lock on the file is held until ``close``. A second process is
  refused, and the system gives the lock back when the process ends, however it ends.
- ``journal_mode=PERSIST``: results are in the main file when ``add`` returns, not in a file beside
  it. A write-ahead log would save about half a millisecond per result, but it holds committed
  results itself: a forked worker that closes its copy of the connection deletes the log of the
  parent, and the results in it are gone with the next kill; a damaged log ends early in silence.
  PERSIST and not DELETE, because such a worker would delete a journal, too.
- ``synchronous=FULL``: with it, a commit is on the disk when it returns, also with PERSIST, where
  the end of a transaction is a write to the journal (synced), not the removal of a file.
- A digest per row, as SQLite does not notice changed bytes within a blob.
"""

import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Self, final

from prunus.candidates.store_errors import damaged, explained
from prunus.candidates.store_rows import COLUMNS, TABLES, decode, digest_of, encode
from prunus.candidates.task import Result
from prunus.changed import told_change
from prunus.errors import InputError, moved_away

STORE_FILE = "candidates.sqlite"

_APPLICATION = 0x5052554E  # "PRUN", in the header of the file
_VERSION = 1  # of the tables, in the header too
_LOCK_SECONDS = 0.2  # two that open a new file at one moment: one of them gets it
_SECONDS = "seconds"  # the one setting that changes: what is no input of the run
_PAGE = 64  # results read at a time: a caller may add while it reads


@final
class Store:
    """Results of tasks, durable when ``add`` returns.

    To be used by the thread and the process that opened it; a forked process may close its copy.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self._path = path
        self._connection = connection
        self._open = True
        self._process = os.getpid()
        self._count = 0

    @classmethod
    def open(cls, path: Path, identity: Mapping[str, str]) -> Self:
        """Make a store, or open it again.

        A file of no bytes is a new store: a process killed while it made one leaves that.

        Args:
            path: File, in a folder that is there.
            identity: All inputs that decide scores, by name.

        Raises:
            InputError: The file is in use, damaged, no store, of a newer version, cannot be written,
                or holds scores of other inputs.
            StorageError: The disk is full.
        """
        path = path.absolute()  # ':memory:' is a file's name here
        _require_file(path)
        with explained(path, 0):
            connection = sqlite3.connect(path, timeout=_LOCK_SECONDS, isolation_level=None)
        store = cls(path, connection)
        try:
            with explained(path, 0):
                store._begin(identity)
        except BaseException:
            connection.close()
            raise
        return store

    def _begin(self, identity: Mapping[str, str]) -> None:
        """Take the lock, and look before anything is written: the file may be someone else's."""
        run = self._connection.execute
        run("PRAGMA locking_mode = EXCLUSIVE")
        run("PRAGMA synchronous = FULL")
        run("BEGIN EXCLUSIVE")
        if self._is_new():
            for table in TABLES:
                run(table)
            self._connection.executemany(
                "INSERT INTO identity (name, value) VALUES (?, ?)", list(identity.items())
            )
            run(f"PRAGMA application_id = {_APPLICATION}")
            run(f"PRAGMA user_version = {_VERSION}")
        else:
            rows = run("SELECT name, value FROM identity ORDER BY position").fetchall()
            _require_same(self._path, dict(rows), identity)
            (self._count,) = run("SELECT coalesce(max(position), 0) FROM results").fetchone()
            # Results lost at the end leave no gap, but their entries in the index.
            (entries,) = run("SELECT count(*) FROM results INDEXED BY tasks").fetchone()
            if entries != self._count:
                raise damaged(self._path, f"{entries} results in the index, {self._count} stored")
        run("COMMIT")
        run("PRAGMA journal_mode = PERSIST")

    def _is_new(self) -> bool:
        """Whether nothing is in the file.

        Raises:
            InputError: What is in it cannot be read by this version.
        """
        run = self._connection.execute
        (application,) = run("PRAGMA application_id").fetchone()
        (version,) = run("PRAGMA user_version").fetchone()
        (tables,) = run("SELECT count(*) FROM sqlite_master").fetchone()
        if (application, version, tables) == (0, 0, 0):
            return True
        if application != _APPLICATION:
            raise InputError(
                f"'{self._path}' is a database of another program: name another folder, or move "
                "the file away"
            )
        if version > _VERSION:
            raise InputError(
                f"'{self._path}' has version {version}, written by a newer Prunus (this one reads "
                f"{_VERSION}): update Prunus, or name another folder"
            )
        return False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __len__(self) -> int:
        """How many results are stored."""
        return self._count

    def add(self, result: Result) -> None:
        """Store a result; on the disk when this returns. The first of a task and range stays.

        Raises:
            StorageError: The disk is full or fails, or the file was moved away; what was stored
                before is safe, and the store can be used once there is space.
            ValueError: The arrays do not have one float32 or bool per image.
        """
        row = encode(result)
        with self._ready() as connection:
            # Without its name the file would go on in memory of the system, and end with the process.
            if not self._path.exists():
                raise moved_away(self._path)
            done = connection.execute(
                f"INSERT INTO results ({COLUMNS}) VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?, ?) "
                "ON CONFLICT (key, start, stop) DO NOTHING",
                row,
            )
            if done.rowcount:
                self._count = done.lastrowid or 0  # position NULL: the next one

    def results(self) -> Iterator[Result]:
        """All that is stored, in order of insertion; without what is added while this is read.

        Raises:
            InputError: A result is damaged or missing.
        """
        last = self._count
        for after in range(0, last, _PAGE):
            until = min(after + _PAGE, last)
            with self._ready() as connection:
                rows = connection.execute(
                    f"SELECT {COLUMNS} FROM results WHERE position > ? AND position <= ? "
                    "ORDER BY position",
                    (after, until),
                ).fetchall()
            positions = [after, *(row[0] for row in rows), until + 1]
            for before, position in pairwise(positions):
                if position != before + 1:
                    raise damaged(self._path, f"result {before + 1} of {last} is missing")
            for row in rows:
                yield self._decode(row)

    def setting(self, name: str) -> str | None:
        """What a trial run picked (precision, layout), an input of the run; None: nothing yet."""
        with self._ready() as connection:
            row = connection.execute(
                "SELECT value, digest FROM settings WHERE name = ?", (name,)
            ).fetchone()
        if row is None:
            return None
        value, digest = row
        if digest_of(name, str(value)) != digest:
            raise damaged(self._path, f"setting {name}: its digest does not match")
        return str(value)

    def set_setting(self, name: str, value: str) -> None:
        """Keep what a trial run picked; on the disk when this returns.

        Raises:
            ValueError: Another value is kept already: scores were made with it.
            StorageError: The disk is full or fails.
        """
        kept = self.setting(name)
        if kept is not None and kept != value:
            raise ValueError(f"setting {name} is '{kept}' in this store; it cannot be '{value}'")
        if kept is None:
            with self._ready() as connection:
                connection.execute(
                    "INSERT INTO settings VALUES (?, ?, ?)", (name, value, digest_of(name, value))
                )

    @property
    def seconds(self) -> float:
        """How long the search took up to the last ``keep_seconds``, in whatever processes.

        Raises:
            InputError: It is damaged.
        """
        kept = self.setting(_SECONDS)
        return 0.0 if kept is None else float(kept)

    def keep_seconds(self, seconds: float) -> None:
        """Keep how long the search took so far, all its processes together.

        Raises:
            StorageError: The disk is full or fails.
        """
        value = repr(float(seconds))
        with self._ready() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO settings VALUES (?, ?, ?)",
                (_SECONDS, value, digest_of(_SECONDS, value)),
            )

    def close(self) -> None:
        """Let the file go. May be called twice."""
        if not self._open:
            return
        self._open = False
        if os.getpid() == self._process:  # else the parent uses the journal
            # Only to leave a single file: all results are in it, so a failure loses nothing.
            with suppress(sqlite3.Error):
                self._connection.execute("PRAGMA locking_mode = NORMAL")
                self._connection.execute("PRAGMA journal_mode = DELETE")
        self._connection.close()

    @contextmanager
    def _ready(self) -> Iterator[sqlite3.Connection]:
        if not self._open:
            raise ValueError(f"the store '{self._path}' is closed")
        if os.getpid() != self._process:
            raise ValueError(f"the store '{self._path}' belongs to the process that opened it")
        with explained(self._path, self._count):
            yield self._connection

    def _decode(self, row: tuple[Any, ...]) -> Result:
        try:
            return decode(row[1:])
        except (TypeError, ValueError) as error:
            raise damaged(self._path, f"result {row[0]} of {self._count}: {error}") from error


def _require_file(path: Path) -> None:
    """Only ``stat``: to open and close the file would give back a lock that this process holds."""
    try:
        if path.is_dir():
            raise InputError(f"'{path}' is a folder: move it away, a file of this name is needed")
        if not path.parent.is_dir():
            raise InputError(f"'{path.parent}' is no folder: make it first")
    except OSError as error:
        raise InputError(f"'{path}' cannot be reached: {error.strerror}") from error


def _require_same(path: Path, saved: Mapping[str, str], asked: Mapping[str, str]) -> None:
    if change := told_change(saved, asked):
        raise InputError(
            f"'{path}' holds scores of another run: {change}; give the same arguments to resume it, or "
            "name another folder"
        )
