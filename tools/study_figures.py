"""Figures of the studies' pages, drawn from their records; what is drawn stands in each file as text, too."""

from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from study_tables import SEEDS, STUDIES, Rows

_LOOKS = {  # P. Tol's "bright" scheme, as in the reports; its grey for what only cuts all layers alike
    "genetic": ("#4477AA", "o", "-"),
    "genetic-paper": ("#66CCEE", "s", "-"),
    "genetic-kernels": ("#AA3377", "D", "-"),
    "taylor": ("#CCBB44", "v", "-"),
    "random-search": ("#EE6677", "^", "--"),
    "scratch": ("#228833", "X", "--"),
    "l2": ("#6f7883", "P", ":"),
    "random": ("#a9a39b", "*", ":"),
}
_COSTS = {"params": "parameters (M)", "macs": "executed MACs (M)"}


def described(rows: Rows) -> str:
    """What a figure shows, a line a point: the same text from the same records on every machine."""
    return "\n".join(
        f"{r['network']} {r['method']}: {r['params'] / 1e6:.3f} M parameters, {r['macs'] / 1e6:.1f} M executed MACs, "
        f"{r['top1_mean']:.2%} ± {r['top1_std']:.2%} top-1 on test, {r['seeds']} seeds"
        for r in _told(rows)
    )


def description_in(path: Path) -> str | None:
    """The text in a file that was drawn; None: there is no such file."""
    if not path.exists():
        return None
    _, _, rest = path.read_text(encoding="utf-8").partition("<dc:description>")
    return unescape(rest.partition("</dc:description>")[0])


def draw(rows: Rows, path: Path) -> None:
    """Quality against parameters and against executed MACs, a line a method, bars of ± one deviation."""
    networks = list(dict.fromkeys(r["network"] for r in rows))
    with rc_context(
        {
            "font.size": 9,
            "svg.hashsalt": "prunus",
            "axes.spines.top": False,
            "axes.spines.right": False,
        }
    ):
        drawn = Figure(figsize=(9, 3.4 * len(networks)), layout="constrained", facecolor="white")
        axes = drawn.subplots(len(networks), len(_COSTS), squeeze=False, sharey="row")
        for line, network in zip(axes, networks, strict=True):
            for place, (cost, label) in zip(line, _COSTS.items(), strict=True):
                _panel(place, [r for r in rows if r["network"] == network], cost)
                place.set_xlabel(label)
            line[0].set_ylabel(f"{network}: top-1 on test (%)")
        legend: dict[str, Artist] = {}
        for place in axes.flat:
            legend |= dict(zip(*reversed(place.get_legend_handles_labels()), strict=True))
        drawn.legend(
            list(legend.values()), list(legend), loc="outside upper center", ncols=7, frameon=False
        )
        drawn.savefig(path, metadata={"Date": None, "Description": described(rows)})


def _panel(place: Axes, rows: Rows, cost: str) -> None:
    told = list(_told(rows))
    for method, (color, marker, dash) in _LOOKS.items():
        mine = sorted((r for r in told if r["method"] == method), key=lambda r: r[cost])
        if not mine:
            continue
        place.errorbar(
            [r[cost] / 1e6 for r in mine],
            [100 * r["top1_mean"] for r in mine],
            yerr=[100 * r["top1_std"] for r in mine],
            label=method,
            color=color,
            marker=marker,
            linestyle=dash,
            linewidth=1.3,
            markersize=5,
            capsize=2,
        )
    for dense in (r for r in rows if r["method"] == "dense"):
        place.axhline(
            100 * dense["top1_mean"], color="black", linewidth=0.8, linestyle="-.", label="dense"
        )
    place.set_xscale("log")
    place.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    place.xaxis.set_major_formatter("{x:g}")
    place.xaxis.set_minor_formatter(NullFormatter())
    place.grid(alpha=0.25, which="both", linewidth=0.5)


def _told(rows: Rows) -> Iterator[dict[str, Any]]:
    """Lines with seeds enough for a spread, at the one scale that most have."""
    scales = [r["scale"] for r in rows if r["scale"]]
    shown = max(set(scales), key=scales.count, default=None)
    return (r for r in rows if r["seeds"] >= SEEDS and r["scale"] == shown)


FIGURES = {
    STUDIES / "kuzmin2024" / "quality.svg": STUDIES / "kuzmin2024" / "results" / "summary.json"
}
"""Figure to the record that it is drawn from."""
