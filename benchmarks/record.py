"""What every benchmark writes beside its figures: where, when and with what they were measured."""

import json
import os
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


def environment() -> dict[str, Any]:
    """Of what is written now: machine and commit are those of the start, threads those set since."""
    return START.model_copy(update={"threads": torch.get_num_threads()}).model_dump(mode="json")


def write_json(path: Path, content: Any) -> None:
    """Write a file whole or not at all, with its folder: a killed run leaves no half of a record."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")  # processes may write the same file
    part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    part.replace(path)


def write_results(
    name: str, rows: Sequence[dict[str, Any]], *, ran: dict[str, Any] | None = None, **settings: Any
) -> Path:
    """Write ``results/NAME.json`` (the list of figures) and ``results/NAME.run.json`` (the run).

    Args:
        name: Name of the benchmark.
        rows: One dict a figure.
        ran: Environment that the figures were measured in; this process's where left out.
        settings: What the run was told: seed, samples, repeats.
    """
    run = {
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": settings,
        "environment": ran or environment(),
    }
    path = RESULTS / f"{name}.json"
    write_json(path, list(rows))
    write_json(RESULTS / f"{name}.run.json", run)
    return path
