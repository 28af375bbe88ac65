"""Tables and reports on the terminal. No torch."""

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console

from prunus.errors import InputError
from prunus.records import Comparison, RunRecord
from prunus.report import rich_table, write_report

COMPARISON_FILE = "comparison.json"
RECORD_FILE = "record.json"
_PIPED_WIDTH = 120


def console() -> Console:
    """For results; wide enough for a table where the output is piped."""
    found = Console()
    return found if found.is_terminal else Console(width=max(found.width, _PIPED_WIDTH))


def run_report(path: Path, out: Path | None) -> None:
    """Read records, show the table, write the report."""
    comparison, folder = read_records(path)
    show(comparison, out or folder)


def show(comparison: Comparison, folder: Path | None) -> None:
    """Print the table; write the report where there is a folder for it."""
    screen = console()
    screen.print(rich_table(comparison))
    if folder is not None:
        screen.print(f"report: {write_report(comparison, folder)}", soft_wrap=True, highlight=False)


def read_records(path: Path) -> tuple[Comparison, Path]:
    """A comparison, and the folder that it lies in.

    Raises:
        InputError: There is no such file, or it holds no records.
    """
    file = path
    if path.is_dir():
        found = [path / name for name in (COMPARISON_FILE, RECORD_FILE) if (path / name).is_file()]
        if not found:
            raise InputError(
                f"'{path}' holds no {COMPARISON_FILE} and no {RECORD_FILE}; name the folder of a "
                "finished run"
            )
        file = found[0]
    try:
        content: Any = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"'{path}' cannot be read: {error.strerror}; name a run folder or a JSON file"
        ) from error
    except ValueError as error:
        raise InputError(f"'{file}' is no JSON; name a run folder or its records") from error
    return _comparison(content, file), file.parent


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
