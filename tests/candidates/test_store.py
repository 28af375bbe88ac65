"""What was stored comes back to the bit, for the run that it is of."""

import random
import sqlite3
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from prunus.candidates.store import STORE_FILE, Store
from prunus.candidates.task import Result
from prunus.errors import InputError
from tests.candidates.stored import IDENTITY, bits, fill, make, require_holds


def test_results_come_back_bit_by_bit_in_order_of_insertion(store_path: Path) -> None:
    results = [make(index) for index in random.Random(0).sample(range(1000), 150)]
    with Store.open(store_path, IDENTITY) as store:
        for result in results:
            store.add(result)
        assert [bits(r) for r in store.results()] == [bits(r) for r in results]
    require_holds(store_path, results)
    assert [entry.name for entry in store_path.parent.iterdir()] == [STORE_FILE]


def test_special_numbers_survive(store_path: Path) -> None:
    words = [0x7FC00000, 0xFFC00001, 0x7F800001, 0x7F800000, 0xFF800000, 0x80000000, 0x00000001]
    special = np.array(words, np.uint32).view(np.float32)
    result = Result("k", 3, 10, special, special[::-1], special > 0, b"", float("nan"))
    negative = Result("k", 0, 7, special, special, special > 0, b"\0", -0.0)
    with Store.open(store_path, IDENTITY) as store:
        store.add(result)
        store.add(negative)
    with Store.open(store_path, IDENTITY) as store:
        found, zero = store.results()
        assert found.kl.view(np.uint32).tolist() == words
        assert found.loss.view(np.uint32).tolist() == words[::-1]
        assert found.correct.tolist() == [False, False, False, True, False, False, True]
        assert np.isnan(found.seconds)
        assert bits(zero) == bits(negative)


def test_the_file_holds_little_endian_floats_and_one_bit_per_image(store_path: Path) -> None:
    kl = np.array([1.0, -2.0] + [0.0] * 7, np.float32)
    correct = np.array([True, False, False, False, False, False, False, False, True])
    with Store.open(store_path, IDENTITY) as store:
        store.add(Result("k", 0, 9, kl, kl, correct, b"s", 1.5))
    connection = sqlite3.connect(store_path)
    row = connection.execute("SELECT kl, correct, statistics, seconds FROM results").fetchone()
    connection.close()
    assert row[0] == bytes.fromhex("0000803f 000000c0") + bytes(28)
    assert row[1:] == (b"\x01\x01", b"s", bytes.fromhex("000000000000f83f"))


def test_the_first_result_of_a_task_stays(store_path: Path) -> None:
    first = make(1)
    again = replace(first, kl=first.loss, statistics=b"other", seconds=0.0)
    with Store.open(store_path, IDENTITY) as store:
        store.add(first)
        store.add(again)
        store.add(make(2))
    require_holds(store_path, [first, make(2)])


def test_one_candidate_has_a_result_per_range(store_path: Path) -> None:
    whole = make(5)
    parts = [
        Result("k", start, start + 1, whole.kl[:1], whole.loss[:1], whole.correct[:1], b"", 1.0)
        for start in (0, 1)
    ]
    with Store.open(store_path, IDENTITY) as store:
        for part in parts:
            store.add(part)
    require_holds(store_path, parts)


def test_results_can_be_added_while_they_are_read(store_path: Path) -> None:
    results = fill(store_path, 130)
    with Store.open(store_path, IDENTITY) as store:
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
    store_path: Path, name: str, array: np.ndarray, message: str
) -> None:
    good = {"kl": np.zeros(3, np.float32), "loss": np.zeros(3, np.float32)}
    arrays = {**good, "correct": np.zeros(3, bool), name: array}
    with Store.open(store_path, IDENTITY) as store:
        with pytest.raises(ValueError, match="images 0-3 need") as raised:
            store.add(Result("k", 0, 3, **arrays, statistics=b"", seconds=0.0))
        assert str(raised.value) == message
        assert list(store.results()) == []


def test_settings_are_kept_and_not_changed(store_path: Path) -> None:
    with Store.open(store_path, IDENTITY) as store:
        assert store.setting("precision") is None
        store.set_setting("precision", "bf16")
        store.set_setting("precision", "bf16")
    with Store.open(store_path, IDENTITY) as store:
        assert store.setting("precision") == "bf16"
        with pytest.raises(ValueError, match="precision is 'bf16' in this store.*'float32'"):
            store.set_setting("precision", "float32")
        assert store.setting("precision") == "bf16"
        assert store.setting("layout") is None


def test_the_last_seconds_are_kept(store_path: Path) -> None:
    with Store.open(store_path, IDENTITY) as store:
        assert store.seconds == 0
        for seconds in (0.1, 1 / 3, 2e5 + 1e-7):
            store.keep_seconds(seconds)
    with Store.open(store_path, IDENTITY) as store:
        assert store.seconds == 2e5 + 1e-7
        assert store.setting("precision") is None


def test_a_closed_store_says_so(store_path: Path) -> None:
    store = Store.open(store_path, IDENTITY)
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
    store_path: Path, identity: dict[str, str], message: str
) -> None:
    results = fill(store_path, 2)
    with pytest.raises(InputError) as raised:
        Store.open(store_path, identity)
    assert f"'{store_path}' holds scores of another run: {message}" in str(raised.value)
    assert str(raised.value).endswith("to resume it, or name another folder")
    require_holds(store_path, results)


def test_the_order_of_the_inputs_does_not_matter(store_path: Path) -> None:
    fill(store_path, 1)
    with Store.open(store_path, dict(reversed(IDENTITY.items()))) as store:
        assert len(store) == 1
