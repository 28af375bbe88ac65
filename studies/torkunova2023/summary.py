"""``summary.json`` from the cells of the study: one line a row, engine, network and data set."""

import json
import statistics
from collections.abc import Collection
from pathlib import Path
from typing import Any

import files
import paper

_HALF = "pruning by half"

Rows = list[dict[str, Any]]

MACHINES = {
    "sizes": "avx2",
    "sizes-avx512": "avx512",
    "sizes-avx512-avxvnni": "avx512-avxvnni",
    "sizes-amx": "amx",
}
"""Folders of part (a), by what the processor has for int8: AVX2, AVX-512 with VNNI, that and AVX-VNNI, or AMX."""


def machine_of(instructions: Collection[str]) -> str:
    """The kind of a processor, by the instructions that its environment names.

    What is neither of `MACHINES` is ``other``, whose records no table shows: nothing better is known
    of a processor whose instructions cannot be read.

    >>> machine_of(("avx2", "avx512f", "avx512_vnni"))
    'avx512'
    """
    has = set(instructions)
    if "amx_int8" in has:
        return "amx"
    if "avx512_vnni" in has:
        return "avx512-avxvnni" if "avx_vnni" in has else "avx512"
    return "avx2" if "avx2" in has and "avx_vnni" not in has else "other"


def folder_of(machine: str) -> str:
    """Where part (a) of a kind of processor lies."""
    return next((folder for folder, kind in MACHINES.items() if kind == machine), "sizes-other")


def machines_in(folder: Path) -> set[str]:
    """Kinds of the processors that the records of a folder are of."""
    found = [_read(path)["environment"] for path in folder.glob("*.json")]
    return {machine_of(environment.get("instructions", ())) for environment in found}


def write(results: Path) -> None:
    """Sum up all cells that there are."""
    cells = [_read(path) for path in sorted((results / "cells").glob("*.json"))]
    groups: dict[tuple[str, str], Rows] = {}
    for cell in cells:
        groups.setdefault((cell["set"], cell["row"]), []).append(cell)
    rows = [_quality(group) for group in groups.values()]
    gpu = _gpu_times(results / "gpu.json")
    known = {row["row"] for row in rows}
    for folder, machine in MACHINES.items():
        for path in sorted((results / folder).glob("*.json")):
            row = _size(_read(path))
            more = {"gpu_ms": gpu.get(row["row"]), "f1_row": f1_row(row["row"], known)}
            rows.append({**row, **more, "machine": machine})
    files.write(results / "summary.json", rows)


def _quality(cells: Rows) -> dict[str, Any]:
    """Of part (b); the spread is the sample standard deviation over seeds.

    Milliseconds are means over the seeds that were timed, of the row and of the dense network alike.
    """
    first = cells[0]
    timed = [cell for cell in cells if cell["latency"] is not None]
    f1 = [cell["score"]["f1"] for cell in cells]
    line = paper.LINES.get(plain_row(first["row"]))
    return {
        "part": "b",
        "row": first["row"],
        "engine": first["engine"],
        "network": first["network"],
        "data": first["set"],
        "size_mb": _mean([cell["size_bytes"] / 1e6 for cell in cells], 3),
        "f1_mean": _mean(f1, 5),
        "f1_std": round(statistics.stdev(f1), 5) if len(f1) > 1 else None,
        "f1_by_seed": {str(cell["seed"]): round(cell["score"]["f1"], 7) for cell in cells},
        "seeds": len(cells),
        "accuracy_mean": _mean([cell["score"]["top1"] for cell in cells], 5),
        "precision_mean": _mean([cell["score"]["precision"] for cell in cells], 5),
        "recall_mean": _mean([cell["score"]["recall"] for cell in cells], 5),
        "against_dense": _worst(cells),
        "dense_f1": round(first["dense"]["f1"], 5),
        "cpu_ms": _mean([_ms(cell["latency"]) for cell in timed], 3),
        "fp32_same_engine_cpu_ms": _mean([_ms(_same_engine(cell)) for cell in timed], 3),
        "fp32_eager_cpu_ms": _mean([_ms(cell["dense_latency"]) for cell in timed], 3),
        "gpu_ms": None,
        "paper_size_mb": line.size_mb if line else None,
        "paper_f1": line.f1 if line else None,
        "commit": first["environment"]["commit"],
        "dirty": any(cell["environment"]["dirty"] for cell in cells),
    }


def _size(cell: dict[str, Any]) -> dict[str, Any]:
    """Of part (a): its network has random weights, so that F1 stands in part (b) alone."""
    line = paper.LINES.get(plain_row(cell["row"]))
    return {
        "part": "a",
        "row": cell["row"],
        "engine": cell["engine"],
        "network": cell["network"],
        "data": None,
        "size_mb": round(cell["size_bytes"] / 1e6, 3),
        "f1_mean": None,
        "f1_std": None,
        "seeds": 0,
        "cpu": cell["environment"]["cpu"],
        "threads": cell["latency"]["threads"],
        "lead": cell["latency"].get("lead", 0),
        "cpu_ms": _ms(cell["latency"]),
        "fp32_same_engine_cpu_ms": _ms(cell["own_float32_latency"]),
        "fp32_eager_cpu_ms": _ms(cell["dense_latency"]),
        "paper_size_mb": line.size_mb if line else None,
        "paper_f1": line.f1 if line else None,
        "commit": cell["environment"]["commit"],
        "dirty": cell["environment"]["dirty"],
    }


def f1_row(row: str, known: Collection[str]) -> str | None:
    """The row of part (b) that tells the quality of a row of part (a), of those that there are.

    >>> f1_row("pruning by half + int8 (openvino)", {"pruning + int8 (openvino)"})
    'pruning + int8 (openvino)'
    """
    if row.startswith("none"):
        return "dense"
    if row.startswith("pruning") and not row.startswith(_HALF):
        return None  # part (b) prunes by half
    named = row.replace(_HALF, "pruning")
    return named if named in known else None


def _gpu_times(file: Path) -> dict[str, float | None]:
    """Milliseconds on CUDA by row of part (a); rows that PyTorch does not run there are not among them."""
    if not file.exists():
        return {}
    times = _read(file)["latencies"]
    return {"none" if name == "dense" else name: _ms(found) for name, found in times.items()}


def _same_engine(cell: dict[str, Any]) -> dict[str, Any] | None:
    """The dense network in float32 on the row's engine; PyTorch's where it was not deployed."""
    found: dict[str, Any] | None = (cell["deployed"] or {}).get("own_float32_latency")
    return found or cell["dense_latency"]


def _worst(cells: Rows) -> dict[str, float]:
    """The paired difference to dense of the seed that lost most."""
    found: dict[str, float] = min(
        (cell["against_dense"] for cell in cells), key=lambda d: d["difference"]
    )
    return {name: round(value, 5) for name, value in found.items()}


def plain_row(row: str) -> str:
    """A row's name without its engine, and whatever the shape of its requests.

    >>> plain_row("int8 linear in one shape (openvino)")
    'int8 linear'
    """
    return row.partition(" (")[0].removesuffix(" in one shape")


def _ms(latency: dict[str, Any] | None) -> float | None:
    return None if latency is None else round(latency["median_ms"], 3)


def _mean(values: list[float | None], digits: int) -> float | None:
    known = [value for value in values if value is not None]
    return round(statistics.mean(known), digits) if known else None


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content
