"""Tables of texts: headers, guesses of columns, names of classes, what is left out, the hub."""

import csv
import gzip
import json
import lzma
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prunus.data import (
    Cleaning,
    DataSplits,
    Split,
    TextOptions,
    TextTokenizer,
    TokenStore,
    load_data,
)
from prunus.data.text.clean import clean
from prunus.data.text.docstrings import docstrings
from prunus.data.text.labelled import LabelledTexts, read_labelled, read_texts
from prunus.errors import DataError, InputError
from tests.data.text.makers import csv_text, rows, write_csv

THREE = [(f"some words of text {i}", "ab"[i % 2]) for i in range(8)]


def _read(path: Path, content: str | bytes, **options: str) -> LabelledTexts:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_labelled(path, TextOptions.model_validate(options))


def _wanted(lines: list[tuple[str, str]]) -> LabelledTexts:
    return LabelledTexts(tuple(text for text, _ in lines), tuple(label for _, label in lines))


def _xz(content: str) -> bytes:
    return lzma.compress(content.encode())


def _gz(content: str) -> bytes:
    return gzip.compress(content.encode())


def _mark(content: str) -> bytes:
    return b"\xef\xbb\xbf" + content.encode()


@pytest.mark.parametrize(
    ("file", "pack"),
    [("A.CSV.XZ", _xz), ("a.csv.gz", _gz), ("a.csv", _mark), ("a.v1.csv", str.encode)],
)
def test_a_packed_file_is_read_as_the_plain_one(
    tmp_path: Path, file: str, pack: Callable[[str], bytes]
) -> None:
    assert _read(tmp_path / file, pack(csv_text(THREE))) == _wanted(THREE)


@pytest.mark.parametrize("encoding", ["cp1251", "utf-16", "koi8-r"])
def test_another_encoding_is_read_where_it_is_named(tmp_path: Path, encoding: str) -> None:
    lines = [
        (f"\u0431\u043e\u043b\u044c\u0448\u043e\u0439 \u0434\u043e\u043c {i}", "ab"[i % 2])
        for i in range(6)
    ]
    found = _read(tmp_path / "a.csv", csv_text(lines).encode(encoding), encoding=encoding)
    assert found == _wanted(lines)


@pytest.mark.parametrize("header", ["text,label", "Sentence, Class", "comment,toxic", "x,TARGET"])
def test_a_row_with_a_usual_name_is_a_header(tmp_path: Path, header: str) -> None:
    assert _read(tmp_path / "a.csv", csv_text(THREE, header)) == _wanted(THREE)


def test_a_row_with_a_name_from_the_options_is_a_header(tmp_path: Path) -> None:
    content = csv_text(THREE, "body,kind")
    for options in ({"text_column": "body"}, {"label_column": "kind"}):
        assert _read(tmp_path / "a.csv", content, **options) == _wanted(THREE)
    swapped = "\n".join(["kind\tbody", *(f"{label}\t{text}" for text, label in THREE)])
    assert _read(tmp_path / "a.tsv", swapped, label_column="kind") == _wanted(THREE)


def test_without_a_header_columns_are_told_by_their_contents_or_counted(tmp_path: Path) -> None:
    content = "\n".join(f"{label}\t{text}" for text, label in THREE)
    assert _read(tmp_path / "a.tsv", content) == _wanted(THREE)
    named = {"text_column": "column 2", "label_column": "column 1"}
    assert _read(tmp_path / "a.tsv", content, **named) == _wanted(THREE)


@pytest.mark.parametrize("first", ["toxic", "y", "review"])
def test_a_first_row_whose_usual_name_comes_again_is_no_header(tmp_path: Path, first: str) -> None:
    lines = [(f"some words of text {i}", (first, "b")[i % 2]) for i in range(8)]
    content = "\n".join(f"{label}\t{text}" for text, label in lines)
    assert _read(tmp_path / "a.tsv", content) == _wanted(lines)
    content = "\n".join(f"{text}, {label} " for text, label in lines)
    assert _read(tmp_path / "a.csv", content) == _wanted(lines)


@pytest.mark.parametrize(
    ("header", "named"), [("text,toxic", {}), ("x,toxic", {"label_column": "toxic"})]
)
def test_a_header_beside_a_class_of_its_name_stays_one(
    tmp_path: Path, header: str, named: dict[str, str]
) -> None:
    """Another usual name, or one that is given, tells it."""
    lines = [(f"some words of text {i}", ("toxic", "fine")[i % 2]) for i in range(8)]
    assert _read(tmp_path / "a.csv", csv_text(lines, header), **named) == _wanted(lines)


def test_a_column_of_many_values_is_not_taken_for_the_labels(tmp_path: Path) -> None:
    lines = [(f"some words of text {i}", "ab"[i % 2]) for i in range(60)]
    content = "id,what,text\n" + "".join(f"{i},{k},{t}\n" for i, (t, k) in enumerate(lines))
    assert _read(tmp_path / "a.csv", content) == _wanted(lines)


def test_quotes_are_of_csv_and_bare_in_tsv(tmp_path: Path) -> None:
    quoted = [(f'he said, "{i}"', "ab"[i % 2]) for i in range(6)]
    csv = "text,label\n" + "".join(f'"he said, ""{i}""",{"ab"[i % 2]}\n' for i in range(6))
    assert _read(tmp_path / "a.csv", csv) == _wanted(quoted)
    bare = [(f'a "bare {i}', "ab"[i % 2]) for i in range(6)]
    tsv = "text\tlabel\r\n" + "".join(f"{text}\t{label}\r\n" for text, label in bare)
    assert _read(tmp_path / "a.tsv", tsv) == _wanted(bare)


def test_the_last_column_of_tsv_takes_the_tabs_that_are_left(tmp_path: Path) -> None:
    tsv = "".join(f"{'ab'[i % 2]}\tsome words\tand {i}\n" for i in range(6))
    first = "a\tthe first row tells the columns\n"
    found = _read(tmp_path / "a.tsv", first + tsv)
    assert found.texts[1] == "some words\tand 0"


def test_missing_cells_of_json_lines_are_rows_without_text(tmp_path: Path) -> None:
    records: list[dict[str, object]] = [{"text": t, "label": k} for t, k in THREE]
    lines = [json.dumps(record) for record in [*records, {"label": "a"}, {"text": None}]]
    path = tmp_path / "a.ndjson"
    path.write_text("\n\n".join(lines))
    with pytest.raises(DataError, match="2 rows without text, the first is row 9"):
        read_labelled(path, TextOptions())
    found = read_labelled(path, TextOptions(drop_empty=True))
    assert found.texts == _wanted(THREE).texts
    assert found.note == "2 rows without text were left out"


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("0.0", "0"),
        ("-0.0", "0"),
        ("-0", "0"),
        ("1.0", "1"),
        ("-1.0", "-1"),
        ("3.", "3"),
        ("0.5", "0.5"),
        (" ham ", "ham"),
    ]
    + [(name, name) for name in ("1e2", "1_1", "007", "+1", "inf")],  # names, whatever float() says
)
def test_whole_numbers_are_classes_without_a_point(tmp_path: Path, written: str, name: str) -> None:
    other = [(f"other words {i}", "2") for i in range(3)]
    lines = [(f"some words {i}", written) for i in range(3)]
    found = _read(tmp_path / "a.csv", csv_text([*lines, *other]))
    assert found.labels == (name,) * 3 + ("2",) * 3


def test_numbers_that_no_float_holds_stay_different_classes(tmp_path: Path) -> None:
    one, two = str(2**53), str(2**53 + 1)
    lines = [(f"some words {i}", (one, two)[i % 2]) for i in range(6)]
    assert set(_read(tmp_path / "a.csv", csv_text(lines)).labels) == {one, two}


@pytest.mark.parametrize(
    ("labels", "order"),
    [
        (["10", "9", "-1"], ("-1", "9", "10")),
        (["spam", "ham", "eggs"], ("eggs", "ham", "spam")),
        (["10", "9", "x"], ("10", "9", "x")),
        (["1_10", "2_1", "11"], ("11", "1_10", "2_1")),
    ],
)
def test_classes_are_ordered_by_size_or_by_name(
    tmp_path: Path, labels: list[str], order: tuple[str, ...]
) -> None:
    lines = [(f"some words of text {i}", labels[i % 3]) for i in range(30)]
    assert load_data(f"text:{write_csv(tmp_path / 'a.csv', lines)}").class_names == order


def test_texts_without_labels_are_read_from_a_column_of_any_name(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text\none\n\ntwo\n")
    assert read_texts(path, TextOptions()) == ("one", "two")
    path.write_text("one\ntwo\n")
    assert read_texts(path, TextOptions()) == ("one", "two")
    path.write_text("id,body\n1,one\n2,\n")
    assert read_texts(path, TextOptions(text_column="body")) == ("one",)


@given(
    lines=st.lists(
        st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1).filter(str.strip),
        min_size=6,
        max_size=12,
    )
)
def test_any_text_comes_back_from_json_lines(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str]
) -> None:
    path = tmp_path_factory.mktemp("lines") / "a.jsonl"
    records = [{"text": text, "label": i % 2} for i, text in enumerate(lines)]
    path.write_text("\n".join(json.dumps(r, ensure_ascii=False) for r in records), "utf-8")
    assert read_labelled(path, TextOptions()).texts == tuple(lines)


def _store(data: DataSplits, role: str) -> TokenStore:
    store = getattr(data, role).samples.store
    assert isinstance(store, TokenStore)
    return store


def test_a_zero_with_a_sign_is_no_class_of_its_own(tmp_path: Path) -> None:
    zeros = ("-0.0", "0.0", "0", "-0")
    lines = [(f"some words of text {i}", zeros[i % 4] if i % 2 else "1") for i in range(40)]
    data = load_data(f"text:{write_csv(tmp_path / 'a.csv', lines)}")
    assert data.class_names == ("0", "1")
    # 20 of each, 4 of them to test, then a fifth of 16 to search.
    assert data.test.labels.bincount().tolist() == [4, 4]


def _texts(split: Split) -> set[str]:
    store = split.samples.store
    assert isinstance(store, TokenStore)
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
    learned = {*_store(data, "train").texts, *_store(data, "search").texts}
    assert learned == {text for text, _ in rows()} - {first[0]}
    assert "1 training texts that are test texts, too, were left out" in data.note
    assert data.unlabeled is not None
    assert _store(data, "unlabeled").texts == (second[0],)
    as_they_are = load_data(
        f"text:{train}", text=TextOptions(test_file=str(test), deduplicate=False)
    )
    assert len(as_they_are.train) + len(as_they_are.search) == len(rows())
    more.write_text(f"text\n{first[0]}\n")
    with pytest.raises(DataError, match="has no text that is not a test text, too"):
        load_data(f"text:{train}", text=options)


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
    assert set(_store(data, "search").texts) == kept
    assert len(data.train) == 25
    assert "1 training texts that are test texts, too, were left out" in data.note
    assert "1 search texts that are test texts, too, were left out" in data.note
    as_they_are = load_data("sst2", text=TextOptions(deduplicate=False))
    assert len(as_they_are.search) == 6
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
    assert _store(part, "test").texts == _store(whole, "test").texts
    assert "10 of the training texts were drawn; the search split is a part of them" in part.note


def test_unlabeled_texts_are_cleaned_and_kept_once(tmp_path: Path) -> None:
    more = tmp_path / "more.csv"
    more.write_text("text\nOne More\none more\nanother\n")
    options = TextOptions(unlabeled_file=str(more), cleaning=Cleaning(lower=True))
    data = load_data(f"text:{write_csv(tmp_path / 'a.csv')}", text=options)
    assert data.unlabeled is not None
    assert _store(data, "unlabeled").texts == ("one more", "another")
    assert data.unlabeled.labels.tolist() == [-1, -1]


def test_words_lose_their_case_their_endings_and_their_stops() -> None:
    assert clean(["The Cats ARE here"], Cleaning(lower=True)) == ["the cats are here"]
    assert clean(["cats and houses"], Cleaning(lemmas=True)) == ["cat and house"]
    assert clean(["cats and houses"], Cleaning(stop_words=True)) == ["cats houses"]
    russian = Cleaning(lower=True, lemmas=True, language="ru")
    assert clean(
        ["\u041a\u041d\u0418\u0413\u0418 \u0438 \u043a\u043e\u0448\u043a\u0438"], russian
    ) == ["\u043a\u043d\u0438\u0433\u0430 \u0438 \u043a\u043e\u0448\u043a\u0430"]


def test_a_list_of_options_by_name_holds_those_of_the_cleaning_too() -> None:
    given_by_name = {"max_length": "64", "drop_empty": "true", "lemmas": True, "language": "ru"}
    assert TextOptions.from_pairs(given_by_name, "--set") == TextOptions(
        max_length=64, drop_empty=True, cleaning=Cleaning(lemmas=True, language="ru")
    )
    assert TextOptions.from_pairs({}, "--set") == TextOptions()


def test_the_embedded_texts_are_the_same_each_time_and_read_in_seconds() -> None:
    begun = time.process_time()
    read = docstrings.__wrapped__()
    assert time.process_time() - begun < 5
    assert read == docstrings()
    assert {len(text.split()) > 60 for text in read.texts} == {False}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty data set; what is unpacked of it stays in the folder of the test."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    folder = tmp_path / "set"
    folder.mkdir()
    return folder


def test_a_test_part_whose_classes_are_kept_back_is_passed_over(hub: Path) -> None:
    numbered = [(text, str(int(label == "pos"))) for text, label in rows()]
    write_csv(hub / "train.csv", numbered)
    write_csv(hub / "test.csv", [(f"secret {i}", "-1") for i in range(5)])
    write_csv(hub / "validation.csv", [(f"open {i}", str(i % 2)) for i in range(6)])
    data = load_data(f"hfdata:{hub}")
    assert _store(data, "test").texts == tuple(f"open {i}" for i in range(6))
    with pytest.raises(
        InputError, match=r"test_fraction=0\.3: the test texts are those of hfdata:"
    ):
        load_data(f"hfdata:{hub}", text=TextOptions(test_fraction=0.3))


def test_a_data_set_without_a_test_part_is_divided(hub: Path) -> None:
    write_csv(hub / "train.csv")
    data = load_data(f"hfdata:{hub}")
    assert (len(data.train), len(data.search), len(data.test)) == (26, 6, 8)


def test_a_data_set_without_training_texts_is_refused(hub: Path) -> None:
    write_csv(hub / "test.csv")
    with pytest.raises(DataError, match="has no split 'train', but test"):
        load_data(f"hfdata:{hub}")


def test_a_text_is_as_long_as_it_is(tmp_path: Path) -> None:
    long = "word " * 40_000  # 200,000 characters, beyond the limit of the csv module
    before = csv.field_size_limit()
    path = write_csv(tmp_path / "a.csv", [*rows(), (long, "pos")])
    assert read_labelled(path, TextOptions()).texts[-1] == long
    assert csv.field_size_limit() == before


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
    store = data.train.samples.store
    assert isinstance(store, TokenStore)
    longer = sum("k" in text for text in store.texts) / len(store.texts)
    assert data.note == f"{longer:.1%} of the training texts are cut off after max_length=8 tokens"
    fits = TextOptions.model_validate({**options, "max_length": 13})
    assert load_data(f"text:{path}", text=fits).note == ""


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


@pytest.mark.parametrize("missing", ["nan", "NaN"])
def test_a_missing_label_among_numbers_is_no_class(missing: str, tmp_path: Path) -> None:
    lines = [(f"some words of text {i}", ("0", "1", missing)[i % 3]) for i in range(30)]
    file = write_csv(tmp_path / "a.csv", lines)
    with pytest.raises(
        DataError, match=f"a.csv' are whole numbers and '{missing}', which marks a missing one"
    ):
        load_data(f"text:{file}")
    lines = [(f"some words of text {i}", ("gran", missing)[i % 2]) for i in range(30)]
    named = load_data(f"text:{write_csv(tmp_path / 'b.csv', lines)}").class_names
    assert set(named or ()) == {"gran", missing}


def test_whole_numbers_of_any_length_are_classes_by_size(tmp_path: Path) -> None:
    long = "1" * 5000  # more digits than int reads
    lines = [(f"some words of text {i}", (long, "9")[i % 2]) for i in range(30)]
    data = load_data(f"text:{write_csv(tmp_path / 'a.csv', lines)}")
    assert data.class_names == ("9", long)
