"""Figures of a comparison: the trade-off and the stages; all figures together. No torch."""

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from prunus.records import Comparison, RunRecord
from prunus.report.columns import (
    LATENCY_KEYS,
    STAGES,
    Column,
    final_stage,
    metric_name,
    score_style,
    table_columns,
)
from prunus.report.curves import search_figure, training_figure
from prunus.report.formats import DASH, Style, format_value
from prunus.report.front import front_figure
from prunus.report.halving import halving_figure
from prunus.report.rows import Row, comparison_rows, same_machine
from prunus.report.spread import Missing, Stat, Value
from prunus.report.style import (
    DENSE_COLOR,
    axis,
    colors,
    dropdown,
    figure,
    series_name,
    short,
    symbols,
    text,
)
from prunus.report.summary import certificate_text
from prunus.report.widths import width_figure

_AXES = ("macs", "params", "latency_ms", "size_bytes")
_UNITS = {"macs": 1.0, "params": 1.0, "latency_ms": 1.0, "size_bytes": 1e-6}
_TITLES = {
    "macs": "MACs",
    "params": "Parameters",
    "latency_ms": "Latency, median [ms]",
    "size_bytes": "Model file [MB]",
}


def figures(comparison: Comparison) -> dict[str, go.Figure]:
    """All figures that the records can fill, by name, in the order of the page.

    Raises:
        InputError: The comparison is empty, or its runs do not belong together.
    """
    rows = comparison_rows(comparison)
    found = {
        "pareto": pareto_figure(comparison, rows),
        "stages": stage_figure(comparison, rows),
        "widths": width_figure(rows),
        "front": front_figure(rows),
        "search": search_figure(rows),
        "halving": halving_figure(rows),
        "training": training_figure(rows),
    }
    return {name: drawn for name, drawn in found.items() if drawn is not None}


def pareto_figure(comparison: Comparison, rows: Sequence[Row]) -> go.Figure | None:
    """Quality after the last stage against a cost chosen from a menu.

    Large marks are means over seeds with one sample standard deviation; small marks are single
    seeds. The line joins the means that no other mean beats in both quality and cost; there is none
    over times that different machines measured.
    """
    scored = [row for row in rows if isinstance(row.final, Stat)]
    if not scored:
        return None
    columns = {column.key: column for column in table_columns(comparison)}
    keys = [key for key in _AXES if any(isinstance(row.values[key], Stat) for row in scored)]
    if any(run.deployed for run in comparison.runs):  # these have no MACs, all have a size
        keys.sort(key=lambda key: key != "size_bytes")
    scale = _percent(comparison)
    tint = colors(rows)
    drawn = figure(520, legend={"title": {"text": ""}})
    front = go.Scatter(
        name="Pareto front",
        mode="lines",
        line={"color": DENSE_COLOR, "width": 1.5, "dash": "dot", "shape": "hv"},
        hoverinfo="skip",
    )
    # Each trace with the points that it takes along each of the cost axes.
    traces: list[tuple[go.Scatter, dict[str, dict[str, list[Any]]]]] = []
    fronts = {key: _front(scored, key, scale) for key in keys}
    if not same_machine(scored):
        fronts |= {key: {"x": [], "y": []} for key in keys if key in LATENCY_KEYS}
    traces.append((front, fronts))
    shapes = symbols(rows)
    for kind, method in dict.fromkeys((row.kind, row.method) for row in scored):
        group = [row for row in scored if (row.kind, row.method) == (kind, method)]
        marker = {"color": DENSE_COLOR, "symbol": "x"}  # also where a method is called so
        if kind != "dense":
            marker = {"color": tint[method], "symbol": shapes[method]}
        means = _mean_marks(comparison, group, marker)
        traces.append((means, {key: _means(group, key, scale) for key in keys}))
        seeds = [(row, run) for row in group for run in row.runs if len(row.runs) > 1]
        if seeds:
            dots = _seed_marks(seeds, marker)
            traces.append((dots, {key: _dots(seeds, columns[key], scale) for key in keys}))
    for trace, points in traces:
        drawn.add_trace(trace.update(points[keys[0]]))
    drawn.update_layout(
        xaxis=axis(_TITLES[keys[0]], rangemode="tozero"),
        yaxis=axis(_score_title(comparison)),
        margin={"t": 70},
        updatemenus=dropdown(
            [
                {
                    "label": _TITLES[key],
                    "method": "update",
                    "args": [
                        {c: [points[key][c] for _, points in traces] for c in ("x", "y")},
                        {"xaxis.title.text": _TITLES[key]},
                    ],
                }
                for key in keys
            ]
        ),
    )
    return drawn


def stage_figure(comparison: Comparison, rows: Sequence[Row]) -> go.Figure | None:
    """Quality at each stage (dense, cut, recalibrated, trained), one bar per row."""
    scale, style = _percent(comparison), score_style(comparison)
    shown = [row for row in rows if row.kind != "dense"]
    columns = zip(table_columns(comparison), STAGES.values(), strict=False)
    stages = {
        column.key: stage
        for column, stage in columns
        if any(isinstance(row.values[column.key], Stat) for row in shown)
    }
    if not stages:
        return None
    tint = colors(rows)
    drawn = figure(420, barmode="group", bargap=0.25)
    for row in shown:
        values = [row.values[key] for key in stages]
        drawn.add_trace(
            go.Bar(
                name=series_name(row, rows),
                x=list(stages.values()),
                y=[v.mean * scale if isinstance(v, Stat) else None for v in values],
                error_y={
                    "type": "data",
                    "array": [_bar(v, scale) for v in values],
                    "thickness": 1,
                },
                marker={"color": tint[row.method], "opacity": 0.55 if row.kind == "null" else 1.0},
                hovertext=[
                    f"{text(row.label)}<br>{stage}: {format_value(value, style, of=len(row.seeds))}"
                    for stage, value in zip(stages.values(), values, strict=True)
                ],
                hoverinfo="text",
            )
        )
    drawn.update_layout(
        xaxis={"automargin": True}, yaxis=axis(_score_title(comparison), rangemode="tozero")
    )
    return drawn


def _front(rows: Sequence[Row], key: str, scale: float) -> dict[str, list[Any]]:
    """Means that none beats, by rising cost: each is the best of all that cost no more."""
    points = sorted(
        (value.mean, -row.final.mean)
        for row in rows
        if isinstance(value := row.values[key], Stat) and isinstance(row.final, Stat)
    )
    x: list[float] = []
    y: list[float] = []
    for cost, negative in points:
        if not y or -negative * scale > y[-1]:
            x.append(cost * _UNITS[key])
            y.append(-negative * scale)
    return {"x": x, "y": y}


def _mean_marks(comparison: Comparison, group: Sequence[Row], marker: dict[str, Any]) -> go.Scatter:
    """The large marks of one method, still without points."""
    scale = _percent(comparison)
    return go.Scatter(
        name=short(group[0].method) + (" (null)" if group[0].kind == "null" else ""),
        legendgroup=_legend_group(group[0]),
        mode="markers",
        error_y={
            "type": "data",
            "array": [_bar(row.final, scale) for row in group],
            "color": marker["color"],
            "thickness": 1.5,
        },
        marker={**marker, "size": 12},
        hovertext=[_hover(comparison, row) for row in group],
        hoverinfo="text",
    )


def _seed_marks(seeds: Sequence[tuple[Row, RunRecord]], marker: dict[str, Any]) -> go.Scatter:
    """The small marks of one method, still without points."""
    return go.Scatter(
        legendgroup=_legend_group(seeds[0][0]),
        showlegend=False,
        mode="markers",
        marker={**marker, "size": 6, "opacity": 0.45},
        hovertext=[f"{text(row.label)}, seed {run.seed}" for row, run in seeds],
        hoverinfo="text",
    )


def _legend_group(row: Row) -> str:
    """What one click in the legend shows or hides."""
    return f"{row.kind} {text(row.method)}"


def _means(rows: Sequence[Row], key: str, scale: float) -> dict[str, list[Any]]:
    return {
        "x": [
            v.mean * _UNITS[key] if isinstance(v := row.values[key], Stat) else None for row in rows
        ],
        "y": [row.final.mean * scale if isinstance(row.final, Stat) else None for row in rows],
    }


def _dots(
    seeds: Sequence[tuple[Row, RunRecord]], column: Column, scale: float
) -> dict[str, list[Any]]:
    x: list[float | None] = []
    y: list[float | None] = []
    for row, run in seeds:
        cost, score = column.read(run), run.score(final_stage(run))
        # A cost that the row refused to pool (measured differently) is not drawn for a seed either.
        pooled = isinstance(row.values[column.key], Stat) and not isinstance(cost, Missing)
        x.append(cost * _UNITS[column.key] if pooled and not isinstance(cost, Missing) else None)
        y.append(None if score is None else score.value * scale)
    return {"x": x, "y": y}


def _hover(comparison: Comparison, row: Row) -> str:
    seeds = f", seeds {', '.join(map(str, row.seeds))}" if row.seeds else ""
    lines = [f"<b>{text(row.label)}</b>{seeds}"]
    for column in table_columns(comparison):
        value = row.values[column.key]
        written = format_value(value, column.style, of=len(row.seeds) or None)
        if written != DASH:
            lines.append(f"{column.header}: {written}")
    if row.conditions:
        lines.append(f"measured with {text(row.conditions)}")
    if row.kind != "dense":
        lines.append(f"certificate: {certificate_text(row)}")
    return "<br>".join(lines)


def _percent(comparison: Comparison) -> float:
    return 100.0 if score_style(comparison) is Style.PERCENT else 1.0


def _score_title(comparison: Comparison) -> str:
    unit = " [%]" if score_style(comparison) is Style.PERCENT else ""
    return f"{metric_name(comparison)}, test{unit}"


def _bar(value: Value, scale: float) -> float | None:
    """Length of an error bar; None where one seed says nothing of a spread."""
    return value.std * scale if isinstance(value, Stat) and value.std is not None else None
