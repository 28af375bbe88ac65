"""Tables of study M, drawn from its summary; called by ``render_tables``."""

from collections.abc import Callable
from typing import Any

Rows = list[dict[str, Any]]
_MISSING = "–"


def torkunova_sizes(rows: Rows) -> str:
    """Part (a), beside the paper's sizes; ratios are of medians that were timed in turns."""
    mine = [row for row in rows if row["part"] == "a"]
    if not mine:
        return "Not measured yet."
    lines = [
        "| row | MB | the paper's | CPU ms | × own float32 | × PyTorch float32 |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for row in mine:
        paper = row["paper_size_mb"]
        beside = _MISSING if paper is None else f"{paper:g}"
        met = f"**{row['size_mb']:.2f}**" if paper and row["size_mb"] <= paper else None
        lines.append(
            f"| {row['row']} | {met or format(row['size_mb'], '.2f')} | {beside} "
            f"| {row['cpu_ms']:.1f} | {_fold(row['fp32_same_engine_cpu_ms'], row['cpu_ms'])} "
            f"| {_fold(row['fp32_eager_cpu_ms'], row['cpu_ms'])} |"
        )
    return "\n".join([*lines, "", "Bold: at most the paper's size."])


def torkunova_quality(rows: Rows) -> str:
    """Part (b), a table for each data set."""
    mine = [row for row in rows if row["part"] == "b"]
    parts = []
    for data in dict.fromkeys(row["data"] for row in mine):
        group = [row for row in mine if row["data"] == data]
        dense = {row["dense_f1"] for row in group}
        told = ", ".join(f"{value:.4f}" for value in sorted(dense))
        parts += [
            f"**{data}**, {group[0]['network']}: dense F1 {told}.",
            "",
            "| row | F1 | seeds | less dense (95 %) | accuracy | MB | CPU ms | × own float32 | × PyTorch float32 | the paper's F1 |",
            "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
        ]
        for row in sorted(group, key=lambda r: -r["f1_mean"]):
            spread = "" if row["f1_std"] is None else f" ± {row['f1_std']:.4f}"
            paper = row["paper_f1"]
            parts.append(
                f"| {row['row']} | {row['f1_mean']:.4f}{spread} | {row['seeds']} "
                f"| {_interval(row['against_dense'])} "
                f"| {row['accuracy_mean']:.2%} | {row['size_mb']:.2f} | {row['cpu_ms']:.2f} "
                f"| {_fold(row['fp32_same_engine_cpu_ms'], row['cpu_ms'])} "
                f"| {_fold(row['fp32_eager_cpu_ms'], row['cpu_ms'])} "
                f"| {_MISSING if paper is None else f'{paper:.3f}'} |"
            )
        parts.append("")
    if parts:
        parts.append(
            "Less dense: of the seed that lost most, with the paired bootstrap's interval."
        )
    return "\n".join(parts).rstrip() or "Not measured yet."


def _interval(found: dict[str, float]) -> str:
    return f"{found['difference']:+.4f} ({found['low']:+.4f} to {found['high']:+.4f})"


def _fold(before: float | None, after: float | None) -> str:
    return _MISSING if before is None or not after else f"{before / after:.2f}"


TABLES: dict[str, tuple[str, Callable[[Rows], str]]] = {
    "torkunova_sizes": ("summary", torkunova_sizes),
    "torkunova_quality": ("summary", torkunova_quality),
}
