"""A damaged file is refused by name with the remedy, and never read as other scores."""

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prunus.candidates.store import STORE_FILE, Store
from prunus.candidates.task import Result
from prunus.errors import InputError
from tests.candidates.stored import IDENTITY, bits, fill, make, require_holds

Harm = Callable[[Path], object]


def overwrite(path: Path, offset: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)


def execute(path: Path, *statements: str) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    for statement in statements:
        connection.execute(statement)
    connection.close()


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def replace_by_other(path: Path) -> None:
    path.unlink()
    execute(path, "PRAGMA journal_mode = WAL", "CREATE TABLE theirs (a)")


def lose_row(path: Path, position: int) -> None:
    """In the table alone, not in the index: as a page of an older time would."""
    connection = sqlite3.connect(path, isolation_level=None)
    entry = connection.execute("SELECT * FROM sqlite_master WHERE name = 'tasks'").fetchone()
    connection.close()
    write = "PRAGMA writable_schema = ON"
    execute(path, write, "DELETE FROM sqlite_master WHERE name = 'tasks'")
    execute(path, f"DELETE FROM results WHERE position = {position}")
    execute(path, write, f"INSERT INTO sqlite_master VALUES {entry!r}")


def write_no_text(path: Path) -> None:
    """What SQLite says of it quotes it."""
    overwrite(path, path.read_bytes().index(b"CREATE TABLE results"), b"CREATE \xca\xca\xca ")


DAMAGED = "is damaged (.*): move it away and start again; the scores in it are lost"
HARMS: dict[str, tuple[Harm, str]] = {
    "magic": (lambda p: overwrite(p, 0, b"x"), DAMAGED),
    "header": (lambda p: overwrite(p, 0, bytes(range(100))), DAMAGED),
    "page size": (lambda p: overwrite(p, 16, b"\x00\x07"), DAMAGED),
    "schema": (lambda p: overwrite(p, 100, b"\xff" * 200), DAMAGED),
    "half the pages": (lambda p: os.truncate(p, p.stat().st_size // 2), DAMAGED),
    "last byte": (lambda p: os.truncate(p, p.stat().st_size - 1), DAMAGED),
    "first bytes only": (lambda p: os.truncate(p, 50), DAMAGED),
    "short text": (lambda p: p.write_text("hello"), DAMAGED),
    "long text": (lambda p: p.write_text("key,start,stop\n" * 5000), DAMAGED),
    "zeros": (lambda p: p.write_bytes(bytes(8192)), DAMAGED),
    "no table": (lambda p: execute(p, "DROP TABLE results"), DAMAGED),
    "first row": (lambda p: execute(p, "DELETE FROM results WHERE position = 1"), DAMAGED),
    "row": (lambda p: execute(p, "DELETE FROM results WHERE position = 4"), DAMAGED),
    "row of the table": (lambda p: lose_row(p, 4), DAMAGED),
    "last row of the table": (lambda p: lose_row(p, 10), DAMAGED),
    "no text in the schema": (write_no_text, DAMAGED),
    "value": (lambda p: execute(p, "UPDATE results SET stop = stop + 1 WHERE start = 2"), DAMAGED),
    "type": (lambda p: execute(p, "UPDATE results SET kl = 'text' WHERE start = 2"), DAMAGED),
    "null": (lambda p: execute(p, "UPDATE results SET loss = NULL WHERE start = 2"), DAMAGED),
    "no text": (
        lambda p: execute(p, "UPDATE results SET key = CAST(x'ff' AS TEXT) WHERE start = 2"),
        DAMAGED,
    ),
    "setting": (lambda p: execute(p, "UPDATE settings SET value = 'bf17'"), DAMAGED),
    "folder": (replace_by_folder, "is a folder: move it away, a file of this name is needed"),
    "other": (replace_by_other, "is a database of another program: name another folder, or move"),
    "newer": (
        lambda p: execute(p, "PRAGMA user_version = 9"),
        "has version 9, written by a newer Prunus (this one reads 1): update Prunus, or name",
    ),
}


def read_all(path: Path) -> Iterator[Result]:
    with Store.open(path, IDENTITY) as store:
        store.setting("precision")
        yield from store.results()


@pytest.mark.parametrize("name", HARMS)
def test_a_damaged_file_is_refused_by_name_with_the_remedy(store_path: Path, name: str) -> None:
    results = fill(store_path, 10)
    with Store.open(store_path, IDENTITY) as store:
        store.set_setting("precision", "bf16")
    harm, message = HARMS[name]
    harm(store_path)
    before = store_path.read_bytes() if store_path.is_file() else b""
    with pytest.raises(InputError) as raised:
        list(read_all(store_path))
    start, _, end = message.partition(".*")
    assert str(raised.value).startswith(f"'{store_path}' {start}")
    assert end in str(raised.value)
    assert "\n" not in str(raised.value)
    if before:
        assert store_path.read_bytes() == before  # what can be recovered is not touched
        store_path.unlink()
        assert [bits(r) for r in fill(store_path, 10)] == [bits(r) for r in results]


def test_results_before_a_damaged_one_are_read(store_path: Path) -> None:
    results = fill(store_path, 10)
    blob = results[4].kl.tobytes()[4:20]
    offset = store_path.read_bytes().index(blob)
    overwrite(store_path, offset, bytes([blob[0] ^ 1]))
    with Store.open(store_path, IDENTITY) as store:
        read: list[tuple[object, ...]] = []
        with pytest.raises(InputError, match="result 5 of 10: its digest does not match"):
            read.extend(bits(result) for result in store.results())
        assert read == [bits(result) for result in results[:4]]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, list[tuple[object, ...]]]:
    path = tmp_path_factory.mktemp("whole") / STORE_FILE
    results = fill(path, 30)
    return path.read_bytes(), [bits(result) for result in results]


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.floats(0, 1, exclude_max=True), content=st.binary(min_size=1, max_size=40))
def test_overwritten_bytes_never_change_a_result(
    store_path: Path,
    whole: tuple[bytes, list[tuple[object, ...]]],
    where: float,
    content: bytes,
) -> None:
    file, expected = whole
    store_path.write_bytes(file)
    # Half of them at the start of a page, where the structure is.
    offset = int(where * len(file))
    overwrite(store_path, offset if len(content) % 2 else offset // 4096 * 4096, content)
    with suppress(InputError):
        assert [bits(result) for result in read_all(store_path)] == expected


def test_a_file_of_no_bytes_is_new(store_path: Path) -> None:
    """A process killed while it makes the store leaves that."""
    store_path.touch()
    require_holds(store_path, [])
    require_holds(store_path, fill(store_path, 2))


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'.*/absent' is no folder: make it first"):
        Store.open(tmp_path / "absent" / STORE_FILE, IDENTITY)


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere"
)
@pytest.mark.parametrize("existing", [False, True], ids=["new", "existing"])
@pytest.mark.parametrize("what", ["file", "folder"])
def test_a_place_that_cannot_be_written_is_named(
    store_path: Path, existing: bool, what: str
) -> None:
    results = fill(store_path, 1) if existing or what == "file" else []
    place = store_path if what == "file" else store_path.parent
    mode = place.stat().st_mode
    place.chmod(0o555)
    try:
        with pytest.raises(InputError) as raised, Store.open(store_path, IDENTITY) as store:
            store.add(make(1))
    finally:
        place.chmod(mode)
    assert str(raised.value).startswith(f"'{store_path}' cannot be written (")
    assert "let this user write the file and its folder, or name another folder" in str(
        raised.value
    )
    if results:
        require_holds(store_path, results)
