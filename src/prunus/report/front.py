"""Figure of a search's front: quality before any training against cost. No torch."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from prunus.records import FrontPoint, RunRecord
from prunus.report.check import target_text
from prunus.report.formats import Style, format_value
from prunus.report.rows import Row
from prunus.report.spread import Stat
from prunus.report.style import (
    DASHES,
    DENSE_COLOR,
    SYMBOLS,
    axis,
    colors,
    dropdown,
    figure,
    series_key,
    series_name,
    text,
)


@dataclass(frozen=True)
class _Quality:
    """One way to judge a network: its label, the title of its axis, and which way is better."""

    key: str
    label: str
    title: str
    scale: float = 1.0
    higher: bool = False


_QUALITIES = (
    _Quality("top1", "top-1", "top-1 before training, search split [%]", 100.0, higher=True),
    _Quality("kl", "KL to dense", "KL to the dense network, search split [nats]"),
    _Quality("loss", "loss", "loss before training, search split [nats]"),
)
_COSTS = {"macs": "executed MACs", "params": "parameters"}
_LOG_FOLD = 50.0
"""From this ratio of largest to smallest on, a divergence or loss has a logarithmic axis."""
_VIEWS = tuple((quality, cost) for cost in _COSTS for quality in _QUALITIES)
_View = tuple[_Quality, str]


@dataclass(frozen=True)
class _Series:
    """The front of one search of one run, cheapest network first; ``key`` is of its run."""

    name: str
    key: str
    title: str
    run: RunRecord
    points: tuple[FrontPoint, ...]
    look: Mapping[str, str]


def front_figure(rows: Sequence[Row]) -> go.Figure | None:
    """Fronts that searches found, one line per run and search; None where no run holds one.

    A line is the best at each cost, in the quality and the cost that the menu names; what the search
    compared in another quality may lie off it. Stars are what the runs went on with; a dotted line
    is the budget, where that is on the cost shown.
    """
    found = _all_series(rows)
    if not found:
        return None
    drawn = figure(460, showlegend=True)
    traces: list[tuple[go.Scatter, list[dict[str, list[Any]]]]] = []
    named: set[str] = set()
    for series in found:
        line = _staircase_trace(series, showlegend=series.key not in named)
        named.add(series.key)
        traces.append((line, [_staircase(series, view) for view in _VIEWS]))
        for chosen in (False, True):
            points = [point for point in series.points if point.chosen == chosen]
            if points:
                places = [_coordinates(series.run, points, view) for view in _VIEWS]
                traces.append((_marks(series, points), places))
    if any(point.chosen for series in found for point in series.points):
        traces.append((_legend_star(), [{"x": [None], "y": [None]} for _ in _VIEWS]))
    for trace, points_of in traces:
        drawn.add_trace(trace.update(points_of[0]))
    layouts = [_layout(found, view) for view in _VIEWS]
    drawn.update_layout(
        xaxis=axis(layouts[0]["xaxis.title.text"]),
        yaxis=axis(layouts[0]["yaxis.title.text"], type=layouts[0]["yaxis.type"]),
        shapes=layouts[0]["shapes"],
        margin={"t": 70},
        updatemenus=dropdown(
            [
                {
                    "label": f"{quality.label} against {_COSTS[cost]}",
                    "method": "update",
                    "args": [
                        {c: [points_of[i][c] for _, points_of in traces] for c in ("x", "y")},
                        layouts[i],
                    ],
                }
                for i, (quality, cost) in enumerate(_VIEWS)
            ]
        ),
    )
    return drawn


def _all_series(rows: Sequence[Row]) -> list[_Series]:
    """Color by method, symbol by target, dash by run of the method."""
    tint = colors(rows)
    found: list[_Series] = []
    targets: Counter[str] = Counter()
    dashes: Counter[str] = Counter()
    for row in rows:
        runs = [run for run in row.runs if run.front]
        if not runs:
            continue
        symbol = SYMBOLS[targets[row.method] % len(SYMBOLS)]
        targets[row.method] += 1
        for run in runs:
            name = series_name(row, rows) + (f", seed {run.seed}" if len(row.runs) > 1 else "")
            key = f"{series_key(row)}, seed {run.seed}"
            look = {
                "color": tint[row.method],
                "symbol": symbol,
                "dash": DASHES[dashes[row.method] % len(DASHES)],
            }
            dashes[row.method] += 1
            parts = _searches(run.front)
            for number, points in enumerate(parts, start=1):
                title = f"<b>{text(row.label)}</b>, seed {run.seed}"
                title += f", search {number} of {len(parts)}" if len(parts) > 1 else ""
                ordered = sorted(points, key=lambda p: (p.macs, p.params, p.fitness))
                found.append(_Series(name, key, title, run, tuple(ordered), look))
    return found


def _searches(points: Sequence[FrontPoint]) -> list[list[FrontPoint]]:
    """The fronts of a run, one a search; there is one in a run that cuts once."""
    return [[p for p in points if p.search == k] for k in sorted({p.search for p in points})]


def _coordinates(
    run: RunRecord, points: Sequence[FrontPoint], view: _View
) -> dict[str, list[float | None]]:
    quality, cost = view
    # A value that is not a number has no place: None leaves the mark out.
    return {
        "x": [_cost(run, cost, getattr(point, cost)) for point in points],
        "y": [v if math.isfinite(v := _value(point, quality)) else None for point in points],
    }


def _staircase(series: _Series, view: _View) -> dict[str, list[float]]:
    """Networks that none beats in this quality and cost, by rising cost: each is a new best."""
    quality, cost = view
    sign = -1.0 if quality.higher else 1.0
    steps = sorted(
        (getattr(point, cost), sign * value)
        for point in series.points
        if math.isfinite(value := _value(point, quality))
    )
    found: dict[str, list[float]] = {"x": [], "y": []}
    for spent, worse in steps:
        if not found["y"] or worse < sign * found["y"][-1]:
            found["x"].append(_cost(series.run, cost, spent))
            found["y"].append(sign * worse)
    return found


def _value(point: FrontPoint, quality: _Quality) -> float:
    return float(getattr(point, quality.key)) * quality.scale


def _cost(run: RunRecord, cost: str, value: float) -> float:
    """In percent of the dense network; as it is where the dense network's is not known."""
    dense = getattr(run.dense_cost, cost)
    return 100 * value / dense if dense else float(value)


def _staircase_trace(series: _Series, *, showlegend: bool) -> go.Scatter:
    line = {"color": series.look["color"], "dash": series.look["dash"], "width": 1.8, "shape": "hv"}
    return go.Scatter(
        name=series.name,
        legendgroup=series.key,
        showlegend=showlegend,
        mode="lines",
        line=line,
        hoverinfo="skip",
    )


def _marks(series: _Series, points: Sequence[FrontPoint]) -> go.Scatter:
    """Small marks, or stars where the points are the chosen ones."""
    marker: dict[str, Any] = {"symbol": series.look["symbol"], "size": 7, "opacity": 0.7}
    if points[0].chosen:
        marker = {"symbol": "star", "size": 16, "line": {"color": "#ffffff", "width": 1}}
    return go.Scatter(
        name=series.name,
        legendgroup=series.key,
        showlegend=False,
        mode="markers",
        marker={**marker, "color": series.look["color"]},
        hovertext=[_hover(series, point) for point in points],
        hoverinfo="text",
    )


def _legend_star() -> go.Scatter:
    """Only an entry of the legend."""
    marker = {"color": DENSE_COLOR, "symbol": "star", "size": 12}
    return go.Scatter(name="chosen", mode="markers", marker=marker, hoverinfo="skip")


def _hover(series: _Series, point: FrontPoint) -> str:
    lines = [
        series.title,
        f"top-1: {format_value(Stat(point.top1, None, 1), Style.PERCENT)}",
        f"KL: {point.kl:.4g}, loss: {point.loss:.4g}, fitness: {point.fitness:.4g}",
    ]
    for cost, name in _COSTS.items():
        value, dense = getattr(point, cost), getattr(series.run.dense_cost, cost)
        share = f", {100 * value / dense:.1f} % of dense" if dense else ""
        lines.append(f"{name}: {format_value(Stat(value, None, 1), Style.COUNT)}{share}")
    if point.chosen:
        lines.append("chosen: the run went on with it")
    return "<br>".join(lines)


def _layout(found: Sequence[_Series], view: _View) -> dict[str, Any]:
    """What a view changes of the layout."""
    quality, cost = view
    share = " [% of the dense network]" if getattr(found[0].run.dense_cost, cost) else ""
    values = [v for s in found for p in s.points if math.isfinite(v := _value(p, quality))]
    spread = bool(values) and min(values) > 0 and max(values) >= _LOG_FOLD * min(values)
    return {
        "xaxis.title.text": _COSTS[cost] + share,
        "yaxis.title.text": quality.title,
        "yaxis.type": "log" if spread and not quality.higher else "linear",
        # Where the front leaves room: it begins at the budget, with its worst network.
        "shapes": _budgets(found, cost, "end" if quality.higher else "start"),
    }


def _budgets(found: Sequence[_Series], cost: str, place: str) -> list[dict[str, Any]]:
    """A dotted line for each budget on this cost; a target of at most 1 is a share of dense."""
    lines: dict[float, str] = {}
    for series in found:
        target, dense = series.run.target.get(cost), getattr(series.run.dense_cost, cost)
        if target is None or (target <= 1 and not dense):
            continue
        limit = target * dense if target <= 1 else target
        lines.setdefault(_cost(series.run, cost, limit), target_text({cost: target}))
    # The label runs along its line, to the left of it, and stays within the axes.
    label = {"textposition": place, "yanchor": "bottom"}
    label["xanchor"] = "right" if place == "end" else "left"
    return [
        {
            "type": "line",
            "x0": x,
            "x1": x,
            "yref": "paper",
            "y0": 0,
            "y1": 1,
            "line": {"color": DENSE_COLOR, "dash": "dot", "width": 1.5},
            "label": {**label, "text": f"budget {written}"},
        }
        for x, written in sorted(lines.items())
    ]
