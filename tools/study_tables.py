"""Tables of the studies, drawn from their records; called by ``render_tables``."""

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
STUDIES = ROOT / "studies"
SEEDS = 3  # that a difference is claimed with

Rows = list[dict[str, Any]]


def _neighbour(name: str) -> Any:
    """A module beside the scripts of study K, which are no package."""
    folder = str(STUDIES / "kuzmin2024")
    sys.path.insert(0, folder)
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(folder)


def _percent(mean: float, spread: float | None = None) -> str:
    return f"{mean:.2%}" + ("" if spread is None else f" ± {spread:.2%}")


def kuzmin_quality(rows: Rows) -> str:
    """Table 2 of the paper, beside ours and the nulls."""
    lines = [
        "| network | round | method | parameters | executed MACs (M) | top-1 | seeds | the paper's |",
        "|---|--:|---|--:|--:|--:|--:|--:|",
    ]
    scales = list(dict.fromkeys(r["scale"] for r in rows if r["scale"]))
    for r in rows:
        # Networks of two scales were not trained alike: where both stand here, each line says which.
        alone = len(scales) == 1 or not r["scale"]
        method = r["method"] if alone else f"{r['method']} ({r['scale']})"
        lines.append(
            f"| {r['network']} | {r['round']} | {method} | {r['params']:,} | {r['macs'] / 1e6:.1f} "
            f"| {_percent(r['top1_mean'], r['top1_std'])} | {r['seeds']} | {r['paper_top1']:.2%} |"
        )
    lines.append("")
    lines += [f"Scale `{scale}`: {_scale(rows, scale)}." for scale in scales]
    machines = {r["network"]: r["machine"] for r in rows if r["machine"]}
    lines += [f"Cells of {name} are of `{machine}`." for name, machine in machines.items()]
    compressed = [r for r in rows if r["scale"]]
    few = sum(r["seeds"] < SEEDS for r in compressed)
    if few:
        lines += ["", f"Partial: {few} of {len(compressed)} lines have fewer than {SEEDS} seeds."]
    lines += [f"Not measured: {text}." for text in _unmeasured(rows)]
    return "\n".join(lines)


def _unmeasured(rows: Rows) -> list[str]:
    """Methods of the study without any cell, network by network."""
    missing = []
    for network in _neighbour("paper").PARAMS:
        known = {r["method"] for r in rows if r["network"] == network}
        if lacks := [method for method in _neighbour("methods").METHODS if method not in known]:
            missing.append(f"{network}: {', '.join(lacks)}")
    return missing


def _scale(rows: Rows, name: str) -> str:
    """What the runs of a scale were given, from their cells."""
    told = []
    for cell in _shown(rows, f"{name}-*.json"):
        given = cell["settings"]
        told.append(
            f"{given['epochs']} epochs of fine-tuning a round, searches of {given['generations']} "
            f"generations on {given['images']:,} images"
        )
    return "; ".join(dict.fromkeys(told)) or "no cells"


def kuzmin_seconds(_: Rows) -> str:
    """Table 3: seconds of one round's search on two cores, each cell's own, and in the paper."""
    paper = _neighbour("paper").SECONDS
    lines = [
        "| network | round | method | seed | search (s) | the paper's search (s) | int8 dot products |",
        "|---|--:|---|--:|--:|--:|---|",
    ]
    searches = [
        cell
        for name in ("genetic", "random-search")
        for cell in _cells(f"*-{name}-seed*.json")
        if cell["machine"].startswith("two-cores")
    ]
    for cell in sorted(searches, key=lambda c: (c["network"], c["round"], c["machine"])):
        network, number = cell["network"], cell["round"]
        has = "yes" if "avx512_vnni" in cell["environment"].get("instructions", []) else "no"
        lines.append(
            f"| {network} | {number} | {cell['method']} | {cell['seed']} "
            f"| {cell['seconds']['search']:.0f} | {paper[network][number - 1]:.0f} | {has} |"
        )
    return "\n".join(lines)


def kuzmin_ablation(rows: Rows) -> str:
    """Quality of winners on unseen search images, before any fine-tuning."""
    if not rows:
        return "Not measured yet."
    lines = [
        "| network | variant | KL to dense (nats) | top-1 | networks scored | search (s) | seeds |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    for r in rows:
        spread = "" if r["kl_std"] is None else f" ± {r['kl_std']:.3f}"
        lines.append(
            f"| {r['network']} | {r['variant']} | {r['kl']:.3f}{spread} "
            f"| {_percent(r['top1'], r['top1_std'])} | {r['evaluations']:.0f} | {r['seconds']:.0f} "
            f"| {r['seeds']} |"
        )
    return "\n".join(lines)


def _cells(pattern: str) -> Rows:
    """Cells of all kinds of machines, each with the name of its folder."""
    folder = STUDIES / "kuzmin2024" / "results" / "cells"
    return [
        {**json.loads(path.read_text(encoding="utf-8")), "machine": path.parent.name}
        for path in sorted(folder.glob(f"*/{pattern}"))
    ]


def _shown(rows: Rows, pattern: str) -> Rows:
    """Cells that the summary is of: of each network those of one kind of machine."""
    of = {(r["network"], r["machine"], r["scale"]) for r in rows}
    return [c for c in _cells(pattern) if (c["network"], c["machine"], c["scale"]) in of]


def kuzmin_from_scratch(rows: Rows) -> str:
    """Table 4: search, cut and fine-tune against a narrow network trained to the same quality."""
    chains: dict[tuple[str, int, str], Rows] = {}
    for cell in _shown(rows, "*-genetic-seed*.json"):
        chains.setdefault((cell["network"], cell["seed"], cell["scale"]), []).append(cell)
    clocks = "search, cut, fine-tune, all rounds (s) | narrow from scratch, until as good (s)"
    head = f"| network | seed | round | top-1 on search | {clocks} |"
    lines = [head, "|---|--:|--:|--:|--:|--:|"]
    for (network, seed, scale), cells in sorted(chains.items()):
        spent = 0.0
        for cell in sorted(cells, key=lambda c: c["round"]):
            spent += sum(cell["seconds"].values())
            pattern = f"{scale}-{network}-scratch-seed{seed}-round{cell['round']}.json"
            lines += [
                f"| {network} | {seed} | {cell['round']} | {cell['search_top1']:.2%} "
                f"| {spent:.0f} | {_until(other, cell['search_top1'])} |"
                for other in _shown(rows, pattern)
            ]
    return "\n".join(lines) if len(lines) > 2 else "Not measured yet."


def _until(scratch: dict[str, Any], quality: float) -> str:
    """Seconds of training until the search split first shows a quality."""
    for point in scratch["training"]:
        if point["search_top1"] >= quality:
            return f"{point['seconds']:.0f}"
    best = max(point["search_top1"] for point in scratch["training"])
    return f"never in {scratch['training'][-1]['seconds']:.0f} (best {best:.2%})"


def kuzmin_widths(rows: Rows) -> str:
    """Table 5: channels of every convolution after every round, ours of the first seed."""
    widths, lines = _neighbour("paper").WIDTHS, []
    for cell in _shown(rows, "*-genetic-seed0-round*.json"):
        network, number = cell["network"], cell["round"]
        lines.append(f"| {network} | {number} | ours | {' '.join(map(str, cell['widths']))} |")
        printed = " ".join(map(str, widths[network][number - 1]))
        lines.append(f"| {network} | {number} | the paper's | {printed} |")
    if not lines:
        return "Not measured yet."
    return "\n".join(
        [
            "| network | round | | channels of each convolution, in order |",
            "|---|--:|---|---|",
            *lines,
        ]
    )


# Table to the record that it is drawn from (in the results of its study) and how.
TABLES: dict[str, tuple[str, Callable[[Rows], str]]] = {
    "kuzmin_quality": ("summary", kuzmin_quality),
    "kuzmin_seconds": ("summary", kuzmin_seconds),
    "kuzmin_from_scratch": ("summary", kuzmin_from_scratch),
    "kuzmin_widths": ("summary", kuzmin_widths),
    "kuzmin_ablation": ("ablation", kuzmin_ablation),
}
