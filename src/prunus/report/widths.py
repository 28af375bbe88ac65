"""Figure of the widths: which share of each coupled group every method keeps. No torch."""

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from prunus.report.rows import Row
from prunus.report.style import DENSE_COLOR, figure, series_name, short, text

_MAX_LABELED_CELLS, _MAX_LABELED_COLUMNS = 240, 20
_LETTERS_ABREAST = 120


def width_figure(rows: Sequence[Row]) -> go.Figure | None:
    """Share of the units that stay, per coupled group and row; refused groups are grey."""
    shown = [row for row in rows if any(run.widths for run in row.runs)]
    groups = list(dict.fromkeys(w.group for row in shown for run in row.runs for w in run.widths))
    if not groups:
        return None
    cells = [[_width_cell(row, group) for row in shown] for group in groups]
    names = [series_name(row, rows) for row in shown]
    few = len(groups) * len(shown) <= _MAX_LABELED_CELLS and len(shown) <= _MAX_LABELED_COLUMNS
    # Names that find no place side by side stand upright, above the cells: that takes height.
    heads = 0 if sum(map(len, names)) <= _LETTERS_ABREAST else 7 * max(map(len, names))
    drawn = figure(max(260, 140 + 24 * len(groups) + heads))
    # Places by number: names that are written alike must not fall together.
    places = {"x": list(range(len(shown))), "y": list(range(len(groups)))}
    common: dict[str, Any] = {**places, "xgap": 2, "ygap": 2, "hoverinfo": "text"}
    hover = [[cell[1] for cell in line] for line in cells]
    drawn.add_trace(
        go.Heatmap(
            z=[[None if cell[2] else cell[0] for cell in line] for line in cells],
            hovertext=hover,
            texttemplate="%{z:.0%}" if few else "",
            zmin=0,
            zmax=1,
            colorscale="Viridis",
            colorbar={"title": {"text": "kept"}, "tickformat": ".0%", "thickness": 14},
            **common,
        )
    )
    if any(cell[2] for line in cells for cell in line):
        drawn.add_trace(
            go.Heatmap(
                z=[[1 if cell[2] else None for cell in line] for line in cells],
                hovertext=hover,
                text=[["refused" if cell[2] else "" for cell in line] for line in cells],
                texttemplate="%{text}" if few else "",
                colorscale=[[0, DENSE_COLOR], [1, DENSE_COLOR]],
                showscale=False,
                **common,
            )
        )
    drawn.update_layout(
        xaxis={"side": "top", **_named(places["x"], names)},
        yaxis={"autorange": "reversed", **_named(places["y"], [short(group) for group in groups])},
    )
    return drawn


def _named(places: Sequence[int], names: Sequence[str]) -> dict[str, Any]:
    """An axis with a name at each place."""
    ticks = {"tickmode": "array", "tickvals": list(places), "ticktext": list(names)}
    return {"automargin": True, "showgrid": False, "zeroline": False, **ticks}


def _width_cell(row: Row, group: str) -> tuple[float | None, str, bool]:
    """Mean kept share over the seeds, the hover text, and whether the group was refused."""
    found = [(run.seed, w) for run in row.runs for w in run.widths if w.group == group]
    if not found:
        return None, "", False
    shares = [width.after / width.before for _, width in found if width.before]
    lines = [f"{text(group)}, {text(row.label)}"]
    lines += [f"seed {seed}: {width.before} → {width.after} units" for seed, width in found]
    reasons = dict.fromkeys(width.refused for _, width in found if width.refused)
    lines += [f"refused: {text(reason)}" for reason in reasons]
    return sum(shares) / len(shares) if shares else None, "<br>".join(lines), bool(reasons)
