"""Tables and reports on the terminal. No torch."""

import json
import sys
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console
from rich.text import Text

from prunus.cli.streams import silence
from prunus.errors import InputError, StorageError
from prunus.records import Comparison, RunRecord
from prunus.report import rich_table, write_report

COMPARISON_FILE = "comparison.json"
RECORD_FILE = "record.json"
_PIPED_WIDTH = 120


class _Screen(Console):
    """The standard output; that it takes no more is told in one line."""

    def print(self, *objects: Any, **options: Any) -> None:
        """Print, as every console does.

        Raises:
            StorageError: It cannot be written, as where it goes to a full disk.
        """
        try:
            super().print(*objects, **options)
        except OSError as error:
            silence(sys.stdout)
            raise StorageError(
                f"the output cannot be printed: {error.strerror or error}; send it elsewhere (with "
                "--out nothing is lost)"
            ) from error


def console() -> Console:
    """For results; wide enough for a table where the output is piped."""
    found = _Screen()
    return found if found.is_terminal else _Screen(width=max(found.width, _PIPED_WIDTH))


def say(line: str) -> None:
    """Print a line as it is: brackets and colons in a path are no markup, and it is not folded."""
    console().print(Text(line), soft_wrap=True)


def run_report(path: Path, out: Path | None) -> None:
    """Read records, show the table, write the report."""
    comparison, folder = read_records(path)
    show(comparison, out or folder)


def show(comparison: Comparison, folder: Path | None) -> None:
    """Write the report where there is a folder for it; then print, which may fail, the table."""
    report = None if folder is None else write_report(comparison, folder)
    console().print(rich_table(comparison))
    if report is not None:
        say(f"report: {report}")


def read_records(path: Path) -> tuple[Comparison, Path]:
    """A comparison, and the folder that it lies in.

    Raises:
        InputError: There is no such file, or it holds no records.
    """
    file = path
    try:
        file = _file_of(path)
        content: Any = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"'{path}' cannot be read: {error.strerror}; name a run folder or a JSON file"
        ) from error
    except (ValueError, RecursionError) as error:  # the latter: nested without end
        raise InputError(f"'{file}' is no JSON; name a run folder or its records") from error
    return _comparison(content, file), file.parent


def _file_of(path: Path) -> Path:
    """The file with the records of a run folder, or the file itself."""
    if not path.is_dir():
        return path
    found = [path / name for name in (COMPARISON_FILE, RECORD_FILE) if (path / name).is_file()]
    if not found:
        raise InputError(
            f"'{path}' holds no {COMPARISON_FILE} and no {RECORD_FILE}; name the folder of a "
            "finished run"
        )
    return found[0]


def _comparison(content: Any, file: Path) -> Comparison:
    if isinstance(content, dict) and "comparison" in content:  # report.json
        content = content["comparison"]
    try:
        if isinstance(content, dict) and "runs" in content:
            return Comparison.model_validate(content)
        record = RunRecord.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise InputError(
            f"'{file}' is no record of Prunus: {where}: {first['msg']}; name a run folder, its "
            f"{COMPARISON_FILE} or its {RECORD_FILE}"
        ) from error
    return Comparison.alone(record)
