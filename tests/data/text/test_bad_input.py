"""A mistake in the user's file or options is told in one line that says what to do."""

import gzip
import io
import json
import lzma
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prunus.data import TextOptions, load_data
from prunus.errors import DataError, InputError
from prunus.extras import require_extra
from tests.data.text.makers import csv_text, rows, tiny_tokenizer

GOOD = csv_text(rows())


def _parquet(columns: dict[str, list[Any]]) -> bytes:
    arrow = require_extra("pyarrow", "text")
    written = io.BytesIO()
    require_extra("pyarrow.parquet", "text").write_table(arrow.table(columns), written)
    return written.getvalue()


def _bytes_as_text() -> Any:
    arrow = require_extra("pyarrow", "text")
    offsets = arrow.py_buffer(b"".join(n.to_bytes(4, "little") for n in (0, 1, 2)))
    return arrow.StringArray.from_buffers(2, offsets, arrow.py_buffer(b"\xff\xfe"))


def _late_days() -> Any:
    arrow = require_extra("pyarrow", "text")
    return arrow.array([2**60, 0], arrow.timestamp("ms"))


def _jsonl(*records: object) -> str:
    return "\n".join(json.dumps(record) for record in records)


def _good_records() -> list[object]:
    return [{"text": text, "label": label} for text, label in rows()]


# File name, its content, options, what the message says, the remedy in it.
CASES: dict[str, tuple[str, str | bytes, dict[str, Any], str, str]] = {
    "empty file": ("a.csv", "", {}, "is empty", "give a file"),
    "white space alone": ("a.csv", " \n\n", {}, "is empty", "give a file"),
    "byte order mark alone": ("a.csv", b"\xef\xbb\xbf", {}, "has no rows|is empty", "give a file"),
    "mark alone in TSV": ("a.tsv", b"\xef\xbb\xbf", {}, "has no rows|is empty", "give a file"),
    "header alone": ("a.csv", "text,label\n", {}, "has no rows", "give a file"),
    "semicolons": (
        "a.csv",
        GOOD.replace(",", ";"),
        {},
        "has one column",
        "where a .csv has commas",
    ),
    "semicolons and quotes": (
        "a.csv",
        GOOD.replace("text,", "text;").replace("a good", '"a good"').replace(",pos", ";pos"),
        {},
        "is no valid CSV",
        "first line has ';' where a .csv has commas: write commas",
    ),
    "semicolons and commas": (
        "a.csv",
        "text;label\none, two;1\n",
        {},
        "row 2 has 2 cells, the first row 1",
        "first line has ';' where a .csv has commas: write commas",
    ),
    "bars and no header": ("a.csv", "one two|1\none three|0\n", {}, "has one column", "has '|'"),
    "header of unusual names": (
        "a.csv",
        csv_text(rows(), header="tweet,verdict"),
        {},
        "class 'verdict' has 1 texts",
        "name its columns: text_column, label_column",
    ),
    "unknown kind": ("a.docx", GOOD, {}, "no known kind", "use .csv, .tsv, .jsonl or .parquet"),
    "no suffix": ("a", GOOD, {}, "no known kind", "use .csv"),
    "damaged xz": ("a.csv.xz", b"no xz at all", {}, "is damaged", "pack it again"),
    "xz cut short": (
        "a.csv.xz",
        lzma.compress(GOOD.encode())[:-30],
        {},
        "is damaged",
        "pack it again",
    ),
    "damaged gzip": ("a.csv.gz", b"no gzip", {}, "is damaged", "pack it again"),
    "gzip cut short": (
        "a.csv.gz",
        gzip.compress(GOOD.encode())[:-12],
        {},
        "is damaged",
        "pack it again",
    ),
    "damaged parquet": ("a.parquet", b"PAR1 and no more", {}, "no valid parquet", "write it again"),
    "not UTF-8": (
        "a.csv",
        GOOD.replace("day number 1,", "\u0434\u0435\u043d\u044c,").encode("cp1251"),
        {},
        "line 4 is not utf-8",
        "set encoding .* cp1251",
    ),
    "unknown encoding": ("a.csv", GOOD, {"encoding": "utf-99"}, "'utf-99' is unknown", "use one"),
    "NUL byte": ("a.csv", "text,label\nok,1\nbr\0ken,0\n", {}, "line 3 holds a NUL", "mend it"),
    "open quote": ("a.csv", GOOD + '"never closed,pos\n', {}, "no valid CSV", "mend its quotes"),
    "row too short": ("a.csv", GOOD + "alone\n", {}, "row 41 has 1 cells", "mend it"),
    "row too long": ("a.csv", GOOD + "a,b,c\n", {}, "row 41 has 3 cells", "mend it"),
    "TSV row too short": ("a.tsv", "text\tlabel\na\t1\nb\n", {}, "row 2 has 1 cells", "mend it"),
    "two columns of one name": (
        "a.csv",
        "text,Text,label\na,b,c\n",
        {},
        "two columns",
        "give each",
    ),
    "one column": ("a.csv", "text\na\nb\n", {}, "has one column", "give a column of texts and one"),
    "broken JSON": ("a.jsonl", '{"text": "a"\n', {}, "line 1 is no JSON", "mend it"),
    "JSON list": (
        "a.jsonl",
        _jsonl({"text": "a", "label": 1}, [1]),
        {},
        "line 2 is a list",
        "write",
    ),
    "half of a character": (
        "a.jsonl",
        '{"text": "broken \\ud800", "label": 1}\n' + _jsonl(*_good_records()),
        {},
        "row 1: .*half of a character",
        "mend it",
    ),
    "text that is a number": (
        "a.jsonl",
        _jsonl({"text": 5, "label": "pos"}, *_good_records()),
        {},
        "row 1: column 'text' holds a int",
        "text_column",
    ),
    "label that is a list": (
        "a.jsonl",
        _jsonl(*_good_records(), {"text": "more", "label": ["pos"]}),
        {},
        "row 41: column 'label' holds a list",
        "label_column",
    ),
    "unknown text column": (
        "a.csv",
        GOOD,
        {"text_column": "body"},
        "no column",
        "it has text, label",
    ),
    "unknown label column": ("a.csv", GOOD, {"label_column": "kind"}, "no column", "it has text"),
    "one column for both": (
        "a.csv",
        GOOD,
        {"text_column": "label", "label_column": "label"},
        "are both 'label'",
        "name two columns",
    ),
    "two columns like texts": (
        "a.csv",
        "label,review,content\n1,some words are here,other words there\n" * 1,
        {},
        "both 'review' and 'content'|both 'content' and 'review'",
        "text_column=",
    ),
    "two columns like labels": (
        "a.csv",
        "text,first,second\na long text,1,2\n",
        {},
        "2 columns look like labels",
        "label_column=NAME, of text, first, second",
    ),
    "numbers where labels are asked": (
        "a.csv",
        "text,number\n" + "".join(f"a text {i},{i}\n" for i in range(60)),
        {},
        "no column looks like labels",
        "label_column=NAME",
    ),
    "numbers as labels": (
        "a.csv",
        "text,label\n" + "".join(f"a text {i},{i}\n" for i in range(60)),
        {},
        "60 classes in 60 rows",
        "label_column",
    ),
    "rows without text": (
        "a.csv",
        GOOD + ",pos\n",
        {},
        "1 rows without text.*row 41",
        "drop_empty",
    ),
    "nothing but empty texts": (
        "a.csv",
        "text,label\n,1\n ,0\n",
        {"drop_empty": True},
        "no text in column 'text'",
        "name another",
    ),
    "row without label": ("a.csv", GOOD + "words,\n", {}, "row 41 has no label", "mend it"),
    "label NaN": (
        "a.parquet",
        _parquet({"text": ["a", "b", "c"], "label": [1.0, 0.0, float("nan")]}),
        {},
        "row 3 has no label",
        "mend it",
    ),
    "one class alone": ("a.csv", "text,label\na,x\nb,x\nc,x\n", {}, "one class alone, 'x'", "two"),
    "rare class": ("a.csv", GOOD + "w,odd\n", {}, "class 'odd' has 1 texts", "every class needs 3"),
    "class of copies": (
        "a.csv",
        GOOD + "same,odd\n" * 4,
        {},
        "class 'odd' has 1 .*different",
        "every class needs 3|deduplicate",
    ),
    "class of two lines": (
        "a.csv",
        GOOD + 'w,"od\nd"\n',
        {},
        "class 'od d'",
        "every class needs 3",
    ),
    "column of two lines": (
        "a.csv",
        '"te\nxt",label\na,1\n',
        {"text_column": "b"},
        "te xt",
        "it has",
    ),
    "too few texts": (
        "a.csv",
        csv_text(rows(3)),
        {"test_fraction": 0.9},
        "6 texts cannot be divided",
        "give more texts",
    ),
    "too many to train on": ("a.csv", GOOD, {"train_size": 33}, "has 32 training", "give no more"),
    # 36 and 4 texts: 29 and 3 are left to train on, and of 4 the rare one has 4 x 3 / 32 = 0.4
    "class without training texts": (
        "a.csv",
        csv_text([(f"text number {i}", "rare" if i < 4 else "usual") for i in range(40)]),
        {"train_size": 4},
        "class 'rare' has test texts, and none to train on",
        r"give a larger train_size \(now 4\) or a smaller test_fraction \(now 0.2\) or more texts of it",
    ),
    "class in the test texts alone": (
        "a.csv",
        csv_text([(f"text number {i}", "rare" if i < 4 else "usual") for i in range(40)]),
        {"test_fraction": 0.9},
        "class 'rare' has test texts, and none to train on",
        r"give a smaller test_fraction \(now 0.9\) or more texts of it",
    ),
    "no test file": (
        "a.csv",
        GOOD,
        {"test_file": "not/there.csv"},
        "cannot be read",
        "name a file",
    ),
    "objects without names": ("a.jsonl", "{}\n{}\n", {}, "objects without names", "give a text"),
    "brackets without end": ("a.jsonl", "[" * 100_000, {}, "line 1 is no JSON", "mend it"),
    "parquet of other bytes": (
        "a.parquet",
        _parquet({"text": _bytes_as_text(), "label": [1, 2]}),
        {},
        "has a cell that cannot be read",
        "mend it",
    ),
    "parquet of days after all": (
        "a.parquet",
        _parquet({"text": ["a b", "c d"], "label": [1, 2], "day": _late_days()}),
        {},
        "has a cell that cannot be read",
        "mend it",
    ),
    "no unlabeled file": ("a.csv", GOOD, {"unlabeled_file": "no.csv"}, "cannot be read", "name a"),
}


@pytest.mark.parametrize(
    ("file", "content", "options", "problem", "remedy"), CASES.values(), ids=CASES.keys()
)
def test_a_mistake_is_told_in_one_line_with_its_remedy(
    tmp_path: Path,
    file: str,
    content: str | bytes,
    options: dict[str, Any],
    problem: str,
    remedy: str,
) -> None:
    path = tmp_path / file
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises((DataError, InputError)) as caught:
        load_data(f"text:{path}", text=TextOptions(**options))
    message = str(caught.value)
    assert re.search(problem, message)
    assert re.search(remedy, message)
    assert "\n" not in message


def _missing(folder: Path) -> str:
    return f"text:{folder / 'none.csv'}"


def _folder(folder: Path) -> str:
    return f"text:{folder}"


def _empty_hub(folder: Path) -> str:
    return f"hfdata:{folder}"


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        (_missing, "No such file or directory; name a file"),
        (_folder, "is a folder; name a file"),
        (_empty_hub, "cannot be loaded: .*; check its name"),
    ],
)
def test_a_place_without_texts_is_refused(
    tmp_path: Path, name: Callable[[Path], str], problem: str
) -> None:
    with pytest.raises(DataError, match=problem) as caught:
        load_data(name(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_class_of_the_test_file_must_be_known(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text(GOOD)
    test = tmp_path / "test.csv"
    test.write_text("text,label\nsome words,pos\nother words,odd\n")
    with pytest.raises(DataError, match="class 'odd' is in the test texts and not in the training"):
        load_data(f"text:{tmp_path / 'train.csv'}", text=TextOptions(test_file=str(test)))


def test_search_takes_no_class_whole(tmp_path: Path) -> None:
    lines = [(f"text number {i}", "rare" if i < 3 else "usual") for i in range(40)]
    (tmp_path / "a.csv").write_text(csv_text(lines))
    (tmp_path / "test.csv").write_text("text,label\nsome words,rare\n")
    options = TextOptions(test_file=str(tmp_path / "test.csv"))
    data = load_data(f"text:{tmp_path / 'a.csv'}", text=options, search_size=38)
    assert data.train.labels.tolist() == [0, 1]
    assert data.search.labels.bincount().tolist() == [2, 36]


def test_an_unlabeled_file_with_a_header_alone_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text(GOOD)
    more = tmp_path / "more.csv"
    more.write_text("sentence,comment\n")
    with pytest.raises(DataError, match="has no (column of texts|text)"):
        load_data(f"text:{tmp_path / 'train.csv'}", text=TextOptions(unlabeled_file=str(more)))


@pytest.mark.parametrize("size", [0, -1, 32, 1000])
def test_a_search_split_of_an_impossible_size_is_refused(tmp_path: Path, size: int) -> None:
    (tmp_path / "a.csv").write_text(GOOD)
    with pytest.raises(InputError, match=f"search_size is {size}: use 1 to 30"):
        load_data(f"text:{tmp_path / 'a.csv'}", search_size=size)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"colour": 1}, "--data-option: no setting 'colour'; settings are .*text_column"),
        ({"max_length": 2}, "--data-option max_length=2: .*greater than or equal to 4"),
        ({"test_fraction": 1.5}, "test_fraction=1.5: .*less than 1"),
        ({"language": "de"}, "language='de': .*'en' or 'ru'"),
        ({"drop_empty": "perhaps"}, "drop_empty='perhaps'"),
        ({"train_size": 3}, "train_size=3: .*greater than or equal to 4"),
        ({"cleaning": {}}, "no setting 'cleaning'"),
    ],
)
def test_a_bad_option_is_named_with_its_value(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        TextOptions.from_pairs(given, "--data-option")
    assert "\n" not in str(caught.value)


def test_options_of_images_and_of_texts_do_not_mix() -> None:
    with pytest.raises(InputError, match="mean, std and image_size are for images"):
        load_data("docstrings", image_size=32)
    with pytest.raises(InputError, match="'digits' is no set of texts"):
        load_data("digits", text=TextOptions())


def test_a_shared_set_without_its_folder_tells_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PRUNUS_DATA", raising=False)
    with pytest.raises(DataError, match="PRUNUS_DATA names \\(not set\\); set it"):
        load_data("sst2")


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("sms", {"test_file": "mine.csv"}, "test_file=mine.csv: data 'sms' does not take it, but "),
        ("ru_toxic", {"text_column": "comment"}, "text_column=comment: data 'ru_toxic' does not"),
        ("sms", {"label_column": "column 1"}, "label_column=column 1: data 'sms' does not take it"),
        ("sst2", {"encoding": "cp1251"}, "encoding=cp1251: data 'sst2' does not take it"),
        ("sst2", {"test_fraction": 0.3}, "test_fraction=0.3: data 'sst2' does not take it"),
        ("docstrings", {"test_file": "mine.csv"}, "data 'docstrings' does not take it"),
        ("hfdata:mine", {"test_file": "mine.csv"}, "data 'hfdata:mine' does not take it"),
        ("hfdata:mine", {"encoding": "cp1251"}, "data 'hfdata:mine' does not take it"),
    ],
)
def test_a_setting_that_a_set_would_pass_by_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, given: dict[str, Any], said: str
) -> None:
    """Before anything is read: the sets are not there."""
    monkeypatch.delenv("PRUNUS_DATA", raising=False)
    with pytest.raises(InputError) as caught:
        load_data(name, text=TextOptions(**given))
    message = str(caught.value)
    assert said in message
    takes = message.partition("does not take it, but ")[2].partition(";")[0].split(", ")
    assert {"train_size", "max_length", "unlabeled_file"} < set(takes)
    assert not set(given) & set(takes)
    assert message.endswith("; leave it out, or give a file of your own: text:FILE")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("files", "given", "said"),
    [
        (("a.parquet",), {"encoding": "cp1251"}, "encoding=cp1251: a parquet file has one"),
        (("a.parquet", "b.PARQUET"), {"encoding": "cp1251"}, "encoding=cp1251: a parquet file"),
        (("a.csv",), {"language": "ru"}, "language=ru: it says whose stop words"),
        (("a.csv",), {"language": "ru", "lower": True}, "language=ru: it says whose stop words"),
    ],
)
def test_a_setting_that_says_nothing_of_these_files_is_refused(
    tmp_path: Path, files: tuple[str, ...], given: dict[str, Any], said: str
) -> None:
    """Before the files are looked for."""
    if len(files) > 1:
        given = {**given, "test_file": str(tmp_path / files[1])}
    with pytest.raises(InputError) as caught:
        load_data(f"text:{tmp_path / files[0]}", text=TextOptions.model_validate(given))
    assert said in str(caught.value) and str(caught.value).endswith("leave it out")


@pytest.mark.parametrize(
    "given",
    [
        {"encoding": "cp1251", "test_file": "b.csv"},
        {"encoding": "cp1251", "unlabeled_file": "b.jsonl"},
        {"language": "ru", "stop_words": True},
        {"language": "ru", "lemmas": True},
    ],
)
def test_a_setting_that_says_something_of_one_file_is_taken(
    tmp_path: Path, given: dict[str, Any]
) -> None:
    with pytest.raises(DataError, match=r"' cannot be read"):  # for it is not there
        load_data(f"text:{tmp_path / 'a.parquet'}", text=TextOptions.model_validate(given))


def test_settings_that_read_unlabeled_texts_are_no_mistake_beside_a_set_by_name(
    tmp_path: Path,
) -> None:
    """The set has its own columns; the file beside it need not."""
    more = tmp_path / "more.csv"
    more.write_bytes("id,body\n1,\u0434\u043e\u043c\n".encode("cp1251"))
    given = {"unlabeled_file": str(more), "text_column": "body", "encoding": "cp1251"}
    data = load_data(
        "docstrings", text=TextOptions.model_validate(given), tokenizer=tiny_tokenizer()
    )
    assert data.unlabeled is not None
    assert len(data.unlabeled) == 1


def test_settings_as_they_are_by_default_are_no_mistake() -> None:
    """The recipe of a record writes out all of them."""
    written = TextOptions.model_validate(TextOptions(max_length=16).model_dump())
    assert load_data("docstrings", text=written, tokenizer=tiny_tokenizer()).max_length == 16


def test_a_share_of_test_texts_is_refused_where_they_have_a_file(tmp_path: Path) -> None:
    for name in ("train.csv", "test.csv"):
        (tmp_path / name).write_text(GOOD)
    test = str(tmp_path / "test.csv")
    with pytest.raises(
        InputError, match=r"test_fraction=0\.5: the test texts are those of test_file="
    ):
        load_data(
            f"text:{tmp_path / 'train.csv'}", text=TextOptions(test_file=test, test_fraction=0.5)
        )


def test_a_set_with_search_texts_of_its_own_has_no_more_of_them() -> None:
    if not (Path(os.environ.get("PRUNUS_DATA", "")) / "text" / "sst2_val.tsv.xz").is_file():
        pytest.skip("the folder of shared data is not here")
    for size in (0, 6736):
        with pytest.raises(InputError, match=f"search_size is {size}: use 1 to 6[0-9]{{3}}, the"):
            load_data("sst2", search_size=size)
