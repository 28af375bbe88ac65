"""Write a report to a folder: HTML, Markdown, CSV and JSON, all or nothing. No torch."""

import contextlib
import json
from pathlib import Path

from pydantic_core import PydanticSerializationError

from prunus.errors import InputError
from prunus.plan import in_short
from prunus.records import Comparison, RunRecord
from prunus.report.html import render_html
from prunus.report.rows import comparison_rows
from prunus.report.summary import report_warnings, summary_sentences
from prunus.report.table import csv_table, json_rows, markdown_table


def write_report(comparison: Comparison | RunRecord, folder: Path | str) -> Path:
    """Write ``report.html``, ``.md``, ``.csv`` and ``.json`` into a folder, made where missing.

    All four are rendered and written beside their targets before the first takes its place, so that
    an error leaves an older report whole.

    Returns:
        The path of ``report.html``.

    Raises:
        InputError: It is neither a comparison nor the record of a run, the comparison is empty, its
            runs do not belong together, a run looked at the test split more than once for a number, a
            text is no Unicode, or the folder cannot be written.
    """
    comparison, folder = _compared(comparison), Path(folder)
    try:
        texts = {
            "report.html": render_html(comparison),
            "report.md": markdown_table(comparison),
            "report.csv": csv_table(comparison),
            "report.json": report_json(comparison),
        }
    except PydanticSerializationError as error:
        raise InputError(
            "a text in the records holds half a character (a surrogate alone), which no file can "
            f"hold; mend it in the records ({error})"
        ) from error
    parts = {folder / name: folder / f"{name}.part" for name in texts}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for part, text in zip(parts.values(), texts.values(), strict=True):
            part.write_text(text, encoding="utf-8", newline="\n")
        for path, part in parts.items():
            part.replace(path)
    except OSError as error:
        for part in parts.values():
            # What cannot be removed must not hide why it could not be written.
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
        raise InputError(
            f"cannot write the report to folder {folder}: {error.strerror or error}; name a folder "
            "that can be written"
        ) from error
    return folder / "report.html"


def _compared(given: object) -> Comparison:
    if isinstance(given, RunRecord):
        return Comparison.alone(given)
    if not isinstance(given, Comparison):
        shown = in_short(given) if isinstance(given, str) else f"a {type(given).__name__}"
        raise InputError(
            f"comparison is {shown}; give what compare(...) returns, or the record of a run; "
            "`prunus report FOLDER` reads them from a folder"
        )
    return given


def report_json(comparison: Comparison) -> str:
    """Summary, rows and warnings beside the records that they were computed from, as JSON."""
    rows = comparison_rows(comparison)
    content = {
        "version": 1,
        "title": comparison.title,
        "summary": summary_sentences(comparison, rows),
        "rows": json_rows(comparison),
        "warnings": report_warnings(comparison, rows),
        # Through pydantic's own JSON, which has no NaN: JSON does not know it.
        "comparison": json.loads(comparison.model_dump_json()),
    }
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
