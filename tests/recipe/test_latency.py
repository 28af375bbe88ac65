"""Times of a run that is done: measured when it is resumed, where they are missing or of other settings."""

from pathlib import Path

import pytest

from prunus.recipe import compress
from prunus.recipe.measure import LatencyOptions
from prunus.records import RunRecord
from tests.recipe.subjects import (
    FAST,
    STEPS,
    Killer,
    few_digits,
    trained_cnn,
)


def test_a_latency_that_was_switched_off_is_measured_by_a_run_that_wants_it(tmp_path: Path) -> None:
    out, data, watch = tmp_path / "run", few_digits(), Killer()
    first = compress(trained_cnn(), STEPS[:2], data, out=out, latency=None).record
    looks = data.test.evaluations
    again = compress(
        trained_cnn(), STEPS[:2], data, out=out, resume=True, progress=watch, latency=FAST
    ).record
    assert watch.phases == ["trace", "measure"]
    assert data.test.evaluations == looks
    assert again.latency is not None and again.dense_latency is not None
    assert set(first.notes) - set(again.notes) == {"latency: switched off"}
    same = {"latency": None, "dense_latency": None, "notes": first.notes}
    assert again.model_copy(update=same) == first
    assert RunRecord.load(out / "record.json") == again
    kept = compress(trained_cnn(), STEPS[:2], data, out=out, resume=True, latency=None).record
    assert kept == again


@pytest.mark.parametrize("change", [{"threads": 2}, {"batch": 4}, {"repeats": 31}, {"warmup": 2}])
def test_a_latency_is_measured_anew_where_it_is_asked_for_otherwise(
    tmp_path: Path, change: dict[str, int]
) -> None:
    out, fast = tmp_path / "run", LatencyOptions(repeats=30, warmup=1, batch=2, threads=1)
    first = compress(trained_cnn(), STEPS[:1], few_digits(), out=out, latency=fast).record
    asked, watch = fast.model_copy(update=change), Killer()
    again = compress(
        trained_cnn(), STEPS[:1], few_digits(), out=out, resume=True, progress=watch, latency=asked
    ).record
    assert watch.phases == ["trace", "measure"]
    for found in (again.latency, again.dense_latency):
        assert found is not None
        assert {name: getattr(found, name) for name in asked.model_dump()} == asked.model_dump()
    same = {"latency": first.latency, "dense_latency": first.dense_latency}
    assert again.model_copy(update=same) == first
    assert RunRecord.load(out / "record.json") == again


def test_a_latency_of_more_samples_than_there_are_is_measured_once(tmp_path: Path) -> None:
    given = {"out": tmp_path / "run", "latency": LatencyOptions(repeats=30, warmup=1, batch=9999)}
    first = compress(trained_cnn(), STEPS[:1], few_digits(), **given).record  # type: ignore[arg-type]
    again = compress(trained_cnn(), STEPS[:1], few_digits(), **given, resume=True).record  # type: ignore[arg-type]
    assert first.latency is not None and first.latency.batch == len(few_digits().train)
    assert again == first
