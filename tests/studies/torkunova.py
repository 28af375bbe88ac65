"""Study M, for all tests of its scripts: where it lies, and a cell of it."""

from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "studies" / "torkunova2023"


def cell_of(seed: int, f1: float) -> dict[str, Any]:
    """One seed of ``distilled``, with an F1."""
    return {
        "set": "sst2",
        "row": "distilled",
        "network": "minilm",
        "seed": seed,
        "engine": "torch",
        "size_bytes": 10_200_000,
        "score": {"f1": f1, "top1": f1, "precision": f1, "recall": f1},
        "dense": {"f1": 0.95},
        "against_dense": {"difference": f1 - 0.95, "low": -0.1, "high": 0.1, "resamples": 10_000},
        "deployed": None,
        "latency": {"median_ms": 2.0},
        "dense_latency": {"median_ms": 8.0},
        "environment": {"commit": "0" * 40, "dirty": False},
    }
