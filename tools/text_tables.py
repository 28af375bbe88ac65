"""Tables of study M, drawn from its summary and cells; called by ``render_tables``."""

import json
import statistics
from collections.abc import Callable, Iterable
from functools import cache, partial
from pathlib import Path
from typing import Any

from phrases import MISSING, threads

CELLS = Path(__file__).parent.parent / "studies" / "torkunova2023" / "results" / "cells"
Rows = list[dict[str, Any]]
MACHINES = {
    "avx2": "AVX2",
    "avx512": "AVX-512 VNNI",
    "avx512-avxvnni": "AVX-512 VNNI and AVX-VNNI",
    "amx": "AMX",
}
"""Kinds of processors of part (a), by what they multiply int8 with."""
_QUANTIZED = ("int8", "static int8", "float16", "bfloat16")
_FLOAT16 = " in float16"
_BRIEF = {
    "float32 (onnxruntime)": "dense, float32 (onnxruntime)",
    "int8 linear + embeddings (onnxruntime)": "",
    "distilled": "",
    "distilled + int8 (onnxruntime)": "",
    "distilled + tucker + int8 embeddings (onnxruntime)": "",
}
"""Rows of the short table, and the names they have there, where these are others."""
_HALVES = ("pruning by half + int8", "pruning by half in 64s + int8", "layers + int8")


def torkunova_sizes(rows: Rows, machine: str = "avx2") -> str:
    """Part (a), beside the paper's sizes, on one kind of processor."""
    return _sizes(_of(rows, machine), MACHINES[machine])


def _of(rows: Rows, machine: str) -> Rows:
    return [r for r in rows if r["part"] == "a" and r.get("machine", "avx2") == machine]


def _behind(latencies: Iterable[dict[str, Any]]) -> str:
    """What ran directly before each timed run, by the untimed runs that led it."""
    behind = {True: "an untimed run of its own", False: "the run of another network"}
    found = sorted({bool(latency.get("lead")) for latency in latencies}, reverse=True)
    return f"Each run timed behind {' or '.join(behind[own] for own in found)}."


def _sizes(mine: Rows, kind: str) -> str:
    """A line a row; ratios are of medians that were timed in turns."""
    if not mine:
        return "Not measured yet."
    places = sorted({f"{row['cpu']} ({kind}), {threads(row['threads'])}" for row in mine})
    eager = [row["fp32_eager_cpu_ms"] for row in mine]
    beside = (
        f"PyTorch's float32, timed with every row, took {min(eager):.0f} to {max(eager):.0f} ms."
    )
    lines = [
        f"{'; '.join(places)}. {_behind(mine)} {beside}",
        "",
        "| row | MB | the paper's | CPU ms | × own float32 | × PyTorch float32 | its F1 in (b) |",
        "|---|--:|--:|--:|--:|--:|---|",
    ]
    for row in mine:
        paper = row["paper_size_mb"]
        beside = MISSING if paper is None else f"{paper:g}"
        met = f"**{row['size_mb']:.2f}**" if paper and row["size_mb"] <= paper else None
        lines.append(
            f"| {row['row']} | {met or format(row['size_mb'], '.2f')} | {beside} "
            f"| {row['cpu_ms']:.1f} | {_fold(row['fp32_same_engine_cpu_ms'], row['cpu_ms'])} "
            f"| {_fold(row['fp32_eager_cpu_ms'], row['cpu_ms'])} | {_f1_row(row)} |"
        )
    told = (
        "Bold: at most the paper's size. Rows of int8 linear layers store the rest as float16, those of "
        "int8 embeddings alone keep it in float32."
    )
    turns = (
        "CPU ms of two rows were measured at different times; × are ratios to a float32 that was timed "
        "in turns with the row."
    )
    return "\n".join([*lines, "", f"{told} {turns}"])


def _f1_row(row: dict[str, Any]) -> str:
    named = row["f1_row"]
    return "same row" if named == row["row"] else named or MISSING


def torkunova_gpu(record: dict[str, Any]) -> str:
    """Part (a) on CUDA: a line a network, in both formats; ratios are of medians timed in turns."""
    times, where = record["latencies"], record["environment"]
    dense = times["dense"]["median_ms"]
    told = (
        f"{where['gpu']}, batch {times['dense']['batch']}, {record['sequence']} tokens, "
        f"PyTorch {where['versions']['torch']}, median of {times['dense']['repeats']} by turns. "
        f"{_behind(times.values())}"
    )
    lines = [
        told,
        "",
        "| network | float32 ms | × dense | float16 ms | × dense |",
        "|---|--:|--:|--:|--:|",
    ]
    for name in (n for n in times if not n.endswith(_FLOAT16)):
        plain, half = (times[n]["median_ms"] for n in (name, name + _FLOAT16))
        lines.append(
            f"| {name} | {plain:.2f} | {dense / plain:.2f} | {half:.2f} | {dense / half:.2f} |"
        )
    return "\n".join(lines)


def torkunova_bound(record: dict[str, Any], machine: str) -> str:
    """How many times as fast as PyTorch's float32 the int8 products of all layers and tokens are alone.

    No bound on an engine: engines spare most of the last layer's products; see ``bound.py`` of the study.
    """
    times = {name: found["median_ms"] for name, found in record["latencies"].items()}
    where = record["environment"]
    place = f"{where['cpu']} ({MACHINES[machine]}), {threads(where['threads'])}"
    turns = f"by turns with PyTorch's float32 ({times['float32']:.1f} ms)"
    lines = [
        f"{place}, {turns}. {_behind(record['latencies'].values())}",
        "",
        "| network | int8 products alone (ms) | 10⁹ operations a second | × PyTorch float32 at these products alone | asked |",
        "|---|--:|--:|--:|--:|",
    ]
    for name, asked in (("dense", "5 and 7"), ("pruning by half", "15")):
        mine = times[f"products of {name}"]
        rate = 2 * record["multiply_adds"][name] / mine / 1e6
        lines.append(
            f"| {name} | {mine:.1f} | {rate:.0f} | {times['float32'] / mine:.2f} | {asked} |"
        )
    return "\n".join(lines)


def torkunova_quality(rows: Rows, cells: Rows | None = None) -> str:
    """Part (b), a table for each data set; speeds are read from the cells, by default the study's."""
    known = _cells() if cells is None else cells
    mine = [row for row in rows if row["part"] == "b"]
    parts = []
    for data in dict.fromkeys(row["data"] for row in mine):
        group = [row for row in mine if row["data"] == data]
        dense = {row["dense_f1"] for row in group}
        told = ", ".join(f"{value:.4f}" for value in sorted(dense))
        parts += [
            f"**{data}**, {group[0]['network']}: dense F1 {told}.{_training(known, data)}",
            "",
            "| row | F1 | seeds | difference to dense (95 %) | accuracy | MB | CPU ms | × own float32 | × PyTorch float32 | the paper's F1 |",
            "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
        ]
        for row in sorted(group, key=lambda r: -r["f1_mean"]):
            spread = "" if row["f1_std"] is None else f" ± {row['f1_std']:.4f}"
            paper = row["paper_f1"]
            same = [c for c in known if (c["set"], c["row"]) == (row["data"], row["row"])]
            parts.append(
                f"| {row['row']} | {row['f1_mean']:.4f}{spread} | {row['seeds']} "
                f"| {_interval(row['against_dense'])} "
                f"| {row['accuracy_mean']:.2%} | {row['size_mb']:.2f} | {row['cpu_ms']:.2f} "
                f"| {_speed(same, own=True)} | {_speed(same, own=False)} "
                f"| {MISSING if paper is None else f'{paper:.3f}'} |"
            )
        parts.append("")
    if parts:
        parts.append(
            "Difference to dense: of the seed that lost most, with the paired bootstrap's interval for that one "
            "network, over other texts and not over other seeds. CPU ms: the mean over seeds, which "
            "ran at different times; × float32: the median over seeds of ratios that were timed in "
            "turns."
        )
    return "\n".join(parts).rstrip() or "Not measured yet."


def _training(cells: Rows, data: str) -> str:
    """On how many texts rows were trained, where it was on a draw of them."""
    sizes = {c.get("text", {}).get("train_size") for c in cells if c["set"] == data} - {None}
    if not sizes:
        return ""
    return f" Trained on {' or '.join(f'{size:,}' for size in sorted(sizes))} drawn texts."


def torkunova_brief(rows: Rows, cells: Rows | None = None) -> str:
    """A few rows of part (b) on SST-2: what quantizing costs, and what a student does."""
    known = _cells() if cells is None else cells
    sst2 = [row for row in rows if row["part"] == "b" and row["data"] == "sst2"]
    lines = ["| row | F1 on SST-2 | MB | × PyTorch float32 |", "|---|--:|--:|--:|"]
    for name, shown in _BRIEF.items():
        if (row := _only(sst2, name)) is None:
            continue
        spread = "" if row["f1_std"] is None else f" ± {row['f1_std']:.4f}"
        same = [c for c in known if (c["set"], c["row"]) == ("sst2", name)]
        lines.append(
            f"| {shown or name} | {row['f1_mean']:.4f}{spread} | {row['size_mb']:.2f} "
            f"| {_speed(same, own=False)} |"
        )
    return "\n".join(lines)


def torkunova_aims(rows: Rows) -> str:
    """What the study set out to reach, and what the records say."""
    lines = ["| aim | asked | found | |", "|---|--:|--:|---|"]
    for machine, named in MACHINES.items():
        if sizes := _of(rows, machine):
            lines += _speed_aims(sizes, f" ({named})")

    sst2 = [row for row in rows if row["part"] == "b" and row["data"] == "sst2"]
    sms = [row for row in rows if row["part"] == "b" and row["data"] == "sms"]
    lines.append(_aim("F1 of the teacher on SST-2", 0.9, sst2[0]["dense_f1"] if sst2 else None))
    for name, group in (("SST-2", sst2), ("SMS", sms)):
        losses = [r["dense_f1"] - r["f1_mean"] for r in group if _quantized(r)]
        singles = [0.0 - r["against_dense"]["difference"] for r in group if _quantized(r)]
        for kind, found in (("mean over seeds", losses), ("worst seed", singles)):
            told = f"most F1 that quantizing loses, {name}, {kind}"
            lines.append(_aim(told, 0.005, max(found, default=None), least=False, digits=4))
    lines += _closing_aims(sst2)
    taught = _only(sms, "distilled")
    short = taught["dense_f1"] - taught["f1_mean"] if taught else None
    lines.append(_aim("F1 that the student lacks to its teacher, SMS", 0.015, short, least=False))
    small = [r["f1_mean"] for r in sst2 if r["size_mb"] <= 2 and r["row"].startswith("distilled")]
    lines.append(
        _aim("F1 of the best chain of at most 2 MB, SST-2", 0.84, max(small, default=None))
    )
    return "\n".join(lines)


def _closing_aims(sst2: Rows) -> list[str]:
    """How much of the gap between the student that learns alone and the teacher distillation closes.

    Seeds are paired. ``distilled`` learns from texts put together, too, which ``student alone`` lacks;
    the last line is of the row that lacks them as well.
    """
    alone, taught = _only(sst2, "student alone"), _only(sst2, "distilled")
    plain = _only(sst2, "distilled, training texts alone")
    name = "share of the student's gap to its teacher closed, SST-2"
    more = f"{name}, with texts put together that the student alone lacks"
    return [
        _aim(f"{more}, mean over seeds", 1 / 3, _closed(taught, alone)),
        _aim(f"{more}, least seed", 1 / 3, _least_closed(taught, alone)),
        _aim(
            f"{name}, from the training texts alone, mean over seeds", 1 / 3, _closed(plain, alone)
        ),
    ]


def _closed(taught: dict[str, Any] | None, alone: dict[str, Any] | None) -> float | None:
    """Of the mean F1."""
    if taught is None or alone is None:
        return None
    return _share(taught["f1_mean"], alone["f1_mean"], taught["dense_f1"])


def _least_closed(taught: dict[str, Any] | None, alone: dict[str, Any] | None) -> float | None:
    """The least of the seeds that both rows have; None where there is none."""
    if taught is None or alone is None:
        return None
    mine, other = taught.get("f1_by_seed", {}), alone.get("f1_by_seed", {})
    shares = [_share(mine[s], other[s], taught["dense_f1"]) for s in mine.keys() & other.keys()]
    return min(shares, default=None)


def _share(taught: float, alone: float, teacher: float) -> float:
    return (taught - alone) / (teacher - alone)


def _speed_aims(sizes: Rows, where: str) -> list[str]:
    lines = []
    for engine, eager, own in (("onnxruntime", 5, 2), ("openvino", 7, 2.5)):
        row = _only(sizes, f"int8 linear + embeddings ({engine})")
        name = f"{engine}, int8 linear + embeddings{where}"
        lines.append(_aim(f"{name}: × PyTorch float32", eager, _times(row, "fp32_eager_cpu_ms")))
        found = _times(row, "fp32_same_engine_cpu_ms")
        lines.append(_aim(f"{name}: × its own float32", own, found))
    halves = [(_times(r, "fp32_eager_cpu_ms"), r["row"]) for r in sizes]
    halves = [(t, row) for t, row in halves if t is not None and row.startswith(_HALVES)]
    best, row = max(halves, default=(None, None))
    name = f"cut by half + int8, at best{f' by {row}' if row else ''}{where}"
    lines.append(_aim(f"{name}: × PyTorch float32", 15, best))
    return lines


def _quantized(row: dict[str, Any]) -> bool:
    named: str = row["row"]
    return named.startswith(_QUANTIZED)


def _aim(
    name: str, asked: float, found: float | None, *, least: bool = True, digits: int = 3
) -> str:
    sign = "≥" if least else "≤"
    if found is None:
        return f"| {name} | {sign} {asked:.3g} | {MISSING} | not measured |"
    met = found >= asked if least else found <= asked
    return f"| {name} | {sign} {asked:.3g} | {found:.{digits}f} | {'met' if met else 'not met'} |"


def _only(rows: Rows, name: str) -> dict[str, Any] | None:
    return next((row for row in rows if row["row"] == name), None)


def _times(row: dict[str, Any] | None, before: str) -> float | None:
    """How many times as fast."""
    found: float | None = None if row is None else row[before] / row["cpu_ms"]
    return found


@cache
def _cells() -> Rows:
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(CELLS.glob("*.json"))]


def _speed(cells: Rows, *, own: bool) -> str:
    """How many times as fast as the dense network in float32, on its own engine or in PyTorch.

    Each seed has a ratio of its own: only what was timed in turns saw the same machine.
    """
    ratios = []
    for cell in cells:
        engine = (cell["deployed"] or {}).get("own_float32_latency") if own else None
        before = engine or cell["dense_latency"]
        if before is not None and cell["latency"] is not None:
            ratios.append(before["median_ms"] / cell["latency"]["median_ms"])
    return f"{statistics.median(ratios):.2f}" if ratios else MISSING


def _interval(found: dict[str, float]) -> str:
    return f"{found['difference']:+.4f} ({found['low']:+.4f} to {found['high']:+.4f})"


def _fold(before: float | None, after: float | None) -> str:
    return MISSING if before is None or not after else f"{before / after:.2f}"


TABLES: dict[str, tuple[str, Callable[[Any], str]]] = {
    **{
        f"torkunova_bound_{machine.replace('-', '_')}": (
            f"bound-{machine}",
            partial(torkunova_bound, machine=machine),
        )
        for machine in MACHINES
    },
    "torkunova_gpu": ("gpu", torkunova_gpu),
    "torkunova_brief": ("../../studies/torkunova2023/results/summary", torkunova_brief),
    "torkunova_aims": ("summary", torkunova_aims),
    "torkunova_sizes": ("summary", torkunova_sizes),
    **{
        f"torkunova_sizes_{machine.replace('-', '_')}": (
            "summary",
            partial(torkunova_sizes, machine=machine),
        )
        for machine in MACHINES
        if machine != "avx2"
    },
    "torkunova_quality": ("summary", torkunova_quality),
}
