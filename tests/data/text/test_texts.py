"""Texts in three splits: formats, guesses, cleaning, pieces, trimming, and what the sets are."""

import lzma
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunus.data import Cleaning, DataSplits, TextOptions, TextTokenizer, TokenStore, load_data
from prunus.data.text.clean import clean
from prunus.data.text.docstrings import docstrings
from prunus.errors import DataError, InputError

WORDS = ("film", "filming", "story", "warm", "warmth", "grim", "of", "the", "and", "stories")
TRAINED = [f"{a} {b} {c}" for a in WORDS for b in WORDS for c in WORDS[:4]]


def _rows(n: int = 40) -> list[tuple[str, str]]:
    return [(f"a {'warm' if i % 2 else 'grim'} film number {i}", str(i % 2)) for i in range(n)]


def _csv(path: Path, rows: list[tuple[str, str]]) -> Path:
    lines = [f'"{text}",{label}' for text, label in rows]
    path.write_text("text,label\n" + "\n".join(lines), encoding="utf-8")
    return path


def _texts(data: DataSplits) -> dict[str, set[str]]:
    found = {}
    for split in (data.train, data.search, data.test):
        store = split.samples.store
        assert isinstance(store, TokenStore)
        found[split.role] = set(store.texts)
    return found


def test_four_to_one_and_the_same_test_texts_for_every_seed(tmp_path: Path) -> None:
    file = _csv(tmp_path / "a.csv", _rows(100))
    one, two = (load_data(f"text:{file}", seed=seed) for seed in (0, 1))
    assert (len(one.test), len(one.search), len(one.train)) == (20, 16, 64)
    mine, theirs = _texts(one), _texts(two)
    assert mine["test"] == theirs["test"]
    assert mine["search"] != theirs["search"]
    assert not mine["train"] & mine["search"]
    assert not mine["test"] & (mine["train"] | mine["search"])
    assert one.test.labels.bincount().tolist() == [10, 10]
    assert one.metric == "f1"


def test_the_same_rows_in_every_format_are_the_same_texts(tmp_path: Path) -> None:
    import json

    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")

    rows = _rows()
    files = [_csv(tmp_path / "a.csv", rows)]
    tsv = "\n".join(f"{label}\t{text}" for text, label in rows)
    (tmp_path / "b.tsv").write_text(tsv, encoding="utf-8")
    (tmp_path / "c.csv.xz").write_bytes(lzma.compress(b"\xef\xbb\xbf" + files[0].read_bytes()))
    records = "\n".join(json.dumps({"text": t, "label": float(n)}) for t, n in rows)
    (tmp_path / "d.jsonl").write_text(records, encoding="utf-8")
    table = pa.table({"label": [int(n) for _, n in rows], "text": [t for t, _ in rows]})
    parquet.write_table(table, tmp_path / "e.parquet")
    wanted = load_data(f"text:{files[0]}")
    for name in ("b.tsv", "c.csv.xz", "d.jsonl", "e.parquet"):
        found = load_data(f"text:{tmp_path / name}")
        assert _texts(found) == _texts(wanted), name
        assert found.class_names == ("0", "1"), name  # 0.0 is 0
        assert torch.equal(found.train.labels, wanted.train.labels), name


def test_texts_that_are_there_twice_are_left_out_before_splitting(tmp_path: Path) -> None:
    file = _csv(tmp_path / "a.csv", [*_rows(), *_rows(10)])
    data = load_data(f"text:{file}")
    assert sum(len(s) for s in (data.train, data.search, data.test)) == 40
    assert "10 texts that were there twice" in data.note
    whole = load_data(f"text:{file}", text=TextOptions(deduplicate=False))
    assert sum(len(s) for s in (whole.train, whole.search, whole.test)) == 50


def test_classes_are_numbered_by_name_and_the_second_is_the_positive_one(tmp_path: Path) -> None:
    rows = [(text, "spam" if label == "1" else "ham") for text, label in _rows()]
    data = load_data(f"text:{_csv(tmp_path / 'a.csv', rows)}")
    assert data.class_names == ("ham", "spam")
    store = data.test.samples.store
    assert isinstance(store, TokenStore)
    for text, label in zip(store.texts, data.test.labels.tolist(), strict=True):
        assert ("warm" in text) == (label == 1)


def test_cleaning_in_english_and_russian() -> None:
    every = {"lower": True, "stop_words": True, "lemmas": True}
    assert clean(["The Stories were filmed"], Cleaning(**every, language="en")) == ["story film"]
    assert clean(["Я смотрел красивые дома"], Cleaning(**every, language="ru")) == [
        "смотреть красивый дом"
    ]
    assert clean(["The AND of"], Cleaning(stop_words=True)) == ["The AND of"]  # not nothing
    assert clean(["As IT is"], Cleaning()) == ["As IT is"]


def test_the_trained_pieces_are_the_same_in_another_process() -> None:
    mine = TextTokenizer.train_wordpiece(TRAINED, 80)
    code = (
        "from tests.data.text.test_texts import TRAINED, TextTokenizer\n"
        "print(TextTokenizer.train_wordpiece(TRAINED, 80).digest)"
    )
    root = Path(__file__).parents[3]
    path = os.pathsep.join([str(root / "src"), str(root)])
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        cwd=root,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.stdout.strip() == mine.digest, done.stderr


def test_pieces_are_framed_and_cut_off_before_the_last_special_one(tmp_path: Path) -> None:
    tokenizer = TextTokenizer.train_wordpiece(TRAINED, 80)
    ids = tokenizer.encode(["warm story", "film " * 50], 10)
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    start, end = names.index("[CLS]"), names.index("[SEP]")
    assert [one[0] for one in ids] == [start, start]
    assert [one[-1] for one in ids] == [end, end]
    assert len(ids[1]) == 10
    tokenizer.save(tmp_path / "tokenizer.json")
    again = TextTokenizer.read(tmp_path / "tokenizer.json")
    assert again.digest == tokenizer.digest
    assert again.encode(["warm story"], 10) == ids[:1]


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_a_trimmed_vocabulary_spells_texts_of_kept_pieces_as_before(data: st.DataObject) -> None:
    tokenizer = TextTokenizer.train_wordpiece(TRAINED, 80)
    size = tokenizer.vocab_size
    always = tokenizer.fallback_pieces()
    chosen = data.draw(st.sets(st.integers(0, size - 1)))
    keep = np.isin(np.arange(size), sorted(always | chosen))
    smaller = tokenizer.trimmed(keep)
    assert smaller.vocab_size == int(keep.sum())
    rank = np.cumsum(keep) - 1
    for text in TRAINED[::37]:
        (before,), (after,) = tokenizer.encode([text], 64), smaller.encode([text], 64)
        if all(keep[piece] for piece in before):
            assert after == [int(rank[piece]) for piece in before]
        assert smaller.unknown_id not in after  # characters spell what is left


def test_special_pieces_and_other_kinds_of_vocabularies_cannot_be_trimmed() -> None:
    import tokenizers

    tokenizer = TextTokenizer.train_wordpiece(TRAINED, 80)
    keep = np.ones(tokenizer.vocab_size, dtype=bool)
    keep[2] = False
    with pytest.raises(InputError, match=r"token \[CLS\] is special and must stay"):
        tokenizer.trimmed(keep)
    with pytest.raises(InputError, match="keep has 3 flags"):
        tokenizer.trimmed(np.ones(3, dtype=bool))
    pairs = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]))
    with pytest.raises(InputError, match="vocabulary trimming supports WordPiece"):
        TextTokenizer(pairs.to_str()).trimmed(np.ones(3, dtype=bool))


def test_other_pieces_leave_the_splits_and_the_count_of_looks(tmp_path: Path) -> None:
    data = load_data(f"text:{_csv(tmp_path / 'a.csv', _rows())}")
    list(data.test.batches(8))
    assert data.tokenizer is not None
    size = data.tokenizer.vocab_size
    always = data.tokenizer.fallback_pieces()
    smaller = data.tokenizer.trimmed(np.isin(np.arange(size), sorted(always)))
    other = data.with_tokenizer(smaller)
    assert _texts(other) == _texts(data)
    assert torch.equal(other.train.labels, data.train.labels)
    assert other.test.evaluations == 1
    list(other.test.batches(8))
    assert data.test.evaluations == 2


def test_texts_are_padded_to_the_longest_of_a_batch() -> None:
    tokenizer = TextTokenizer.train_wordpiece(TRAINED, 80)
    store = TokenStore(["film", "film story warm"], torch.tensor([0, 1]), tokenizer, 16)
    inputs, labels = store.read(torch.tensor([0, 1]), None)
    assert isinstance(inputs, dict)
    assert store.lengths.tolist() == [3, 5]
    assert inputs["input_ids"].shape == (2, 5)
    assert inputs["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert inputs["input_ids"][0, 3:].tolist() == [tokenizer.pad_id] * 2
    assert labels.tolist() == [0, 1]
    alone, _ = store.take(torch.tensor([0])).read(torch.tensor([0]), None)
    assert isinstance(alone, dict)
    assert alone["input_ids"].shape == (1, 3)


def test_the_embedded_texts_do_not_name_their_class() -> None:
    found = docstrings()
    assert len(found.texts) == len(set(found.texts)) > 1500
    shares = [found.labels.count(name) / len(found.labels) for name in ("scipy", "sklearn")]
    assert min(shares) > 0.3
    told = [t for t in found.texts if any(w in t.lower() for w in ("scipy", "sklearn", "scikit"))]
    assert told == []


@pytest.mark.parametrize(
    ("name", "train_and_search", "test", "classes"),
    [
        ("sst2", None, 872, ("0", "1")),
        ("sms", 5574, None, ("ham", "spam")),
        ("ru_toxic", 14_412, None, ("0", "1")),
    ],
)
def test_shared_sets_have_the_published_sizes(
    name: str, train_and_search: int | None, test: int | None, classes: tuple[str, str]
) -> None:
    try:
        tokenizer = TextTokenizer.train_wordpiece(TRAINED, 80)  # to train on the set takes seconds
        data = load_data(name, text=TextOptions(max_length=16), tokenizer=tokenizer)
    except DataError as error:
        pytest.skip(str(error))
    assert data.class_names == classes
    if test is not None:
        assert len(data.test) == test
        assert "optimistic" in data.note
    if train_and_search is not None:  # all of the file but what is there twice
        twice = int(data.note.split(" texts that were there twice")[0].split()[-1])
        total = len(data.train) + len(data.search) + len(data.test)
        assert total + twice == train_and_search


def test_a_local_folder_is_read_as_a_data_set(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    _csv(folder / "train.csv", _rows(40))
    _csv(folder / "test.csv", [(f"{text} again", label) for text, label in _rows(10)])
    data = load_data(f"hfdata:{folder}")
    assert len(data.test) == 10
    assert len(data.train) + len(data.search) == 40
