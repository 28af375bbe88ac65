"""Which texts are learnt from, searched by and tested on: none in two parts, and it is told what was left out."""

import lzma
from pathlib import Path

import pytest
import torch

from prunus.data import (
    Cleaning,
    Split,
    TextOptions,
    TextTokenizer,
    load_data,
)
from prunus.errors import DataError
from tests.data.text.makers import rows, store_of, write_csv


def _texts(split: Split) -> set[str]:
    store = store_of(split)
    return {store.texts[index] for index in split.samples.indices.tolist()}


def test_copies_are_told_after_cleaning_and_whatever_their_spaces(tmp_path: Path) -> None:
    lines = [*rows(), ("A  Good day number 0", "pos"), ("a good day number 0 ", "pos")]
    path = write_csv(tmp_path / "a.csv", lines)
    as_written = load_data(f"text:{path}")
    assert "1 texts that were there twice" in as_written.note  # the other differs in case
    lower = load_data(f"text:{path}", text=TextOptions(cleaning=Cleaning(lower=True)))
    assert "2 texts that were there twice" in lower.note


@pytest.mark.parametrize("lower", [True, False])
def test_texts_to_test_on_that_were_seen_in_another_case_are_counted(
    tmp_path: Path, lower: bool
) -> None:
    """Every training text in capitals is a test text, and one more, which is no other's."""
    tests = [*((text.upper(), label) for text, label in rows()), ("one of its own", "pos")]
    file, test = write_csv(tmp_path / "a.csv"), write_csv(tmp_path / "b.csv", tests)
    pieces = TextTokenizer.train_wordpiece([text for text, _ in rows()], 120, lower=lower)
    for tokenizer in (pieces, None) if lower else (pieces,):  # trained here, it takes case away
        options = TextOptions(test_file=str(test))
        data = load_data(f"text:{file}", text=options, tokenizer=tokenizer)
        assert (len(data.test), len(data.train) + len(data.search)) == (41, 40)
        told = "40 test texts are training or search texts but for their case"
        assert (told in data.note) == lower
        copies = options.model_copy(update={"deduplicate": False})
        assert "their case" not in load_data(f"text:{file}", text=copies).note


def test_texts_to_search_by_that_are_trained_on_in_another_case_are_counted(
    tmp_path: Path,
) -> None:
    lines = [line for text, k in rows(50) for line in ((text, k), (text.upper(), k))]
    data = load_data(f"text:{write_csv(tmp_path / 'a.csv', lines)}")
    learnt, searched = ({t.lower() for t in _texts(part)} for part in (data.train, data.search))
    again = sum(text.lower() in learnt for text in _texts(data.search))
    assert searched & learnt
    assert f"{again} search texts are training texts but for their case" in data.note
    lower = load_data(f"text:{tmp_path / 'a.csv'}", text=TextOptions(cleaning=Cleaning(lower=True)))
    assert "their case" not in lower.note
    assert len(lower.train) + len(lower.search) + len(lower.test) == 100


def test_a_test_file_may_hold_few_texts_of_one_class(tmp_path: Path) -> None:
    train = write_csv(tmp_path / "train.csv")
    test = write_csv(tmp_path / "test.csv", [("a text of its own", "pos"), ("another one", "pos")])
    data = load_data(f"text:{train}", text=TextOptions(test_file=str(test)))
    assert data.test.labels.tolist() == [1, 1]
    assert len(data.train) + len(data.search) == 40


def test_texts_of_a_test_file_are_left_out_of_training_and_of_unlabeled_texts(
    tmp_path: Path,
) -> None:
    first, second = rows()[0], rows()[1]
    test = write_csv(
        tmp_path / "test.csv", [(f" {first[0]} ", first[1]), ("one of its own", "pos")]
    )
    train = write_csv(tmp_path / "train.csv")
    more = tmp_path / "more.csv"
    more.write_text(f"text\n{first[0]}\n{second[0]}\n")
    options = TextOptions(test_file=str(test), unlabeled_file=str(more))
    data = load_data(f"text:{train}", text=options)
    learned = {*store_of(data.train).texts, *store_of(data.search).texts}
    assert learned == {text for text, _ in rows()} - {first[0]}
    assert "1 training texts that are test texts, too, were left out" in data.note
    assert data.unlabeled is not None
    assert store_of(data.unlabeled).texts == (second[0],)
    as_they_are = load_data(
        f"text:{train}", text=TextOptions(test_file=str(test), deduplicate=False)
    )
    assert len(as_they_are.train) + len(as_they_are.search) == len(rows())
    assert as_they_are.note.endswith("; 1 test texts are training or search texts, too")
    more.write_text(f"text\n{first[0]}\n")
    with pytest.raises(DataError, match="has no text that is not a test text, too"):
        load_data(f"text:{train}", text=options)


def test_a_test_file_that_is_the_training_file_is_named(tmp_path: Path) -> None:
    train = write_csv(tmp_path / "train.csv")
    with pytest.raises(
        DataError, match=r"has 0 training texts that are not in test_file=.*train.csv"
    ):
        load_data(f"text:{train}", text=TextOptions(test_file=str(train)))


def test_texts_that_are_searched_by_are_left_out_of_unlabeled_ones(tmp_path: Path) -> None:
    """A student would learn the teacher's answers on what chooses its epoch."""
    train, more = write_csv(tmp_path / "train.csv"), tmp_path / "more.csv"
    more.write_text("text\n" + "\n".join(text for text, _ in rows()))
    data = load_data(f"text:{train}", text=TextOptions(unlabeled_file=str(more)))
    assert _texts(data.search)
    assert data.unlabeled is not None
    assert _texts(data.unlabeled) == _texts(data.train)


def test_test_texts_are_left_out_of_a_search_part_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SST-2 brings three files."""
    texts = rows()
    parts = {"train": texts[:26], "val": texts[26:32], "test": [*texts[32:], texts[27], texts[3]]}
    (tmp_path / "text").mkdir()

    def write() -> None:
        for which, lines in parts.items():
            body = "".join(f"{text}\t{label}\n" for text, label in lines)
            packed = lzma.compress(f"sentence\tlabel\n{body}".encode())
            (tmp_path / "text" / f"sst2_{which}.tsv.xz").write_bytes(packed)

    write()
    monkeypatch.setenv("PRUNUS_DATA", str(tmp_path))
    data = load_data("sst2")
    kept = {text for text, _ in texts[26:32]} - {texts[27][0]}
    assert set(store_of(data.search).texts) == kept
    assert len(data.train) == 25
    assert "1 training texts that are test texts, too, were left out" in data.note
    assert "1 search texts that are test texts, too, were left out" in data.note
    as_they_are = load_data("sst2", text=TextOptions(deduplicate=False))
    assert len(as_they_are.search) == 6
    assert "1 search texts that" not in as_they_are.note
    assert "2 test texts are training or search texts, too" in as_they_are.note
    parts["val"] = parts["test"]
    write()
    with pytest.raises(DataError, match="sst2: no search text is left that is not a test text"):
        load_data("sst2")


def test_training_on_a_part_takes_it_evenly_from_every_class(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv")
    whole, part = (
        load_data(f"text:{path}", text=TextOptions(train_size=n), search_size=2) for n in (None, 10)
    )
    assert (len(part.train), len(part.search)) == (8, 2)
    labels = torch.cat([part.train.labels, part.search.labels])
    assert labels.bincount().tolist() == [5, 5]
    assert store_of(part.test).texts == store_of(whole.test).texts
    assert "10 of the training texts were drawn; the search split is a part of them" in part.note


def test_unlabeled_texts_are_cleaned_and_kept_once(tmp_path: Path) -> None:
    more = tmp_path / "more.csv"
    more.write_text("text\nOne More\none more\nanother\n")
    options = TextOptions(unlabeled_file=str(more), cleaning=Cleaning(lower=True))
    data = load_data(f"text:{write_csv(tmp_path / 'a.csv')}", text=options)
    assert data.unlabeled is not None
    assert store_of(data.unlabeled).texts == ("one more", "another")
    assert data.unlabeled.labels.tolist() == [-1, -1]


def test_copies_of_another_class_are_told(tmp_path: Path) -> None:
    again = [("a good day number 0", "neg"), ("a good day  number 0", "pos")]
    data = load_data(f"text:{write_csv(tmp_path / 'a.csv', [*rows(), *again])}")
    assert "2 texts that were there twice were left out before splitting" in data.note
    assert "1 of them had another class than the first of their kind, which stays" in data.note
    same = load_data(f"text:{write_csv(tmp_path / 'b.csv', [*rows(), again[1]])}")
    assert "another class" not in same.note


def test_texts_that_are_cut_off_are_counted(tmp_path: Path) -> None:
    """Letters are pieces of their own: with two special ones 8 and, in half of the texts, 13."""
    lines = [(" ".join("abcdefghijk"[: 6 + 5 * (i // 2 % 2)]), "pq"[i % 2]) for i in range(40)]
    path = write_csv(tmp_path / "a.csv", lines)
    options = {"max_length": 8, "deduplicate": False, "vocab_size": 64}
    data = load_data(f"text:{path}", text=TextOptions.model_validate(options))
    texts = store_of(data.train).texts
    longer = sum("k" in text for text in texts) / len(texts)
    said = f"; {longer:.1%} of the training texts are cut off after max_length=8 tokens"
    assert data.note.endswith(said)
    fits = TextOptions.model_validate({**options, "max_length": 13})
    assert "cut off" not in load_data(f"text:{path}", text=fits).note


def test_a_split_without_a_rare_class_is_told(tmp_path: Path) -> None:
    """Of 3 among 103 texts: 21 x 3 / 103 = 0.61 in test, then 16 x 2 / 82 = 0.39 in search."""
    lines = [(f"text number {i}", "rare" if i < 3 else "usual") for i in range(103)]
    data = load_data(f"text:{write_csv(tmp_path / 'a.csv', lines)}")
    assert data.test.labels.bincount().tolist() == [1, 20]
    assert data.note == "the search split has no text of class 'rare'"


def test_a_train_split_without_a_class_that_nothing_is_tested_on_is_told(tmp_path: Path) -> None:
    """Of 4 texts drawn out of 3 and 100 the rare class has 4 x 3 / 103 = 0.1."""
    lines = [(f"text number {i}", "rare" if i < 3 else "usual") for i in range(103)]
    test = write_csv(tmp_path / "test.csv", [(f"another {i}", "usual") for i in range(4)])
    options = TextOptions(test_file=str(test), train_size=4)
    data = load_data(f"text:{write_csv(tmp_path / 'a.csv', lines)}", text=options)
    assert "the train split has no text of class 'rare'" in data.note


def test_what_befell_training_and_test_texts_alike_is_told_once(tmp_path: Path) -> None:
    train = write_csv(tmp_path / "train.csv", [*rows(), ("", "pos")])
    test = write_csv(tmp_path / "test.csv", [("one", "pos"), ("two", "neg"), ("", "neg")])
    options = TextOptions(test_file=str(test), drop_empty=True)
    assert load_data(f"text:{train}", text=options).note == "1 rows without text were left out"
