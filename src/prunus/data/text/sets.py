"""Texts of a set before they are split further: a file of one's own, a set by name, or of Hugging Face."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunus.data.text.docstrings import docstrings
from prunus.data.text.labelled import LabelledTexts, labelled_rows, read_labelled
from prunus.data.text.options import TextOptions
from prunus.errors import DataError, InputError, first_line
from prunus.extras import require_extra

FILE, HUB = "text:", "hfdata:"
NAMES = ("docstrings", "sst2", "sms", "ru_toxic")
_HUB_TESTS = ("test", "validation", "dev")
_NOT_TOLD = "-1"  # the label of texts whose classes a benchmark keeps to itself, as GLUE does


@dataclass(frozen=True)
class Parts:
    """Texts of a data set before they are split further; a search part where the set has its own."""

    train: LabelledTexts
    test: LabelledTexts | None = None
    search: LabelledTexts | None = None
    note: str = ""


def is_text_data(name: str) -> bool:
    """Whether a name is that of a set of texts."""
    return name in NAMES or name.startswith((FILE, HUB))


def read_parts(name: str, options: TextOptions) -> Parts:
    """The texts of a set, in the parts that it comes in.

    Raises:
        InputError: The name is unknown.
        DataError: The data is missing or broken.
    """
    if name.startswith(FILE):
        return _files(Path(name.removeprefix(FILE)), options)
    if name.startswith(HUB):
        return _hub(name.removeprefix(HUB), options)
    readers: dict[str, Callable[[], Parts]] = {
        "docstrings": lambda: Parts(docstrings()),
        "sst2": _sst2,
        "sms": lambda: Parts(_shared("SMSSpamCollection.tsv.xz", "column 2", "column 1")),
        "ru_toxic": lambda: Parts(_shared("ru_toxic_labeled.csv.xz", "comment", "toxic")),
    }
    if name not in readers:
        raise InputError(
            f"data '{name}' is unknown: use {', '.join(NAMES)}, text:FILE or hfdata:NAME"
        )
    return readers[name]()


def _files(path: Path, options: TextOptions) -> Parts:
    test = None
    if options.test_file is not None:
        test = read_labelled(Path(options.test_file), options, divided=False)
    return Parts(read_labelled(path, options), test)


def _sst2() -> Parts:
    def part(which: str) -> LabelledTexts:
        return _shared(f"sst2_{which}.tsv.xz", "sentence", "label")

    note = "the search split shares phrases with train: decisions on it are optimistic"
    return Parts(part("train"), part("test"), part("val"), note)


def _shared(file: str, text: str, label: str) -> LabelledTexts:
    root = os.environ.get("PRUNUS_DATA")
    path = Path(root or "") / "text" / file
    if not root or not path.is_file():
        raise DataError(
            f"'text/{file}' is not in the folder that PRUNUS_DATA names ({root or 'not set'}); set "
            "it, or give a file of your own: text:FILE"
        )
    return read_labelled(path, TextOptions(text_column=text, label_column=label, drop_empty=True))


def _hub(name: str, options: TextOptions) -> Parts:
    """A data set of Hugging Face: by name, or a local folder of files."""
    datasets = require_extra("datasets", "text")
    try:
        found = datasets.load_dataset(name)
    except Exception as error:  # the library raises many kinds
        reason = first_line(error)
        raise DataError(
            f"data set '{name}' cannot be loaded: {reason}; check its name, or give text:FILE"
        ) from error
    if "train" not in found:
        raise DataError(f"data set '{name}' has no split 'train', but {', '.join(found)}")
    train = _hub_part(name, found["train"], options)
    for split in _HUB_TESTS:
        if split in found:
            test = _hub_part(name, found[split], options, divided=False)
            if set(test.labels) != {_NOT_TOLD}:
                return Parts(train, test)
    return Parts(train)


def _hub_part(name: str, rows: Any, options: TextOptions, *, divided: bool = True) -> LabelledTexts:
    """Through the same checks as a file of the user's."""
    columns = tuple(rows.column_names)
    cells = [[row[column] for column in columns] for row in rows]
    return labelled_rows(f"hfdata:{name}", columns, cells, options, divided=divided)
