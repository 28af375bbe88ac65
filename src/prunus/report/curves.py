"""Figures of what happened over time: the search, and the training. No torch."""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate

import plotly.graph_objects as go

from prunus.records import HistoryPoint
from prunus.report.phases import (
    CANDIDATE,
    COMPLETE,
    DOTS,
    MEAN,
    QUALITIES,
    STEP,
    View,
    clock_of,
    is_best,
    is_training,
    phases,
    search_views,
)
from prunus.report.rows import Row
from prunus.report.style import (
    DASHES,
    axis,
    colors,
    dropdown,
    figure,
    series_key,
    series_name,
    text,
)


def search_figure(rows: Sequence[Row]) -> go.Figure | None:
    """Best so far (line) and candidates (dots) against the step of the search.

    Hollow dots are candidates that were dropped on the way, seen on a part of the images. Other
    recorded values are behind the menu, one at a time. None where no run holds a search.
    """
    found = [(r, name, points) for r, name, points in phases(rows) if not is_training(points)]
    views = search_views([points for _, _, points in found])
    if not views:
        return None
    tint = colors(rows)
    drawn = figure(440)
    shown_in: list[int] = []
    for number, view in enumerate(views):
        named: set[str] = set()
        for row, name, points in found:
            for trace in _search_traces(points, view):
                key, label = series_key(row), series_name(row, rows)
                color = tint[row.method]
                trace.update(
                    name=label,
                    legendgroup=key,
                    showlegend=key not in named,
                    visible=number == 0,
                    line={"color": color, "width": 2},
                    marker={"color": color, "size": 6, "opacity": 0.6},
                    hovertext=[f"{text(name)}<br>{t}" for t in trace.hovertext or ()],
                    hoverinfo="text",
                )
                named.add(key)
                drawn.add_trace(trace)
                shown_in.append(number)
    drawn.update_layout(
        xaxis=axis(views[0].clock),
        yaxis=axis(text(views[0].label)),
        margin={"t": 70},
        showlegend=True,
        updatemenus=dropdown(
            [
                {
                    "label": text(view.label),
                    "method": "update",
                    "args": [
                        {"visible": [number == other for other in shown_in]},
                        {"xaxis.title.text": view.clock, "yaxis.title.text": text(view.label)},
                    ],
                }
                for number, view in enumerate(views)
            ]
        ),
    )
    return drawn


def training_figure(rows: Sequence[Row]) -> go.Figure | None:
    """Losses above, qualities below, against the epoch. None where no run holds a training."""
    found = [(r, name, points) for r, name, points in phases(rows) if is_training(points)]
    keys = list(dict.fromkeys(key for _, _, points in found for p in points for key in p.values))
    panels: list[tuple[str, list[str]]] = [
        ("loss", [key for key in keys if "loss" in key]),
        (
            "quality, search split",
            [key for key in keys if any(q in key for q in ("top1", "f1", "acc"))],
        ),
    ]
    panels = [(title, members) for title, members in panels if members]
    if not panels:
        return None
    tint = colors(rows)
    drawn = figure(280 * len(panels) + 60, showlegend=True)
    drawn.set_subplots(rows=len(panels), cols=1, shared_xaxes=True, vertical_spacing=0.08)
    named: set[str] = set()
    for row, name, points in found:
        key, label = series_key(row), series_name(row, rows)
        for line, (_, members) in enumerate(panels, start=1):
            for position, member in enumerate(members):
                trace = _line(points, member, lambda values: values)
                if trace is None:
                    continue
                trace.update(
                    name=label,
                    legendgroup=key,
                    showlegend=key not in named,
                    line={
                        "color": tint[row.method],
                        "dash": DASHES[position % len(DASHES)],
                        "width": 1.8,
                    },
                    marker={"color": tint[row.method], "size": 4},
                    hovertext=[f"{text(name)}<br>{t}" for t in trace.hovertext],
                    hoverinfo="text",
                )
                named.add(key)
                drawn.add_trace(trace, row=line, col=1)
    for line, (title, members) in enumerate(panels, start=1):
        extra = f" ({', '.join(map(text, members))})" if len(members) > 1 else ""
        drawn.update_yaxes(axis(title + extra), row=line, col=1)
    drawn.update_xaxes(zeroline=False)
    drawn.update_xaxes(axis("epoch"), row=len(panels), col=1)
    return drawn


def _search_traces(points: Sequence[HistoryPoint], view: View) -> Iterator[go.Scatter]:
    """The best so far as a line, then candidates as dots; a lone value of a step as a line."""
    if clock_of(points) != view.clock:
        return
    has_best = any(is_best(key) for p in points for key in p.values)
    # Generations and steps of a recipe are few, maybe one: a line alone would not be seen.
    lines = "lines" if view.clock in (CANDIDATE, STEP) else "lines+markers"
    for key in view.keys:
        candidate = (
            (view.clock == CANDIDATE and not is_best(key))
            or (view.clock == STEP and key in QUALITIES)
            or key == DOTS
        )
        if view.clock == STEP and key in QUALITIES and not has_best:
            best = _line(points, key, lambda values: list(accumulate(values, max)))
            if best is not None:
                yield best.update(mode="lines", line={"shape": "hv"})
        trace = _line(points, key, lambda values: values)
        if trace is not None:
            shape = "hv" if is_best(key) else "linear"
            dash = "dash" if key == MEAN else "solid"
            trace.update(
                mode="markers" if candidate else lines, line={"shape": shape, "dash": dash}
            )
            if candidate:
                trace.update(marker={"symbol": _symbols(points, key)})
            yield trace


def _symbols(points: Sequence[HistoryPoint], key: str) -> list[str]:
    """Hollow where a candidate was dropped on the way; in the order of ``_line``."""
    return [
        "circle" if p is None or p.values.get(COMPLETE, 1.0) else "circle-open"
        for p in _with_breaks(_there(points, key))
    ]


def _line(
    points: Sequence[HistoryPoint], key: str, change: Callable[[list[float]], list[float]]
) -> go.Scatter | None:
    """One value over the steps; the line breaks where the steps start again (a new round)."""
    there = _there(points, key)
    if not there:
        return None
    values = iter(change([p.values[key] for p in there]))
    drawn = _with_breaks(there)
    return go.Scatter(
        x=[None if p is None else p.step for p in drawn],
        y=[None if p is None else next(values) for p in drawn],
        hovertext=["" if p is None else _point_text(p) for p in drawn],
        mode="lines+markers",
    )


def _there(points: Sequence[HistoryPoint], key: str) -> list[HistoryPoint]:
    return [p for p in points if math.isfinite(p.values.get(key, math.nan))]


def _with_breaks(points: Sequence[HistoryPoint]) -> list[HistoryPoint | None]:
    """The points, None where the steps start again."""
    found: list[HistoryPoint | None] = []
    last = -math.inf
    for point in points:
        found += [None, point] if point.step <= last else [point]
        last = point.step
    return found


def _point_text(point: HistoryPoint) -> str:
    values = "<br>".join(f"{text(key)}: {value:.5g}" for key, value in point.values.items())
    return f"step {point.step}, {point.seconds:.0f} s<br>{values}"
