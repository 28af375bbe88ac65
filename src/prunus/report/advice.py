"""Which row to take: sentences computed from the rows of a comparison with deployed networks. No torch."""

import math
from collections.abc import Callable, Sequence

from prunus.records import Comparison
from prunus.report.columns import metric_name, score_style
from prunus.report.formats import Style, format_value, listed, printable
from prunus.report.pace import noise
from prunus.report.rows import Row, same_machine
from prunus.report.spread import Stat

ALLOWED_DROP = 0.005
"""How much less than dense a row may score and still count as good as dense; of F1 or top-1."""
_ROUNDING = 1e-9


def advice(comparison: Comparison, rows: Sequence[Row]) -> tuple[str, ...]:
    """The smallest and the fastest row that is as good as dense, and the smallest of all.

    Nothing where no network was deployed. All is said of the means over seeds. As good as a dense
    network that gets nothing right is no praise: no row is named where its score is 0. Times are set
    beside each other only where one machine measured them all.
    """
    methods = [row for row in rows if row.kind != "dense" and isinstance(row.final, Stat)]
    dense = next((row.final for row in rows if row.kind == "dense"), None)
    if not any(run.deployed for run in comparison.runs) or not isinstance(dense, Stat):
        return ()
    metric, style = metric_name(comparison), score_style(comparison)
    good = [row for row in methods if _mean(row) >= dense.mean - ALLOWED_DROP - _ROUNDING]
    bound = f"{ALLOWED_DROP:g}" if style is Style.FRACTION else f"{100 * ALLOWED_DROP:g} points"
    if dense.mean <= 0:
        nothing = (
            f"The dense network's {metric} is 0 on the test split, so that no row can be named as "
        )
        nothing += "good as dense: train it longer, or look at its data."
        return (nothing, *_fastest_engines(methods, style), *_engines(rows))
    found = []
    if not good:
        best = max(methods, key=_mean, default=None)
        if best is not None:
            text = f"No row is within {bound} of dense in {metric}; the nearest is "
            found.append(f"{text}{_described(best, style)}.")
    for key, what in ((_bytes, "Smallest"), (_time, "Fastest")):
        if key is _time and not same_machine(good):
            continue
        row = _least(good, key)
        if row is not None:
            rivals = _rivals(row, good) if key is _time else ""
            text = f"{what} within {bound} of dense in {metric}: {_described(row, style)}"
            found.append(f"{text}{rivals}.")
    least = _least(methods, _bytes)
    whole = _least([row for row in rows if row.kind == "dense"], _bytes)
    grown = least is not None and whole is not None and _bytes(least) >= _bytes(whole)
    if least is not None and least not in good and not grown:
        found.append(f"Smallest of all: {_described(least, style)}.")
    return (*found, *_fastest_engines(methods, style), *_engines(rows))


def _fastest_engines(rows: Sequence[Row], style: Style) -> list[str]:
    """Which engine is fastest where several run the same row, and how the others compare.

    By the time that each takes of the dense network's, which ran in turns with it: the milliseconds
    of two rows were measured minutes apart.
    """
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        name, ending = row.method, f" ({_engine(row)})"
        if name.endswith(ending) and math.isfinite(_time(row)):
            groups.setdefault((name.removesuffix(ending), row.target), []).append(row)
    found = []
    for (name, target), group in groups.items():
        if len(group) < 2 or not same_machine(group):
            continue
        where = f" at {target}" if target else ""
        first, *others = sorted(group, key=_time)
        told = [
            f"{printable(_engine(row))} takes {_time(row) / _time(first):.2f}× as long"
            f"{f', within the spread of {spread}' if (spread := _within(row, first)) else ''}"
            f" ({_score(row, style)}, {_megabytes(row)})"
            for row in others
        ]
        found.append(
            f"{printable(name + where)}: {printable(_engine(first))} is the fastest ({_score(first, style)}, "
            f"{_megabytes(first)}); {'; '.join(told)}."
        )
    return found


def _within(row: Row, first: Row) -> str:
    """The larger quartile range of the two, where the fastest leads a row by no more; else nothing."""
    share, spread_ms = max(noise(row.runs), noise(first.runs))
    if _time(row) - _time(first) > share:
        return ""
    return format_value(Stat(spread_ms, None, 1), Style.MILLISECONDS)


def _rivals(first: Row, rows: Sequence[Row]) -> str:
    """Rows that the fastest does not lead by more than the spread of their times."""
    others = [row for row in rows if row is not first and math.isfinite(_time(row))]
    near = [
        f"{printable(row.label)} ({spread})" for row in others if (spread := _within(row, first))
    ]
    if not near:
        return ""
    return f"; others are not told from it by the spread of times: {listed(near)}"


def _engine(row: Row) -> str:
    """The engine that all seeds of a row were deployed to; empty where there is none."""
    engines = {"" if run.deployed is None else run.deployed.engine for run in row.runs}
    return engines.pop() if len(engines) == 1 else ""


def _score(row: Row, style: Style) -> str:
    return format_value(row.final, style, of=len(row.seeds))


def _megabytes(row: Row) -> str:
    return format_value(row.values["size_bytes"], Style.MEGABYTES)


def _engines(rows: Sequence[Row]) -> list[str]:
    """What each engine gives the dense network in float32, without any method."""
    ratios: dict[str, list[float]] = {}
    for row in rows:
        for run in row.runs:
            if run.deployed is None or run.dense_latency is None:
                continue
            own = run.deployed.own_float32_latency
            if own is not None and run.deployed.engine != "torch":
                ratio = run.dense_latency.median_ms / own.median_ms
                ratios.setdefault(run.deployed.engine, []).append(ratio)
    told = [f"{engine} {sum(r) / len(r):.2f}×" for engine, r in sorted(ratios.items())]
    if not told:
        return []
    return [f"What the engine alone gives the dense network in float32: {', '.join(told)}."]


def _described(row: Row, style: Style) -> str:
    parts = [printable(row.label)]
    if isinstance(row.final, Stat):
        parts.append(format_value(row.final, style, of=len(row.seeds)))
    for key, form in (("size_bytes", Style.MEGABYTES), ("latency_ms", Style.MILLISECONDS)):
        value = row.values.get(key)
        if isinstance(value, Stat):
            parts.append(format_value(Stat(value.mean, None, 1), form))
    return ", ".join(parts)


def _least(rows: Sequence[Row], key: Callable[[Row], float]) -> Row | None:
    known = [row for row in rows if math.isfinite(key(row))]
    # Of two that cost the same, the better one.
    return min(known, key=lambda row: (key(row), -_mean(row)), default=None)


def _bytes(row: Row) -> float:
    value = row.values.get("size_bytes")
    return value.mean if isinstance(value, Stat) else math.inf


def _time(row: Row) -> float:
    """Latency over the dense network's, measured in turns; the mean of a row's runs, inf: unknown."""
    if not isinstance(row.values.get("latency_ms"), Stat):
        return math.inf
    pairs = [(run.latency, run.dense_latency) for run in row.runs]
    shares = [mine.median_ms / dense.median_ms for mine, dense in pairs if mine and dense]
    return sum(shares) / len(shares) if shares else math.inf


def _mean(row: Row) -> float:
    return row.final.mean if isinstance(row.final, Stat) else float("-inf")
