"""Reports drawn from records alone: tables, figures and one self-contained HTML file. No torch."""

from prunus.report.check import check_comparison
from prunus.report.html import render_html
from prunus.report.plots import figures
from prunus.report.rows import CertificateSummary, Row, comparison_rows
from prunus.report.save import report_json, write_report
from prunus.report.spread import MIN_SEEDS, Missing, Stat, Value, clear_winner, summarize
from prunus.report.summary import report_warnings, summary_sentences
from prunus.report.table import csv_table, json_rows, markdown_table, rich_table

__all__ = [
    "MIN_SEEDS",
    "CertificateSummary",
    "Missing",
    "Row",
    "Stat",
    "Value",
    "check_comparison",
    "clear_winner",
    "comparison_rows",
    "csv_table",
    "figures",
    "json_rows",
    "markdown_table",
    "render_html",
    "report_json",
    "report_warnings",
    "rich_table",
    "summarize",
    "summary_sentences",
    "write_report",
]
