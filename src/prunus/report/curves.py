"""Figures of what happened over time: the search, and the training. No torch.

A record's history names its phases freely. A phase is a training if its name says so or if it holds
a loss; every other phase is a search.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Any

import plotly.graph_objects as go

from prunus.records import HistoryPoint
from prunus.report.rows import Row
from prunus.report.style import DASHES, axis, colors, dropdown, figure, series_name, text

_TRAINING_NAMES = ("train", "fit", "fine", "distil", "retrain")
_QUALITIES = ("fitness", "score", "top1", "f1", "reward", "value")
"""Values of a candidate of which more is better."""


def search_figure(rows: Sequence[Row]) -> go.Figure | None:
    """Best so far (line) and candidates (dots) against the step of the search.

    Other recorded values are behind the menu, one at a time. None where no run holds a search.
    """
    found = [(r, name, points) for r, name, points in _phases(rows) if not _is_training(points)]
    keys = list(dict.fromkeys(key for _, _, points in found for p in points for key in p.values))
    if not keys:
        return None
    views = {key: [key] for key in keys if not _is_best(key) and key not in _QUALITIES}
    first = [key for key in keys if key not in views]
    if first:
        views = {"best so far": first, **views}
    tint = colors(rows)
    drawn = figure(440)
    shown_in: list[str] = []
    for view, members in views.items():
        named: set[str] = set()
        for row, name, points in found:
            for trace in _search_traces(points, members):
                label = series_name(row, rows)
                color = tint[row.method]
                trace.update(
                    name=label,
                    legendgroup=label,
                    showlegend=label not in named and trace.mode != "markers",
                    visible=view == next(iter(views)),
                    line={"color": color, "width": 2},
                    marker={"color": color, "size": 5, "opacity": 0.5},
                    hovertext=[f"{text(name)}<br>{t}" for t in trace.hovertext or ()],
                    hoverinfo="text",
                )
                if trace.showlegend:
                    named.add(label)
                drawn.add_trace(trace)
                shown_in.append(view)
    drawn.update_layout(
        xaxis=axis("step of the search"),
        yaxis=axis(text(next(iter(views)))),
        margin={"t": 70},
        showlegend=True,
        updatemenus=dropdown(
            [
                {
                    "label": text(view),
                    "method": "update",
                    "args": [
                        {"visible": [view == other for other in shown_in]},
                        {"yaxis.title.text": text(view)},
                    ],
                }
                for view in views
            ]
        ),
    )
    return drawn


def training_figure(rows: Sequence[Row]) -> go.Figure | None:
    """Losses above, qualities below, against the epoch. None where no run holds a training."""
    found = [(r, name, points) for r, name, points in _phases(rows) if _is_training(points)]
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
        label = series_name(row, rows)
        for line, (_, members) in enumerate(panels, start=1):
            for position, key in enumerate(members):
                trace = _line(points, key, lambda values: values)
                if trace is None:
                    continue
                trace.update(
                    name=label,
                    legendgroup=label,
                    showlegend=label not in named,
                    line={
                        "color": tint[row.method],
                        "dash": DASHES[position % len(DASHES)],
                        "width": 1.8,
                    },
                    marker={"color": tint[row.method], "size": 4},
                    hovertext=[f"{text(name)}<br>{t}" for t in trace.hovertext],
                    hoverinfo="text",
                )
                named.add(label)
                drawn.add_trace(trace, row=line, col=1)
    for line, (title, members) in enumerate(panels, start=1):
        extra = f" ({', '.join(map(text, members))})" if len(members) > 1 else ""
        drawn.update_yaxes(axis(title + extra), row=line, col=1)
    drawn.update_xaxes(zeroline=False)
    drawn.update_xaxes(axis("epoch"), row=len(panels), col=1)
    return drawn


def _search_traces(points: Sequence[HistoryPoint], keys: Sequence[str]) -> Iterator[go.Scatter]:
    """The best so far as a line, candidates as dots; a lone other value as a line."""
    has_best = any(_is_best(key) and key in p.values for key in keys for p in points)
    for key in keys:
        candidate = key in _QUALITIES
        if candidate and not has_best:
            best = _line(points, key, lambda values: list(accumulate(values, max)))
            if best is not None:
                yield best.update(mode="lines", line={"shape": "hv"})
        trace = _line(points, key, lambda values: values)
        if trace is not None:
            shape = "hv" if _is_best(key) else "linear"
            yield trace.update(mode="markers" if candidate else "lines", line={"shape": shape})


def _line(
    points: Sequence[HistoryPoint], key: str, change: Callable[[list[float]], list[float]]
) -> go.Scatter | None:
    """One value over the steps; the line breaks where the steps start again (a new round)."""
    there = [p for p in points if math.isfinite(p.values.get(key, math.nan))]
    if not there:
        return None
    x: list[Any] = []
    y: list[Any] = []
    hover: list[str] = []
    for point, value in zip(there, change([p.values[key] for p in there]), strict=True):
        if x and point.step <= x[-1]:
            x.append(None)
            y.append(None)
            hover.append("")
        x.append(point.step)
        y.append(value)
        hover.append(_point_text(point))
    return go.Scatter(x=x, y=y, hovertext=hover, mode="lines+markers")


def _point_text(point: HistoryPoint) -> str:
    values = "<br>".join(f"{text(key)}: {value:.5g}" for key, value in point.values.items())
    return f"step {point.step}, {point.seconds:.0f} s<br>{values}"


def _phases(rows: Sequence[Row]) -> Iterator[tuple[Row, str, list[HistoryPoint]]]:
    """Every phase of every run, with a name that tells them apart."""
    for row in rows:
        for run in row.runs:
            for phase in dict.fromkeys(point.phase for point in run.history):
                points = [point for point in run.history if point.phase == phase]
                yield row, f"{row.label}, seed {run.seed}, {phase}", points


def _is_training(points: Sequence[HistoryPoint]) -> bool:
    phase = points[0].phase.lower()
    if phase.startswith(_TRAINING_NAMES):
        return True
    keys = {key for point in points for key in point.values}
    searches = phase.startswith("search") or any(_is_best(key) for key in keys)
    return not searches and any("loss" in key for key in keys)


def _is_best(key: str) -> bool:
    return key.startswith("best")
