"""Colors, symbols and layout that all figures share. Imports plotly; no torch."""

from collections.abc import Sequence
from html import escape
from typing import Any

import plotly.graph_objects as go

from prunus.report.formats import printable
from prunus.report.rows import Row

# P. Tol, "Colour schemes" (SRON/EPS/TN/09-002, issue 3.2), the "bright" scheme: distinct to
# color-blind eyes; its grey is kept for null baselines.
PALETTE = ("#4477AA", "#EE6677", "#228833", "#CCBB44", "#66CCEE", "#AA3377")
GREYS = ("#8a8f98", "#a9a39b", "#6f7883", "#b9bec7")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "star", "hexagon", "pentagon")
DASHES = ("solid", "dash", "dot", "dashdot")
DENSE_COLOR = "#8a8f98"
_LONGEST = 40


def figure(height: int, **layout: Any) -> go.Figure:
    """An empty figure without a background, so that the page's own light or dark shows."""
    font = {"family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", "size": 13}
    base: dict[str, Any] = {
        "template": "none",
        "height": height,
        "font": font,
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "margin": {"l": 60, "r": 20, "t": 40, "b": 60},
        "hoverlabel": {"align": "left"},
    }
    return go.Figure(layout={**base, **layout})


def text(value: str) -> str:
    """Text for a figure: plotly reads a subset of HTML, and records may hold anything."""
    return escape(printable(value), quote=False)


def short(value: str) -> str:
    """A name for a legend or an axis, cut in the middle: a long one would take the figure's place.

    >>> short("a" * 30 + "b" * 30)
    'aaaaaaaaaaaaaaaaaaaa…bbbbbbbbbbbbbbbbbbb'
    """
    name = printable(value)
    half = _LONGEST // 2
    return text(name if len(name) <= _LONGEST else f"{name[:half]}…{name[1 - half :]}")


def colors(rows: Sequence[Row]) -> dict[str, str]:
    """A color for every method: the palette in order of appearance, greys for null baselines."""
    found: dict[str, str] = {}
    for kind, choice in (("method", PALETTE), ("null", GREYS)):
        methods = dict.fromkeys(row.method for row in rows if row.kind == kind)
        found |= {method: choice[i % len(choice)] for i, method in enumerate(methods)}
    return found


def symbols(rows: Sequence[Row]) -> dict[str, str]:
    """A symbol for every method, so that methods of one color have different ones."""
    found: dict[str, str] = {}
    for kind, choice in (("method", PALETTE), ("null", GREYS)):
        methods = dict.fromkeys(row.method for row in rows if row.kind == kind)
        for i, method in enumerate(methods):
            found[method] = SYMBOLS[(i + i // len(choice)) % len(SYMBOLS)]
    return found


def series_name(row: Row, rows: Sequence[Row]) -> str:
    """Name of a row in a legend; the target stands in it only where targets differ."""
    several = len({r.target for r in rows if r.kind != "dense"}) > 1
    target = f" ({text(row.target)})" if several and row.target else ""
    return short(row.method) + target


def series_key(row: Row) -> str:
    """What tells a row's traces apart from those of all others, however their names are written."""
    return text(f"{row.method} at {row.target}")


def axis(title: str, **more: Any) -> dict[str, Any]:
    """An axis with a title and a margin that grows with its labels."""
    return {"title": {"text": title, "standoff": 12}, "automargin": True, "zeroline": False, **more}


def dropdown(buttons: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A menu above the top left corner of a figure; none where there is nothing to choose."""
    if len(buttons) < 2:
        return []
    place = {"x": 0, "xanchor": "left", "y": 1, "yanchor": "bottom", "pad": {"b": 10}}
    return [{"buttons": list(buttons), "direction": "down", "showactive": True, **place}]
