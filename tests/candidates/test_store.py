"""What was stored stays: through kills, a full disk and damage; and one process has it at a time."""

import importlib
import itertools
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prunus.candidates.store import STORE_FILE, Store
from prunus.candidates.task import Result
from prunus.errors import InputError, StorageError

ROOT = Path(__file__).parents[2]
IDENTITY = {"weights": "a" * 64, "images": "b" * 64, "seed": "0"}
unix = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kill -9 is of POSIX systems")


def make(index: int) -> Result:
    """Any bits at all: NaNs with a payload and infinities too; up to a few pages of the file."""
    generator = np.random.default_rng(index)
    images = int(generator.integers(1, 400))
    return Result(
        key=f"{index:064x}",
        start=index,
        stop=index + images,
        kl=generator.integers(0, 2**32, images, np.uint32).view(np.float32),
        loss=generator.integers(0, 2**32, images, np.uint32).view(np.float32),
        correct=generator.integers(0, 2, images).astype(bool),
        statistics=generator.bytes(int(generator.integers(0, 20_000))),
        seconds=float(generator.random()),
    )


def bits(result: Result) -> tuple[object, ...]:
    """All of a result, in a form where equal means equal bits."""
    arrays = [(x.dtype.str, x.shape, x.tobytes()) for x in (result.kl, result.loss, result.correct)]
    seconds = float(result.seconds).hex()
    return result.key, result.start, result.stop, *arrays, result.statistics, seconds


def fill(path: Path, count: int) -> list[Result]:
    results = [make(index) for index in range(count)]
    with Store.open(path, IDENTITY) as store:
        for result in results:
            store.add(result)
    return results


def require_holds(path: Path, results: list[Result]) -> None:
    with Store.open(path, IDENTITY) as store:
        assert [bits(r) for r in store.results()] == [bits(r) for r in results]
        assert len(store) == len(results)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / STORE_FILE


# What comes back


def test_results_come_back_bit_by_bit_in_order_of_insertion(path: Path) -> None:
    results = [make(index) for index in random.Random(0).sample(range(1000), 150)]
    with Store.open(path, IDENTITY) as store:
        for result in results:
            store.add(result)
        assert [bits(r) for r in store.results()] == [bits(r) for r in results]
    require_holds(path, results)
    assert [entry.name for entry in path.parent.iterdir()] == [STORE_FILE]


def test_special_numbers_survive(path: Path) -> None:
    words = [0x7FC00000, 0xFFC00001, 0x7F800001, 0x7F800000, 0xFF800000, 0x80000000, 0x00000001]
    special = np.array(words, np.uint32).view(np.float32)
    result = Result("k", 3, 10, special, special[::-1], special > 0, b"", float("nan"))
    negative = Result("k", 0, 7, special, special, special > 0, b"\0", -0.0)
    with Store.open(path, IDENTITY) as store:
        store.add(result)
        store.add(negative)
    with Store.open(path, IDENTITY) as store:
        found, zero = store.results()
        assert found.kl.view(np.uint32).tolist() == words
        assert found.loss.view(np.uint32).tolist() == words[::-1]
        assert found.correct.tolist() == [False, False, False, True, False, False, True]
        assert np.isnan(found.seconds)
        assert bits(zero) == bits(negative)


def test_the_file_holds_little_endian_floats_and_one_bit_per_image(path: Path) -> None:
    kl = np.array([1.0, -2.0] + [0.0] * 7, np.float32)
    correct = np.array([True, False, False, False, False, False, False, False, True])
    with Store.open(path, IDENTITY) as store:
        store.add(Result("k", 0, 9, kl, kl, correct, b"s", 1.5))
    connection = sqlite3.connect(path)
    row = connection.execute("SELECT kl, correct, statistics, seconds FROM results").fetchone()
    connection.close()
    assert row[0] == bytes.fromhex("0000803f 000000c0") + bytes(28)
    assert row[1:] == (b"\x01\x01", b"s", bytes.fromhex("000000000000f83f"))


def test_the_first_result_of_a_task_stays(path: Path) -> None:
    first = make(1)
    again = replace(first, kl=first.loss, statistics=b"other", seconds=0.0)
    with Store.open(path, IDENTITY) as store:
        store.add(first)
        store.add(again)
        store.add(make(2))
    require_holds(path, [first, make(2)])


def test_one_candidate_has_a_result_per_range(path: Path) -> None:
    whole = make(5)
    parts = [
        Result("k", start, start + 1, whole.kl[:1], whole.loss[:1], whole.correct[:1], b"", 1.0)
        for start in (0, 1)
    ]
    with Store.open(path, IDENTITY) as store:
        for part in parts:
            store.add(part)
    require_holds(path, parts)


def test_results_can_be_added_while_they_are_read(path: Path) -> None:
    results = fill(path, 130)
    with Store.open(path, IDENTITY) as store:
        read = []
        for index, result in enumerate(store.results()):
            store.add(make(1000 + index))
            read.append(bits(result))
        assert read == [bits(r) for r in results]
        assert len(store) == 260


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("kl", np.zeros(3, np.float64), "kl is float64 [3]: images 0-3 need float32 [3]"),
        ("loss", np.zeros(2, np.float32), "loss is float32 [2]: images 0-3 need float32 [3]"),
        ("correct", np.zeros(3, np.uint8), "correct is uint8 [3]: images 0-3 need bool [3]"),
    ],
)
def test_arrays_of_another_kind_are_not_rounded_in_silence(
    path: Path, name: str, array: np.ndarray, message: str
) -> None:
    good = {"kl": np.zeros(3, np.float32), "loss": np.zeros(3, np.float32)}
    arrays = {**good, "correct": np.zeros(3, bool), name: array}
    with Store.open(path, IDENTITY) as store:
        with pytest.raises(ValueError, match="images 0-3 need") as raised:
            store.add(Result("k", 0, 3, **arrays, statistics=b"", seconds=0.0))
        assert str(raised.value) == message
        assert list(store.results()) == []


def test_settings_are_kept_and_not_changed(path: Path) -> None:
    with Store.open(path, IDENTITY) as store:
        assert store.setting("precision") is None
        store.set_setting("precision", "bf16")
        store.set_setting("precision", "bf16")
    with Store.open(path, IDENTITY) as store:
        assert store.setting("precision") == "bf16"
        with pytest.raises(ValueError, match="precision is 'bf16' in this store.*'float32'"):
            store.set_setting("precision", "float32")
        assert store.setting("precision") == "bf16"
        assert store.setting("layout") is None


def test_the_last_seconds_are_kept(path: Path) -> None:
    with Store.open(path, IDENTITY) as store:
        assert store.seconds == 0
        for seconds in (0.1, 1 / 3, 2e5 + 1e-7):
            store.keep_seconds(seconds)
    with Store.open(path, IDENTITY) as store:
        assert store.seconds == 2e5 + 1e-7
        assert store.setting("precision") is None


def test_a_closed_store_says_so(path: Path) -> None:
    store = Store.open(path, IDENTITY)
    store.add(make(0))
    store.close()
    store.close()
    with pytest.raises(ValueError, match="is closed"):
        store.add(make(1))
    with pytest.raises(ValueError, match="is closed"):
        list(store.results())
    with pytest.raises(ValueError, match="is closed"):
        store.set_setting("precision", "bf16")


def test_a_name_with_a_meaning_to_sqlite_is_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (":memory:", "a?mode=ro#x y%20.sqlite"):
        results = fill(Path(name), 2)
        assert (tmp_path / name).stat().st_size > 0
        require_holds(Path(name), results)


# Whose scores these are


@pytest.mark.parametrize(
    ("identity", "message"),
    [
        ({**IDENTITY, "seed": "1"}, "seed was 0 and is 1; give the same arguments"),
        ({"images": "b" * 64, "seed": "0"}, f"weights was {'a' * 60}... and is absent; "),
        ({**IDENTITY, "tau": "0.1"}, "tau was absent and is 0.1; give the same"),
        (
            {**IDENTITY, "weights": "a" * 60 + "bcde", "seed": "1"},
            "weights was ...aaaaaaaaaaaa and is ...aaaaaaaabcde (and 1 more); give",
        ),
        ({}, f"weights was {'a' * 60}... and is absent (and 2 more); give"),
    ],
    ids=["changed", "missing", "additional", "late difference", "none"],
)
def test_scores_of_other_inputs_are_refused(
    path: Path, identity: dict[str, str], message: str
) -> None:
    results = fill(path, 2)
    with pytest.raises(InputError) as raised:
        Store.open(path, identity)
    assert f"'{path}' holds scores of another run: {message}" in str(raised.value)
    assert str(raised.value).endswith("to resume it, or name another folder")
    require_holds(path, results)


def test_the_order_of_the_inputs_does_not_matter(path: Path) -> None:
    fill(path, 1)
    with Store.open(path, dict(reversed(IDENTITY.items()))) as store:
        assert len(store) == 1


# Kills and other processes


def serve() -> None:
    """Forks a child for each line of input, a function of this module and a path.

    One process serves all tests, so that the imports are paid for once.
    """
    for line in sys.stdin:
        function, path = line.rstrip("\n").split(maxsplit=1)
        process = os.fork()
        if process == 0:
            say(os.getpid())
            globals()[function](Path(path))
            os._exit(0)
        say(f"ended {os.waitpid(process, 0)[1]}")


def say(word: object) -> None:
    os.write(1, f"{word}\n".encode())  # at once and as a whole, also when a kill comes next


class Children:
    """Processes that do something to a store, one after the other."""

    def __init__(self, server: subprocess.Popen[str]) -> None:
        assert server.stdin is not None and server.stdout is not None
        self.ask, self.answer = server.stdin, server.stdout

    def start(self, function: Callable[[Path], None], path: Path) -> int:
        """Its process id."""
        print(function.__name__, path, file=self.ask, flush=True)
        return int(self.word())

    def word(self) -> str:
        line = self.answer.readline()
        assert line, "the server ended"
        return line.strip()

    def end(self) -> tuple[list[str], int]:
        """The words that were left, and the status."""
        words = []
        while not (word := self.word()).startswith("ended"):
            words.append(word)
        return words, int(word.split()[1])


@pytest.fixture(scope="module")
def children() -> Iterator[Children]:
    code = "from tests.candidates import test_store; test_store.serve()"
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
    ) as server:
        yield Children(server)
        server.kill()


def write(path: Path) -> None:
    store = Store.open(path, IDENTITY)
    for index in itertools.count(len(store)):
        store.add(make(index))
        say(index)


@unix
def test_every_result_whose_add_returned_survives_kill_9(path: Path, children: Children) -> None:
    moments = random.Random(3)
    stored = 0
    for _ in range(40):
        # In the opening, or some results later; an add takes about a millisecond.
        count, seconds = moments.choice([(0, 0.01), (1, 0.003), (3, 0.003), (6, 0.001)])
        process = children.start(write, path)
        told = [int(children.word()) for _ in range(count)]
        time.sleep(seconds * moments.random())
        os.kill(process, signal.SIGKILL)
        rest, status = children.end()
        assert status == signal.SIGKILL
        told += map(int, rest)
        assert told == list(range(stored, stored + len(told)))
        with Store.open(path, IDENTITY) as store:
            found = list(store.results())
            # One more: it was on the disk, but the writer died before it could say so.
            assert len(found) - stored - len(told) in {0, 1}
            assert len(store) == len(found)
        assert all(bits(result) == bits(make(index)) for index, result in enumerate(found))
        stored = len(found)


def hold(path: Path) -> None:
    try:
        with Store.open(path, IDENTITY) as store:
            store.add(make(0))
            say("held")
            sys.stdin.readline()
    except InputError as error:
        say(error)


def require_refused(path: Path) -> None:
    began = time.perf_counter()
    with pytest.raises(InputError) as raised:
        Store.open(path, IDENTITY)
    assert time.perf_counter() - began < 2
    assert str(raised.value) == in_use(path)


def in_use(path: Path) -> str:
    return f"'{path}' is in use by another process: wait for it, or name another folder"


@unix
@pytest.mark.parametrize("ending", ["killed", "closed"])
def test_a_second_process_is_refused_until_the_first_ends(
    path: Path, children: Children, ending: str
) -> None:
    process = children.start(hold, path)
    assert children.word() == "held"
    require_refused(path)
    require_refused(path)  # also after a first attempt
    if ending == "killed":
        os.kill(process, signal.SIGKILL)
    else:
        print("leave", file=children.ask, flush=True)
    assert children.end() == ([], signal.SIGKILL if ending == "killed" else 0)
    require_holds(path, [make(0)])


@unix
def test_a_second_store_in_one_process_is_refused_and_takes_no_lock_away(
    path: Path, children: Children
) -> None:
    with Store.open(path, IDENTITY) as store:
        store.add(make(0))
        require_refused(path)
        children.start(hold, path)
        assert children.end() == ([in_use(path)], 0)
        store.add(make(1))
    require_holds(path, [make(0), make(1)])


def fork_and_die(path: Path) -> None:
    """A forked worker closes its copy of the store; then this process is killed."""
    store = Store.open(path, IDENTITY)
    store.add(make(0))
    process = os.fork()
    if process == 0:
        with pytest.raises(ValueError, match="belongs to the process that opened it"):
            store.add(make(7))
        store.close()
        del store
        os._exit(0)
    say(os.waitpid(process, 0)[1])
    store.add(make(1))
    say("told")
    os.kill(os.getpid(), signal.SIGKILL)


@unix
def test_a_forked_worker_takes_nothing_along(path: Path, children: Children) -> None:
    children.start(fork_and_die, path)
    assert children.end() == (["0", "told"], signal.SIGKILL)
    require_holds(path, [make(0), make(1)])


def test_a_commit_waits_for_the_disk(path: Path) -> None:
    """With ``synchronous`` at 2 (FULL) SQLite syncs before it returns; the default is the build's."""
    with Store.open(path, IDENTITY) as store:
        asked = [
            store._connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("synchronous", "journal_mode", "locking_mode")
        ]
        assert asked == [2, "persist", "exclusive"]


# Full disk


def test_a_full_disk_loses_nothing(path: Path) -> None:
    results = fill(path, 5)
    with Store.open(path, IDENTITY) as store:
        run = store._connection.execute
        (pages,) = run("PRAGMA page_count").fetchone()
        run(f"PRAGMA max_page_count = {pages + 12}")
        with pytest.raises(StorageError) as raised:  # noqa: PT012 - one of them meets the limit
            for index in range(5, 100):
                store.add(make(index))
                results.append(make(index))
        assert str(raised.value) == (
            f"'{path}': disk is full: free some space and resume; {len(results)} results are safe"
        )
        assert len(results) < 30
        assert [bits(r) for r in store.results()] == [bits(r) for r in results]
        run(f"PRAGMA max_page_count = {pages + 1000}")  # space was freed
        store.add(make(len(results)))
        results.append(make(len(results)))
    require_holds(path, results)


def outgrow(path: Path) -> None:
    resource = importlib.import_module("resource")  # of POSIX systems
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    with Store.open(path, IDENTITY) as store:
        with pytest.raises(StorageError) as raised:  # noqa: PT012 - one of them meets the limit
            for index in range(100):
                store.add(make(index))
        say(len(store))
        say(raised.value)


@unix
def test_a_file_that_cannot_grow_loses_nothing(path: Path, children: Children) -> None:
    """The system refuses the write, wherever in the transaction it falls."""
    children.start(outgrow, path)
    (safe, message), status = children.end()
    assert status == 0
    assert 0 < int(safe) < 100
    assert message.endswith(f"then resume; {safe} results are safe")
    require_holds(path, [make(index) for index in range(int(safe))])


def test_a_file_that_was_moved_away_takes_no_more_results(path: Path) -> None:
    results = fill(path, 2)
    with Store.open(path, IDENTITY) as store:
        path.rename(path.with_suffix(".moved"))
        with pytest.raises(StorageError, match="was moved or deleted while it was in use: move it"):
            store.add(make(2))
    require_holds(path.with_suffix(".moved"), results)


# Damage

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
def test_a_damaged_file_is_refused_by_name_with_the_remedy(path: Path, name: str) -> None:
    results = fill(path, 10)
    with Store.open(path, IDENTITY) as store:
        store.set_setting("precision", "bf16")
    harm, message = HARMS[name]
    harm(path)
    before = path.read_bytes() if path.is_file() else b""
    with pytest.raises(InputError) as raised:
        list(read_all(path))
    start, _, end = message.partition(".*")
    assert str(raised.value).startswith(f"'{path}' {start}")
    assert end in str(raised.value)
    assert "\n" not in str(raised.value)
    if before:
        assert path.read_bytes() == before  # what can be recovered is not touched
        path.unlink()
        assert [bits(r) for r in fill(path, 10)] == [bits(r) for r in results]


def test_results_before_a_damaged_one_are_read(path: Path) -> None:
    results = fill(path, 10)
    blob = results[4].kl.tobytes()[4:20]
    offset = path.read_bytes().index(blob)
    overwrite(path, offset, bytes([blob[0] ^ 1]))
    with Store.open(path, IDENTITY) as store:
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
    path: Path,
    whole: tuple[bytes, list[tuple[object, ...]]],
    where: float,
    content: bytes,
) -> None:
    file, expected = whole
    path.write_bytes(file)
    # Half of them at the start of a page, where the structure is.
    offset = int(where * len(file))
    overwrite(path, offset if len(content) % 2 else offset // 4096 * 4096, content)
    with suppress(InputError):
        assert [bits(result) for result in read_all(path)] == expected


def test_a_file_of_no_bytes_is_new(path: Path) -> None:
    """A process killed while it makes the store leaves that."""
    path.touch()
    require_holds(path, [])
    require_holds(path, fill(path, 2))


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'.*/absent' is no folder: make it first"):
        Store.open(tmp_path / "absent" / STORE_FILE, IDENTITY)


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere"
)
@pytest.mark.parametrize("existing", [False, True], ids=["new", "existing"])
@pytest.mark.parametrize("what", ["file", "folder"])
def test_a_place_that_cannot_be_written_is_named(path: Path, existing: bool, what: str) -> None:
    results = fill(path, 1) if existing or what == "file" else []
    place = path if what == "file" else path.parent
    mode = place.stat().st_mode
    place.chmod(0o555)
    try:
        with pytest.raises(InputError) as raised, Store.open(path, IDENTITY) as store:
            store.add(make(1))
    finally:
        place.chmod(mode)
    assert str(raised.value).startswith(f"'{path}' cannot be written (")
    assert "let this user write the file and its folder, or name another folder" in str(
        raised.value
    )
    if results:
        require_holds(path, results)
