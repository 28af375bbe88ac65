"""Tables of texts: headers, guesses of columns, names of classes; cleaning."""

import csv
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunus.data import (
    Cleaning,
    TextOptions,
    load_data,
)
from prunus.data.text.clean import clean
from prunus.data.text.labelled import LabelledTexts, read_labelled, read_texts
from prunus.errors import DataError
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


def test_a_zero_with_a_sign_is_no_class_of_its_own(tmp_path: Path) -> None:
    zeros = ("-0.0", "0.0", "0", "-0")
    lines = [(f"some words of text {i}", zeros[i % 4] if i % 2 else "1") for i in range(40)]
    data = load_data(f"text:{write_csv(tmp_path / 'a.csv', lines)}")
    assert data.class_names == ("0", "1")
    # 20 of each, 4 of them to test, then a fifth of 16 to search.
    assert data.test.labels.bincount().tolist() == [4, 4]


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


def test_a_text_is_as_long_as_it_is(tmp_path: Path) -> None:
    long = "word " * 40_000  # 200,000 characters, beyond the limit of the csv module
    before = csv.field_size_limit()
    path = write_csv(tmp_path / "a.csv", [*rows(), (long, "pos")])
    assert read_labelled(path, TextOptions()).texts[-1] == long
    assert csv.field_size_limit() == before


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
