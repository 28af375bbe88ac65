"""A realistic comparison, made up: three methods, three seeds each, on one network."""

from collections.abc import Callable
from typing import Any

import pytest

from prunus.records import (
    Certificate,
    Comparison,
    Cost,
    DeployedRow,
    Environment,
    HistoryPoint,
    Latency,
    LayerWidth,
    RunRecord,
    Score,
    Source,
)

DENSE_MACS, DENSE_PARAMS = 40_800_000, 270_000
TOP1 = {
    # after cut, after recalibration, after training; seeds 0, 1, 2
    "genetic": ((0.40, 0.44, 0.42), (0.80, 0.82, 0.81), (0.910, 0.914, 0.912)),
    "geometry": ((0.38, 0.37, 0.39), (0.79, 0.78, 0.80), (0.900, 0.896, 0.904)),
    "random": ((0.10, 0.12, 0.11), (0.55, 0.60, 0.50), (0.880, 0.884, 0.876)),
}
LATENCY_MS = {"genetic": (6.0, 6.2, 6.1), "random": (10.1, 9.9, 10.0)}
GROUPS = ("conv1", "layer1.0.conv1", "layer1.1.conv1", "layer2.0.conv1", "layer2.1.conv1")


def make_latency(median_ms: float, **changes: Any) -> Latency:
    fields = {"p95_ms": median_ms + 1, "iqr_ms": 0.3, "repeats": 50, "warmup": 5, "batch": 1}
    return Latency(**{"median_ms": median_ms, "threads": 1, "device": "cpu", **fields, **changes})


def make_environment(**changes: Any) -> Environment:
    fields: dict[str, Any] = {
        "python": "3.11.9",
        "platform": "Linux-6.1-x86_64",
        "cpu": "Example CPU @ 2.0 GHz",
        "cores": 2,
        "gpu": None,
        "threads": 1,
        "versions": {"torch": "2.13.0", "numpy": "2.4.6", "prunus": "0.1.0"},
        "commit": "0123456789abcdef0123456789abcdef01234567",
        "dirty": False,
    }
    return Environment(**{**fields, **changes})


def make_cost(macs: int, params: int, size_bytes: int | None) -> Cost:
    return Cost(
        macs=macs,
        effective_macs=macs,
        params=params,
        nonzero_params=params,
        size_bytes=size_bytes,
    )


def make_history(method: str, seed: int) -> tuple[HistoryPoint, ...]:
    points = []
    shift = 0.04 * list(TOP1).index(method)
    if method == "genetic":
        best = 0.0
        for step in range(12):
            fitness = 0.5 + 0.03 * step - 0.05 * ((step + seed) % 3)
            best = max(best, fitness)
            values = {"best": best, "fitness": fitness, "candidates": 40.0 * (step + 1)}
            points.append(
                HistoryPoint(phase="search", step=step, seconds=2.0 * step, values=values)
            )
    for epoch in range(1, 9):
        values = {
            "loss": 1.5 / epoch + shift + 0.02 * seed,
            "top1": 0.9 - shift - 0.2 / epoch,
            "lr": 0.1 / epoch,
        }
        points.append(HistoryPoint(phase="train", step=epoch, seconds=9.0 * epoch, values=values))
    return tuple(points)


def make_run(method: str = "genetic", seed: int = 0, **changes: Any) -> RunRecord:
    """One run; ``changes`` replace fields of the record."""
    known = method if method in TOP1 else "geometry"
    cut, recalibrated, trained = (values[seed % 3] for values in TOP1[known])
    stages = {
        "dense": 0.9210,
        "after_cut": cut,
        "after_recalibration": recalibrated,
        "after_training": trained,
    }
    times = LATENCY_MS.get(known)
    macs = 20_400_000 if known != "genetic" else (20_300_000, 20_400_000, 20_200_000)[seed % 3]
    widths = [
        LayerWidth(
            group=group,
            before=16 * (1 + i // 3),
            after=(10 + seed + i * (2 + len(method))) % 16 + 1,
        )
        for i, group in enumerate(GROUPS)
    ]
    refused = LayerWidth(
        group="view.fixed", before=32, after=32, refused="a reshape with a fixed size"
    )
    fields: dict[str, Any] = {
        "method": method,
        "source": Source(
            model="resnet20", arguments={"num_classes": 10}, weights="resnet20.safetensors"
        ),
        "data": "cifar10",
        "seed": seed,
        "target": {"macs": 0.5},
        "recipe": {"steps": [{"name": method}, {"name": "fine-tune", "epochs": 8}]},
        "dense_cost": make_cost(DENSE_MACS, DENSE_PARAMS, 1_090_000),
        "cost": make_cost(macs, 135_000, 545_000),
        "dense_latency": make_latency(10.0),
        "latency": None if times is None else make_latency(times[seed % 3]),
        "scores": tuple(
            Score(value=value, loss=1 - value, samples=10_000, split="test", stage=stage)
            for stage, value in stages.items()
        ),
        "certificates": (
            Certificate(
                passed=True,
                eval_difference=1e-7 * (seed + 1),
                train_difference=2e-7 * (seed + 1),
                samples=8,
            ),
        ),
        "widths": (*widths, refused),
        "history": make_history(known, seed),
        "seconds": {"search": 60.0 + seed, "train": 300.0},
        "test_evaluations": dict.fromkeys(stages, 1),
        "environment": make_environment(),
        "notes": () if times else ("latency: needs the extra 'openvino'",),
    }
    return RunRecord(**{**fields, **changes})


@pytest.fixture
def run_of() -> Callable[..., RunRecord]:
    return make_run


@pytest.fixture
def latency_of() -> Callable[..., Latency]:
    return make_latency


def make_deployed(latency: Latency, dense: Latency) -> DeployedRow:
    """In the engine of the first latency."""
    return DeployedRow(
        engine=latency.engine,
        weights="int8",
        embeddings="int8",
        size_bytes=5_000_000,
        latency=latency,
        dense_latency=dense,
    )


@pytest.fixture
def deployed_of() -> Callable[..., DeployedRow]:
    return make_deployed


@pytest.fixture
def environment_of() -> Callable[..., Environment]:
    return make_environment


@pytest.fixture(scope="session")
def comparison() -> Comparison:
    """Two methods and a null baseline at half the MACs; one has no latency, all a refused group."""
    runs = [make_run(method, seed) for method in TOP1 for seed in range(3)]
    return Comparison(title="ResNet-20 on CIFAR-10", runs=tuple(runs))
