"""Figures of what happened over time: the search, and the training. No torch.

A record's history names its phases freely. A phase is a training if its name says so or if it holds
a loss; every other phase is a search.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate

import plotly.graph_objects as go

from prunus.records import HistoryPoint
from prunus.report.rows import Row
from prunus.report.style import DASHES, axis, colors, dropdown, figure, series_name, text

_TRAINING_NAMES = ("train", "fit", "fine", "distil", "retrain")
IMAGES = "images"
"""Value of a candidate: how many it was seen on before it was dropped; all, if it was not."""
_COMPLETE = "complete"
"""Value of a candidate: 1 where it was seen on all images, 0 where it was dropped on the way."""
_QUALITIES = ("fitness", "score", "top1", "f1", "reward", "value")
"""Values of a candidate of which more is better."""


def search_figure(rows: Sequence[Row]) -> go.Figure | None:
    """Best so far (line) and candidates (dots) against the step of the search.

    Hollow dots are candidates that were dropped on the way, seen on a part of the images. Other
    recorded values are behind the menu, one at a time. None where no run holds a search.
    """
    found = [(r, name, points) for r, name, points in phases(rows) if not _is_training(points)]
    keys = list(dict.fromkeys(key for _, _, points in found for p in points for key in p.values))
    if not keys:
        return None
    views = _views(keys)
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
                    showlegend=label not in named,
                    visible=view == next(iter(views)),
                    line={"color": color, "width": 2},
                    marker={"color": color, "size": 6, "opacity": 0.6},
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
    found = [(r, name, points) for r, name, points in phases(rows) if _is_training(points)]
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


def _views(keys: Sequence[str]) -> dict[str, list[str]]:
    """What is shown together: each best with the values it is the best of, then all others alone."""
    views: dict[str, list[str]] = {}
    left = [key for key in keys if not _is_best(key) and key != _COMPLETE]
    for key in keys:
        if _is_best(key) and _best_of(key) in left:
            views[f"{_best_of(key)}, best so far"] = [key, _best_of(key)]
            left.remove(_best_of(key))
    lone = [key for key in keys if _is_best(key) and not any(key in v for v in views.values())]
    qualities = [key for key in left if key in _QUALITIES] if lone or not views else []
    if lone or qualities:
        views["best so far"] = [*lone, *qualities]
    return views | {key: [key] for key in left if key not in qualities}


def _search_traces(points: Sequence[HistoryPoint], keys: Sequence[str]) -> Iterator[go.Scatter]:
    """The best so far as a line, then candidates as dots; a lone value of a step as a line."""
    has_best = any(_is_best(key) and key in p.values for key in keys for p in points)
    of_candidates = any(IMAGES in p.values for p in points)
    for key in keys:
        candidate = not _is_best(key) and (of_candidates or key in _QUALITIES)
        if key in _QUALITIES and not has_best:
            best = _line(points, key, lambda values: list(accumulate(values, max)))
            if best is not None:
                yield best.update(mode="lines", line={"shape": "hv"})
        trace = _line(points, key, lambda values: values)
        if trace is not None:
            shape = "hv" if _is_best(key) else "linear"
            trace.update(mode="markers" if candidate else "lines", line={"shape": shape})
            if candidate:
                trace.update(marker={"symbol": _symbols(points, key)})
            yield trace


def _symbols(points: Sequence[HistoryPoint], key: str) -> list[str]:
    """Hollow where a candidate was dropped on the way; in the order of ``_line``."""
    return [
        "circle" if p is None or p.values.get(_COMPLETE, 1.0) else "circle-open"
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


def phases(rows: Sequence[Row]) -> Iterator[tuple[Row, str, list[HistoryPoint]]]:
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


def _best_of(key: str) -> str:
    """The value that a best is the best of: ``loss`` for ``best_loss``; empty for ``best`` alone."""
    return key.removeprefix("best").strip("_ ")
