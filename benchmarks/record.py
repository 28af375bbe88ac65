"""What every benchmark writes beside its figures: where, when and with what they were measured."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from prunus.records import Environment

RESULTS = Path(__file__).parent / "results"
# Captured when the run begins: the commit that ran, not the one that is there when it ends.
START = Environment.capture(
    torch.get_num_threads(), torch.cuda.get_device_name() if torch.cuda.is_available() else None
)


def write_results(name: str, rows: Sequence[dict[str, Any]], **settings: Any) -> Path:
    """Write ``results/NAME.json`` (the list of figures) and ``results/NAME.run.json`` (the run).

    Args:
        name: Name of the benchmark.
        rows: One dict a figure.
        settings: What the run was told: seed, samples, repeats.
    """
    run = {
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": settings,
        "environment": START.model_dump(),
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    for target, content in ((path, list(rows)), (RESULTS / f"{name}.run.json", run)):
        part = target.with_suffix(".part")
        part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        part.replace(target)
    return path
