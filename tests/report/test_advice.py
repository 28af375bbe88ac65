"""Which row to take: the sentences below a comparison with deployed networks."""

import pytest

from prunus.records import Comparison, DeployedRow, Latency, RunRecord, Score
from prunus.report.advice import advice
from prunus.report.formats import listed
from prunus.report.rows import comparison_rows


def _latency(milliseconds: float, engine: str) -> Latency:
    return Latency(
        median_ms=milliseconds,
        p95_ms=milliseconds,
        iqr_ms=0.1,
        repeats=30,
        warmup=1,
        batch=1,
        threads=1,
        device="cpu",
        engine=engine,
    )


def _score(stage: str, value: float) -> Score:
    found = {"metric": "f1", "value": value, "f1": value, "top1": value}
    return Score.model_validate({**found, "samples": 100, "split": "test", "stage": stage})


def _deployed(
    base: RunRecord, name: str, engine: str, f1: float, size: int, ms: float
) -> RunRecord:
    dense, own = _latency(40.0, "torch"), _latency(20.0, engine)
    row = DeployedRow(
        engine=engine,
        weights="int8",
        embeddings="int8",
        size_bytes=size,
        latency=_latency(ms, engine),
        own_float32_latency=own if engine != "torch" else dense,
        dense_latency=dense,
    )
    return base.model_copy(
        update={
            "method": f"{name} ({engine})",
            "target": {},
            "scores": (_score("dense", 0.95), _score("deployed", f1)),
            "test_evaluations": {"dense": 1, "deployed": 1},
            "cost": base.cost.model_copy(update={"size_bytes": size}),
            "dense_latency": dense,
            "latency": row.latency,
            "deployed": row,
            "seed": 0,
        }
    )


@pytest.fixture
def deployed(comparison: Comparison) -> Comparison:
    base = comparison.runs[0]
    return Comparison(
        title="deployed",
        runs=(
            _deployed(base, "int8", "onnxruntime", 0.949, 5_000_000, 8.0),
            _deployed(base, "int8", "torch", 0.950, 6_000_000, 12.0),
            _deployed(base, "tiny", "onnxruntime", 0.900, 1_000_000, 2.0),
        ),
    )


def test_the_smallest_and_the_fastest_good_row_and_the_smallest_of_all_are_named(
    deployed: Comparison,
) -> None:
    told = advice(deployed, comparison_rows(deployed))
    assert told[0].startswith("Smallest within 0.005 of dense in F1: int8 (onnxruntime), 0.949")
    assert told[1].startswith("Fastest within 0.005 of dense in F1: int8 (onnxruntime)")
    assert told[2].startswith("Smallest of all: tiny (onnxruntime), 0.9")
    # 12 ms against 8 ms; tiny runs on one engine alone, so that there is nothing to compare.
    assert "int8: onnxruntime is the fastest" in told[3]
    assert "torch takes 1.50× as long" in told[3]
    assert told[4].endswith("float32: onnxruntime 2.00×.")
    assert len(told) == 5


def test_the_fastest_is_so_beside_the_dense_network_of_its_own_turns(deployed: Comparison) -> None:
    """int8 on PyTorch ran while the machine was slow: 12 of 120 ms, against 8 of 40 ms."""
    first, second, third = deployed.runs
    assert second.latency is not None
    slow = second.model_copy(update={"dense_latency": _latency(120.0, "torch")})
    told = advice(
        deployed, comparison_rows(deployed.model_copy(update={"runs": (first, slow, third)}))
    )
    assert told[1].startswith("Fastest within 0.005 of dense in F1: int8 (torch)")
    assert "int8: torch is the fastest" in told[3]
    assert "onnxruntime takes 2.00× as long" in told[3]


def test_where_no_row_is_as_good_as_dense_the_nearest_is_named(deployed: Comparison) -> None:
    few = deployed.model_copy(update={"runs": deployed.runs[2:]})
    told = advice(few, comparison_rows(few))
    assert told[0].startswith("No row is within 0.005 of dense in F1; the nearest is tiny")


def test_other_comparisons_have_no_advice(comparison: Comparison) -> None:
    assert advice(comparison, comparison_rows(comparison)) == ()


def test_a_remark_names_a_few_rows_and_counts_the_others() -> None:
    assert listed(["a", "b", "c", "d"]) == "a, b, c, d"
    assert listed(["a", "b", "c", "d", "e", "f"]) == "a, b, c and 3 more rows"


def test_nothing_is_as_good_as_a_dense_network_that_gets_nothing_right(
    deployed: Comparison,
) -> None:
    runs = [
        run.model_copy(update={"scores": (_score("dense", 0.0), _score("deployed", 0.0))})
        for run in deployed.runs
    ]
    broken = deployed.model_copy(update={"runs": tuple(runs)})
    told = advice(broken, comparison_rows(broken))
    assert told[0].startswith("The dense network's F1 is 0 on the test split")
    assert "train it longer" in told[0]
    assert not any("within" in sentence for sentence in told)
