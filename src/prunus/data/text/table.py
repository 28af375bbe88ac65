"""Read labelled texts from a table: CSV, TSV, JSON lines or parquet, packed by xz or gzip or not."""

import contextlib
import csv
import gzip
import io
import json
import lzma
import math
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunus.data.text.options import TextOptions
from prunus.errors import DataError, InputError
from prunus.extras import require_extra

TEXT_NAMES = ("text", "sentence", "comment", "message", "review", "content", "document")
LABEL_NAMES = ("label", "toxic", "target", "class", "category", "sentiment", "y")
_PACKED: dict[str, Callable[[bytes], bytes]] = {".xz": lzma.decompress, ".gz": gzip.decompress}
_BROKEN = (lzma.LZMAError, zlib.error, EOFError, OSError)
_FEW_LABELS = 50  # a column with more values is no label that can be guessed
_MOST_CLASSES = 1000
_OTHER_MARKS = (";", "\t", "|")  # that tables named .csv have between their cells, too
_LONGEST_CELL = 2**31 - 1  # the most that the csv module takes on every system
_HALF = re.compile("[\ud800-\udfff]")  # JSON can hold them, no encoding of texts can
WHOLE_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.0*)?")
"""A class that is a number, as tables write it, with a point or without."""
LEAST_TEXTS = 3  # of a class that is to be in every split


@dataclass(frozen=True)
class LabelledTexts:
    """Texts with the names of their classes, in the order of the file."""

    texts: tuple[str, ...]
    labels: tuple[str, ...]
    note: str = ""


@dataclass(frozen=True)
class _Table:
    """Cells by column; a missing cell is None. Rows are counted from 1, the header apart."""

    name: str
    columns: tuple[str, ...]
    rows: list[list[Any]]
    header: bool


def read_labelled(path: Path, options: TextOptions, *, divided: bool = True) -> LabelledTexts:
    """Read texts and labels.

    Args:
        path: Of the table.
        options: How it is read.
        divided: Whether the texts are to be divided into splits, so that every class needs several.

    Raises:
        DataError: The file is missing, damaged, or its rows cannot be used.
        InputError: A column or the encoding cannot be used.
    """
    return _labelled(_read(path, options), options, divided=divided)


def labelled_rows(
    name: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
    options: TextOptions,
    *,
    divided: bool = True,
) -> LabelledTexts:
    """Texts and labels of rows that were read elsewhere, with the checks of ``read_labelled``."""
    table = _Table(name, tuple(columns), [list(row) for row in rows], header=True)
    return _labelled(table, options, divided=divided)


def _labelled(table: _Table, options: TextOptions, *, divided: bool) -> LabelledTexts:
    path = table.name
    if not table.rows:
        raise DataError(f"'{path}' has no rows; give a file with texts and labels")
    text, label = _find_columns(table, options)
    texts, labels, empty = [], [], []
    for number, row in enumerate(table.rows, start=1):
        content = _text(table, row[text], number, text)
        if not content.strip():
            empty.append(number)
            continue
        texts.append(content)
        labels.append(_label(table, row[label], number, label))
    if empty and not options.drop_empty:
        raise DataError(
            f"'{path}' has {len(empty)} rows without text, the first is row {empty[0]}; mend them, or "
            "set drop_empty=true"
        )
    if not texts:
        raise DataError(f"'{path}' has no text in column '{table.columns[text]}'; name another")
    note = f"{len(empty)} rows without text were left out" if empty else ""
    if divided:
        _check_classes(table, labels)
    return LabelledTexts(tuple(texts), tuple(labels), note)


def read_texts(path: Path, options: TextOptions) -> tuple[str, ...]:
    """Read texts without labels; rows without text are left out.

    Raises:
        DataError: The file is missing or damaged, or holds no text.
        InputError: The column or the encoding cannot be used.
    """
    table = _read(path, options)
    if len(table.columns) == 1 and options.text_column is None:
        column = 0
    else:
        column = _text_column(table, options, set())
    found = [
        _text(table, row[column], number, column) for number, row in enumerate(table.rows, start=1)
    ]
    texts = tuple(text for text in found if text.strip())
    if not texts:
        raise DataError(f"'{path}' has no text; give a file with one text a row")
    return texts


def _read(path: Path, options: TextOptions) -> _Table:
    if path.is_dir():
        raise DataError(f"'{path}' is a folder; name a file: CSV, TSV, JSONL or parquet")
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"'{path}' cannot be read: {error.strerror}; name a file of texts"
        ) from error
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in _PACKED:
        try:
            raw = _PACKED[suffixes.pop()](raw)
        except _BROKEN as error:
            raise DataError(f"'{path}' is damaged: {error}; pack it again") from error
    kind = suffixes[-1] if suffixes else ""
    if not raw.strip():
        raise DataError(f"'{path}' is empty; give a file with texts and labels")
    if kind == ".parquet":
        return _parquet(path, raw)
    if kind in (".jsonl", ".ndjson"):
        return _jsonl(path, _decoded(path, raw, options.encoding))
    readers = {".csv": _csv_lines, ".tsv": _tsv_lines}
    if kind not in readers:
        raise InputError(
            f"'{path}' is of no known kind; use .csv, .tsv, .jsonl or .parquet, packed as .xz or .gz "
            "or not"
        )
    lines = readers[kind](path, _decoded(path, raw, options.encoding))
    return _with_header(path, lines, (options.text_column, options.label_column))


def _decoded(path: Path, raw: bytes, encoding: str) -> str:
    try:
        text = raw.decode(encoding)
    except LookupError as error:
        raise InputError(
            f"encoding='{encoding}' is unknown; use one such as utf-8 or cp1251"
        ) from error
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise DataError(
            f"'{path}' line {line} is not {encoding}: {error.reason}; set encoding to the file's, "
            "such as cp1251 or latin-1"
        ) from error
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise DataError(f"'{path}' line {line} holds a NUL byte; is it a text file? mend it")
    return text.removeprefix("\ufeff")


def _csv_lines(path: Path, text: str) -> list[list[str]]:
    with _whole_cells():
        try:
            return [row for row in csv.reader(io.StringIO(text, newline=""), strict=True) if row]
        except csv.Error as error:
            remedy = _commas(text.lstrip().partition("\n")[0]) or "mend its quotes"
            raise DataError(f"'{path}' is no valid CSV: {error}; {remedy}") from error


def _commas(first: str) -> str:
    """The remedy where a first line has no comma, but what other tables have in its place."""
    mark = next((mark for mark in _OTHER_MARKS if mark in first and "," not in first), None)
    return (
        "" if mark is None else f"its first line has {mark!r} where a .csv has commas: write commas"
    )


@contextlib.contextmanager
def _whole_cells() -> Iterator[None]:
    """Inside, a cell may be as long as its text: the limit is one of the whole process."""
    before = csv.field_size_limit(_LONGEST_CELL)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _tsv_lines(path: Path, text: str) -> list[list[str]]:
    """Line by line, without quotes: texts hold bare ones. The last column takes what is left."""
    del path
    lines = [line for line in text.split("\n") if line.strip("\r")]
    width = lines[0].count("\t") if lines else 0
    return [line.rstrip("\r").split("\t", width) for line in lines]


def _with_header(path: Path, lines: list[list[str]], named: Sequence[str | None]) -> _Table:
    """The first row is a header where it holds a usual name of a column, or one of ``named``.

    A usual name that comes again in its column is no name: classes are called ``toxic``, too.
    """
    if not lines:
        raise DataError(f"'{path}' is empty; give a file with texts and labels")
    first = [" ".join(cell.split()) for cell in lines[0]]
    known = {*TEXT_NAMES, *LABEL_NAMES}
    header = any(
        cell in named or (cell.lower() in known and not _again(lines, column))
        for column, cell in enumerate(first)
    )
    if header and len({cell.lower() for cell in first}) < len(first):
        twice = next(name for name, n in Counter(c.lower() for c in first).items() if n > 1)
        raise DataError(f"'{path}' has two columns '{twice}'; give each a name of its own")
    columns = tuple(first) if header else tuple(f"column {i + 1}" for i in range(len(first)))
    rows: list[list[Any]] = list(lines[1:] if header else lines)
    for number, row in enumerate(rows, start=1):
        if len(row) != len(columns):
            remedy = (_commas(lines[0][0]) if len(columns) == 1 else "") or "mend it"
            raise DataError(
                f"'{path}' row {number} has {len(row)} cells, the first row {len(columns)}; {remedy}"
            )
    return _Table(str(path), columns, rows, header)


def _again(lines: Sequence[Sequence[str]], column: int) -> bool:
    """Whether the first row's cell comes again in its column."""
    first, *others = (" ".join(line[column].split()) for line in lines if column < len(line))
    return first in others


def _jsonl(path: Path, text: str) -> _Table:
    records = list(_json_records(path, text))
    columns = tuple(dict.fromkeys(name for record in records for name in record))
    if records and not columns:
        raise DataError(f"'{path}' has objects without names; give a text and a label to each")
    rows = [[record.get(name) for name in columns] for record in records]
    return _Table(str(path), columns, rows, header=True)


def _json_records(path: Path, text: str) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"'{path}' line {number} is no JSON: {error}; mend it") from error
        if not isinstance(record, dict):
            raise DataError(
                f"'{path}' line {number} is a {type(record).__name__}; write one JSON object a line"
            )
        yield record


def _parquet(path: Path, raw: bytes) -> _Table:
    parquet = require_extra("pyarrow.parquet", "text")
    arrow = require_extra("pyarrow", "text")
    try:
        content = parquet.read_table(arrow.BufferReader(raw))
    except (arrow.ArrowInvalid, OSError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"'{path}' is no valid parquet: {reason}; write it again") from error
    columns = tuple(content.column_names)
    try:
        cells = [content.column(i).to_pylist() for i in range(len(columns))]
    except (ValueError, OverflowError) as error:  # bytes that are no UTF-8, days of no calendar
        reason = str(error).splitlines()[0]
        raise DataError(f"'{path}' has a cell that cannot be read: {reason}; mend it") from error
    rows = [list(row) for row in zip(*cells, strict=True)]
    return _Table(str(path), columns, rows, header=True)


def _find_columns(table: _Table, options: TextOptions) -> tuple[int, int]:
    """Columns of texts and of labels: those named, else those whose names or contents tell."""
    if len(table.columns) < 2:
        first = str(table.rows[0][0]) if table.columns == ("column 1",) else table.columns[0]
        remedy = _commas(first) or "give a column of texts and one of labels"
        raise DataError(f"'{table.name}' has one column; {remedy}")
    taken: set[int] = set()
    if options.label_column is not None:
        taken.add(_named(table, options.label_column, "label_column"))
    text = _text_column(table, options, taken)
    if options.label_column is None:
        taken = {_guess_label(table, text)}
    (label,) = taken
    if label == text:
        raise InputError(
            f"text_column and label_column are both '{table.columns[text]}'; name two columns"
        )
    return text, label


def _text_column(table: _Table, options: TextOptions, taken: set[int]) -> int:
    if options.text_column is not None:
        return _named(table, options.text_column, "text_column")
    by_name = _by_name(table, TEXT_NAMES, taken)
    if len(by_name) == 1:
        return by_name[0]
    lengths = {i: _mean_length(table, i) for i in range(len(table.columns)) if i not in taken}
    order = sorted(lengths, key=lambda i: -lengths[i])
    if not order or lengths[order[0]] == 0:
        raise DataError(
            f"'{table.name}' has no column of texts; name it: text_column=NAME, of "
            f"{', '.join(table.columns)}"
        )
    if len(order) > 1 and lengths[order[1]] > 0.5 * lengths[order[0]]:
        one, two = (table.columns[i] for i in order[:2])
        raise InputError(
            f"'{table.name}': both '{one}' and '{two}' look like texts; name one: text_column={one}"
        )
    return order[0]


def _guess_label(table: _Table, text: int) -> int:
    by_name = _by_name(table, LABEL_NAMES, {text})
    if len(by_name) == 1:
        return by_name[0]
    candidates = by_name or [i for i in range(len(table.columns)) if i != text]
    few = [i for i in candidates if len({str(row[i]) for row in table.rows}) <= _FEW_LABELS]
    if len(few) == 1:
        return few[0]
    what = "no column looks" if not few else f"{len(few)} columns look"
    raise InputError(
        f"'{table.name}': {what} like labels; name it: label_column=NAME, of "
        f"{', '.join(table.columns)}"
    )


def _by_name(table: _Table, names: Sequence[str], taken: set[int]) -> list[int]:
    if not table.header:
        return []
    return [i for i, c in enumerate(table.columns) if c.lower() in names and i not in taken]


def _named(table: _Table, name: str, option: str) -> int:
    if name not in table.columns:
        raise InputError(
            f"{option}='{name}' is no column of '{table.name}'; it has {', '.join(table.columns)}"
        )
    return table.columns.index(name)


def _mean_length(table: _Table, column: int) -> float:
    cells = [row[column] for row in table.rows]
    return sum(len(cell) for cell in cells if isinstance(cell, str)) / max(1, len(cells))


def _text(table: _Table, cell: Any, number: int, column: int) -> str:
    if cell is None:
        return ""
    if not isinstance(cell, str):
        raise DataError(
            f"'{table.name}' row {number}: column '{table.columns[column]}' holds a "
            f"{type(cell).__name__}, not a text; name another with text_column"
        )
    if _HALF.search(cell):
        raise DataError(
            f"'{table.name}' row {number}: column '{table.columns[column]}' holds half of a "
            "character (a lone surrogate); mend it"
        )
    return cell


def _label(table: _Table, cell: Any, number: int, column: int) -> str:
    """The name of a class: whole numbers are written without a point, 0 without a sign."""
    if isinstance(cell, list | dict | bytes):
        raise DataError(
            f"'{table.name}' row {number}: column '{table.columns[column]}' holds a "
            f"{type(cell).__name__}, not a class; name another with label_column"
        )
    missing = cell is None or (isinstance(cell, float) and math.isnan(cell))
    text = "" if missing else " ".join(str(cell).split())
    if not text:
        raise DataError(
            f"'{table.name}' row {number} has no label in column '{table.columns[column]}'; mend it"
        )
    if not WHOLE_NUMBER.fullmatch(text):
        return text
    whole = text.partition(".")[0]
    return "0" if whole == "-0" else whole  # one number, whatever its sign


def _check_classes(table: _Table, labels: Sequence[str]) -> None:
    """Refuse texts that cannot be divided into three splits with every class in each.

    Raises:
        DataError: There is one class alone, a class of too few texts, or a class for every text.
    """
    name, counts = table.name, Counter(labels)
    if len(counts) == 1:
        raise DataError(f"'{name}' has one class alone, '{labels[0]}'; give texts of two or more")
    if len(counts) > _MOST_CLASSES or (len(counts) > _FEW_LABELS and len(counts) > len(labels) / 3):
        raise DataError(
            f"'{name}' has {len(counts)} classes in {len(labels)} rows; name the column of the "
            "classes with label_column"
        )
    rare = min(counts, key=lambda label: counts[label])
    if counts[rare] < LEAST_TEXTS:
        few = f"'{name}': class '{rare}' has {counts[rare]} texts; every class needs "
        few += f"{LEAST_TEXTS} at least, one for each split"
        if rare == labels[0] and not table.header:
            few += "; if the first row is a header, name its columns: text_column, label_column"
        raise DataError(few)
