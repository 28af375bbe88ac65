"""One table, four ways: rich for the terminal, Markdown, CSV and JSON rows. No torch."""

import csv
import io
import math
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from prunus.records import Comparison
from prunus.report.columns import Column, table_columns
from prunus.report.formats import DASH, format_value, printable
from prunus.report.rows import Row, comparison_rows
from prunus.report.spread import Missing, Stat
from prunus.report.summary import (
    RULES,
    certificate_text,
    latency_setting,
    report_warnings,
    summary_sentences,
)

_MARKDOWN_SPECIAL = str.maketrans(
    {c: f"\\{c}" for c in "\\|*`[]"} | {"<": "&lt;", ">": "&gt;", "&": "&amp;"}
)


def rich_table(comparison: Comparison) -> Table:
    """The table for a terminal of 100 to 120 columns; summary and warnings stand below it.

    Columns without a number in any row are left out. Target and number of seeds stand in the title
    where all rows share them, else above the rows of a target and in a column of their own.

    Raises:
        InputError: The comparison is empty, or its runs do not belong together.
    """
    rows = comparison_rows(comparison)
    methods = [row for row in rows if row.kind != "dense"]
    columns = [c for c in shown_columns(comparison, rows, cells=False) if c.short]
    targets = list(dict.fromkeys(row.target for row in methods))
    counts = {len(row.seeds) for row in methods}
    shared = [targets[0]] if len(targets) == 1 else []
    shared += [_seeds(counts.pop())] if len(counts) == 1 else []
    title = ", ".join(text for text in (comparison.title, *shared) if text)
    table = Table(
        title=Text(printable(title)),
        caption=Text("\n".join(_terminal_summary(comparison, rows))),
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=0,
        pad_edge=False,
    )
    table.add_column("method", overflow="fold", min_width=9)
    if counts:
        table.add_column("n", justify="right", no_wrap=True)
    for column in columns:
        table.add_column(column.short, justify="right", no_wrap=True)
    table.add_column("certif.", no_wrap=True)
    for row in (row for row in rows if row.kind == "dense"):
        table.add_row(*_terminal_cells(row, columns, bool(counts)))
    for target in targets:
        table.add_section()
        if len(targets) > 1:
            table.add_row(Text(target or "no target", style="italic"))
        for row in (row for row in methods if row.target == target):
            table.add_row(*_terminal_cells(row, columns, bool(counts)))
    return table


def markdown_table(comparison: Comparison) -> str:
    """The report as Markdown: summary, table, warnings and rules.

    Raises:
        InputError: The comparison is empty, or its runs do not belong together.
    """
    rows = comparison_rows(comparison)
    columns = shown_columns(comparison, rows)
    heads = ["Method", "Target", "Seeds", *(c.header for c in columns), "Certificate"]
    lines = [f"# {_markdown(comparison.title)}", ""]
    lines += [_markdown(sentence) + "\n" for sentence in summary_sentences(comparison, rows)]
    lines.append("| " + " | ".join(heads) + " |")
    lines.append("|---|---|" + "---:|" * (len(heads) - 3) + "---|")
    for row in rows:
        method = _markdown(row.method) + (" (null baseline)" if row.kind == "null" else "")
        cells = [method, _markdown(row.target) or DASH, str(len(row.seeds) or DASH)]
        for column in columns:
            text = _markdown(cell_text(comparison, row, column))
            cells.append(f"**{text}**" if column.key in row.bold else text)
        lines.append("| " + " | ".join([*cells, certificate_text(row)]) + " |")
    warnings = report_warnings(comparison, rows)
    if warnings:
        lines += ["", "**Warnings**", "", *(f"- {_markdown(warning)}" for warning in warnings)]
    rules = [*RULES, *filter(None, [latency_setting(rows)])]
    return "\n".join([*lines, "", *(f"- {_markdown(rule)}" for rule in rules), ""])


def csv_table(comparison: Comparison) -> str:
    """One line per row with raw numbers: mean, std and n of each column, in the units of its name.

    Raises:
        InputError: The comparison is empty, or its runs do not belong together.
    """
    records = json_rows(comparison)
    lines = [
        {
            "method": record["method"],
            "target": record["target"],
            "kind": record["kind"],
            "seeds": " ".join(map(str, record["seeds"])),
            **{
                f"{key}_{part}": value.get(part)
                for key, value in record["values"].items()
                for part in ("mean", "std", "n", "missing")
            },
            "bold": " ".join(record["bold"]),
            "latency_conditions": record["latency_conditions"],
            "certificate_passed": (record["certificate"] or {}).get("passed"),
            "certificate_largest": (record["certificate"] or {}).get("largest"),
            "certificate_largest_float64": (record["certificate"] or {}).get("largest_float64"),
        }
        for record in records
    ]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def json_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """The rows as plain values for JSON; units are those of the keys, scores are in [0, 1].

    Raises:
        InputError: The comparison is empty, or its runs do not belong together.
    """
    keys = [column.key for column in table_columns(comparison)]
    return [
        {
            "method": row.method,
            "target": row.target,
            "kind": row.kind,
            "seeds": list(row.seeds),
            "final_stage": row.final_stage,
            "values": {key: _plain(row.values[key]) for key in keys},
            "bold": sorted(row.bold),
            "latency_conditions": row.conditions,
            "certificate": _plain_certificate(row),
            "warnings": list(row.warnings),
        }
        for row in comparison_rows(comparison)
    ]


def shown_columns(
    comparison: Comparison, rows: Sequence[Row], *, cells: bool = True
) -> tuple[Column, ...]:
    """The columns that hold a number or a reason in some row; a missing latency is always shown.

    With ``cells``, those that are written inside the cell of another column are left out.
    """
    return tuple(
        column
        for column in table_columns(comparison)
        if not (cells and column.inside)
        and (
            column.key == "latency_ms"
            or any(isinstance(row.values[column.key], Stat) for row in rows)
        )
    )


def cell_text(comparison: Comparison, row: Row, column: Column) -> str:
    """A number with its companion in brackets; a missing latency with its reason."""
    value = row.values[column.key]
    of = len(row.seeds) or None
    text = format_value(value, column.style, of=of)
    if isinstance(value, Missing) and value.reason and column.key == "latency_ms":
        return f"n/a ({printable(value.reason)})"
    beside = row.values.get(column.beside)
    if isinstance(beside, Stat):
        # Its spread follows from the spread of the number that it stands beside.
        other = next(c for c in table_columns(comparison) if c.key == column.beside)
        text += f" ({format_value(Stat(beside.mean, None, 1), other.style)})"
    return text


def _plain_certificate(row: Row) -> dict[str, Any] | None:
    if row.certificate is None:
        return None
    # JSON has no infinity: a difference that is not a number is null, and has not passed.
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in vars(row.certificate).items()
    }


def _plain(value: Stat | Missing) -> dict[str, Any]:
    if isinstance(value, Missing):
        return {"mean": None, "std": None, "n": 0, "missing": value.reason}
    return {"mean": value.mean, "std": value.std, "n": value.n}


def _markdown(text: str) -> str:
    return printable(text).translate(_MARKDOWN_SPECIAL)


def _terminal_cells(row: Row, columns: Sequence[Column], count: bool) -> list[Text]:
    cells = [Text(printable(row.method), style="dim" if row.kind == "null" else "")]
    if count:
        cells.append(Text(str(len(row.seeds) or DASH)))
    for column in columns:
        text = format_value(row.values[column.key], column.style, compact=True, of=len(row.seeds))
        cells.append(Text(text, style="bold" if column.key in row.bold else ""))
    failed = row.certificate is not None and not row.certificate.passed
    cells.append(Text(certificate_text(row, compact=True), style="bold red" if failed else ""))
    return cells


def _seeds(count: int) -> str:
    return f"{count} seed{'' if count == 1 else 's'}"


def _terminal_summary(comparison: Comparison, rows: Sequence[Row]) -> tuple[str, ...]:
    warnings = (f"! {warning}" for warning in report_warnings(comparison, rows))
    setting = filter(None, [latency_setting(rows)])
    return (*summary_sentences(comparison, rows), *setting, *warnings)
