"""Summary of the ResNet-56 benchmark from its cells."""

import json
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

from record import write_results

REFERENCE = "tp-magnitude"
"""That differences are to, by name: the best of the peers on test would be picked by what it is shown for."""


def table(folder: Path, speed_up: float) -> None:
    """Write ``results/resnet56.json`` from the cells: the fullest scale with any cells, all its methods."""
    scales: dict[tuple[int, int], list[dict[str, Any]]] = defaultdict(list)
    for path in sorted(folder.glob("epochs*/*-seed*.json")):
        cell = json.loads(path.read_text(encoding="utf-8"))
        scales[cell["finetune_epochs"], cell["train_images"]].append(cell)
    rows = []
    for (epochs, images), cells in sorted(scales.items(), key=lambda s: -s[0][0] * s[0][1]):
        by_method: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for cell in cells:
            by_method[cell["method"]].append(cell)
        rows += [
            _row(method, mine, epochs, images) | _paired(mine, by_method.get(REFERENCE, []))
            for method, mine in by_method.items()
        ]
    rows.sort(key=lambda r: (-r["finetune_epochs"] * r["train_images"], -r["top1_mean"]))
    write_results("resnet56", rows, speed_up=speed_up, cells=sum(r["seeds"] for r in rows))
    for row in rows:
        spread = f" ± {row['top1_std']:.4f}" if row["top1_std"] is not None else ""
        print(
            f"{row['method']:>14} {row['top1_mean']:.4f}{spread} n={row['seeds']} {row['macs_ratio']:.2f}x"
        )


def _paired(cells: list[dict[str, Any]], beside: list[dict[str, Any]]) -> dict[str, Any]:
    """Top-1 less that of the reference, seed by seed: cells of one seed see the same data order."""
    tops = {cell["seed"]: cell["top1"] for cell in beside}
    less = [cell["top1"] - tops[cell["seed"]] for cell in cells if cell["seed"] in tops]
    return {
        "reference": REFERENCE,
        "less_reference_mean": round(statistics.mean(less), 5) if less else None,
        "less_reference_std": round(statistics.stdev(less), 5) if len(less) > 1 else None,
    }


def _row(method: str, cells: list[dict[str, Any]], epochs: int, images: int) -> dict[str, Any]:
    tops = [c["top1"] for c in cells]
    early = [
        c["search_top1_after_recalibration"]
        for c in cells
        if "search_top1_after_recalibration" in c
    ]
    return {
        "method": method,
        "macs_ratio": round(statistics.mean(c["macs_ratio"] for c in cells), 4),
        "params": round(statistics.mean(c["params"] for c in cells)),
        "top1_mean": round(statistics.mean(tops), 5),
        "top1_std": round(statistics.stdev(tops), 5) if len(tops) > 1 else None,
        "seeds": len(tops),
        "finetune_epochs": epochs,
        "epochs_trained": min(c["config"]["epochs"] for c in cells),
        "epochs_due": max(c.get("epochs_due", epochs) for c in cells),
        "train_images": images,
        "test_looks": max(c["test_evaluations"]["after_training"] for c in cells),
        "search_top1_after_recalibration_mean": round(statistics.mean(early), 5) if early else None,
    }
