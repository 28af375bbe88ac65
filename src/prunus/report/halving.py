"""Figure of successive halving: how many candidates were seen on how many images. No torch."""

from collections import Counter
from collections.abc import Sequence

import plotly.graph_objects as go

from prunus.report.phases import IMAGES, phases
from prunus.report.rows import Row
from prunus.report.style import axis, colors, figure, series_key, series_name, text


def halving_figure(rows: Sequence[Row]) -> go.Figure | None:
    """Candidates seen on at least so many images; None where no run dropped a candidate."""
    tint = colors(rows)
    drawn = figure(320, showlegend=True)
    named: set[str] = set()
    ticks: set[int] = set()
    for row, name, points in phases(rows):
        dropped = Counter(int(p.values[IMAGES]) for p in points if IMAGES in p.values)
        if len(dropped) < 2:
            continue
        rungs = sorted(dropped)
        ticks.update(rungs)
        seen = [sum(n for images, n in dropped.items() if images >= rung) for rung in rungs]
        ends = [*(f"{dropped[rung]} dropped there" for rung in rungs[:-1]), "these are all"]
        key = series_key(row)
        drawn.add_trace(
            go.Scatter(
                name=series_name(row, rows),
                legendgroup=key,
                showlegend=key not in named,
                x=rungs,
                y=seen,
                mode="lines+markers",
                line={"color": tint[row.method], "width": 2, "shape": "vh"},
                hovertext=[
                    f"{text(name)}<br>{count} candidates seen on {rung} images, {end}"
                    for rung, count, end in zip(rungs, seen, ends, strict=True)
                ],
                hoverinfo="text",
            )
        )
        named.add(key)
    if not named:
        return None
    drawn.update_layout(
        xaxis=axis("images of the search split", type="log", tickvals=sorted(ticks)),
        yaxis=axis("candidates seen on them", rangemode="tozero"),
    )
    return drawn
