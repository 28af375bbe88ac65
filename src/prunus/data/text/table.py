"""Read a table of texts: CSV, TSV, JSON lines or parquet, packed by xz or gzip or not."""

import contextlib
import csv
import gzip
import io
import json
import lzma
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
_OTHER_MARKS = (";", "\t", "|")  # that tables named .csv have between their cells, too
_LONGEST_CELL = 2**31 - 1  # the most that the csv module takes on every system


@dataclass(frozen=True)
class Table:
    """Cells by column; a missing cell is None. Rows are counted from 1, the header apart."""

    name: str
    columns: tuple[str, ...]
    rows: list[list[Any]]
    header: bool


def read_table(path: Path, options: TextOptions) -> Table:
    """Read a file by its suffix.

    Raises:
        DataError: The file is missing, empty or damaged.
        InputError: Its kind or the encoding is unknown.
    """
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
            remedy = commas(text.lstrip().partition("\n")[0]) or "mend its quotes"
            raise DataError(f"'{path}' is no valid CSV: {error}; {remedy}") from error


def commas(first: str) -> str:
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


def _with_header(path: Path, lines: list[list[str]], named: Sequence[str | None]) -> Table:
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
            remedy = (commas(lines[0][0]) if len(columns) == 1 else "") or "mend it"
            raise DataError(
                f"'{path}' row {number} has {len(row)} cells, the first row {len(columns)}; {remedy}"
            )
    return Table(str(path), columns, rows, header)


def _again(lines: Sequence[Sequence[str]], column: int) -> bool:
    """Whether the first row's cell comes again in its column."""
    first, *others = (" ".join(line[column].split()) for line in lines if column < len(line))
    return first in others


def _jsonl(path: Path, text: str) -> Table:
    records = list(_json_records(path, text))
    columns = tuple(dict.fromkeys(name for record in records for name in record))
    if records and not columns:
        raise DataError(f"'{path}' has objects without names; give a text and a label to each")
    rows = [[record.get(name) for name in columns] for record in records]
    return Table(str(path), columns, rows, header=True)


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


def _parquet(path: Path, raw: bytes) -> Table:
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
    return Table(str(path), columns, rows, header=True)
