"""Texts and their classes from the columns of a table: those named, or those whose contents tell."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunus.data.text.options import TextOptions
from prunus.data.text.table import LABEL_NAMES, TEXT_NAMES, Table, commas, read_table
from prunus.errors import DataError, InputError

_FEW_LABELS = 50  # a column with more values is no label that can be guessed
_MOST_CLASSES = 1000
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
    return _labelled(read_table(path, options), options, divided=divided)


def labelled_rows(
    name: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
    options: TextOptions,
    *,
    divided: bool = True,
) -> LabelledTexts:
    """Texts and labels of rows that were read elsewhere, with the checks of ``read_labelled``."""
    table = Table(name, tuple(columns), [list(row) for row in rows], header=True)
    return _labelled(table, options, divided=divided)


def read_texts(path: Path, options: TextOptions) -> tuple[str, ...]:
    """Read texts without labels; rows without text are left out.

    Raises:
        DataError: The file is missing or damaged, or holds no text.
        InputError: The column or the encoding cannot be used.
    """
    table = read_table(path, options)
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


def _labelled(table: Table, options: TextOptions, *, divided: bool) -> LabelledTexts:
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


def _find_columns(table: Table, options: TextOptions) -> tuple[int, int]:
    """Columns of texts and of labels: those named, else those whose names or contents tell."""
    if len(table.columns) < 2:
        first = str(table.rows[0][0]) if table.columns == ("column 1",) else table.columns[0]
        remedy = commas(first) or "give a column of texts and one of labels"
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


def _text_column(table: Table, options: TextOptions, taken: set[int]) -> int:
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


def _guess_label(table: Table, text: int) -> int:
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


def _by_name(table: Table, names: Sequence[str], taken: set[int]) -> list[int]:
    if not table.header:
        return []
    return [i for i, c in enumerate(table.columns) if c.lower() in names and i not in taken]


def _named(table: Table, name: str, option: str) -> int:
    if name not in table.columns:
        raise InputError(
            f"{option}='{name}' is no column of '{table.name}'; it has {', '.join(table.columns)}"
        )
    return table.columns.index(name)


def _mean_length(table: Table, column: int) -> float:
    cells = [row[column] for row in table.rows]
    return sum(len(cell) for cell in cells if isinstance(cell, str)) / max(1, len(cells))


def _text(table: Table, cell: Any, number: int, column: int) -> str:
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


def _label(table: Table, cell: Any, number: int, column: int) -> str:
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


def _check_classes(table: Table, labels: Sequence[str]) -> None:
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
