"""What the tables of the candidate benchmark say, by hand."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PEER = [0.1 * k for k in range(64)]  # KL of plan k: the first is the best


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import candidate_tables

    return candidate_tables


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import benchmark_tables

    return benchmark_tables


def _cell(**more: Any) -> dict[str, Any]:
    where = {"commit": "0123456789", "dirty": False, "cpu": "A CPU"}
    return {"environment": where, "threads": 2, **more}


def _run(execution: str, seconds: float, order: list[int]) -> dict[str, Any]:
    found = {"engine": "processes", "execution": execution, "engine_s": seconds}
    return (
        found
        | {"open_s": 22.0, "peer_s_per_plan": 2.0, "peer_open_s": 4.0}
        | {
            "order": order,
            "images": [500] * 64,
        }
    )


def _full() -> dict[str, Any]:
    scores = [{"plan": k, "kl": kl, "top1": 0.9 - 0.01 * k} for k, kl in enumerate(PEER)]
    return _cell(scores={"tp-float32": scores})


def test_searches_in_two_formats_are_two_rows_and_opening_is_charged(
    tables: ModuleType, tmp_path: Path
) -> None:
    straight, swapped = list(range(64)), [1, 0, *range(2, 64)]
    runs = [
        _run("int8 channels_last", 10, straight),
        _run("bfloat16 channels_last", 16, straight),
        _run("int8 channels_last", 20, swapped),
    ]
    cell = json.dumps(_cell(runs=runs))
    (tmp_path / "search-resnet56.json").write_text(cell, encoding="utf-8")
    int8, bfloat16 = tables._search_rows(tmp_path, "resnet56", _full())
    assert (int8["execution"], int8["turns"]) == ("int8 channels_last", 2)
    assert (bfloat16["execution"], bfloat16["turns"]) == ("bfloat16 channels_last", 1)
    # 64 plans of 2 s, over 10 and 20 s; with 4 s and 22 s before the first plan: 132 s, over 32 and 42.
    assert (int8["ratio_min"], int8["ratio"], int8["ratio_max"]) == pytest.approx((6.4, 9.6, 12.8))
    assert int8["ratio_opened_max"] == pytest.approx(132 / 32)
    assert int8["ratio_opened_min"] == pytest.approx(132 / 42)
    assert bfloat16["ratio_opened"] == pytest.approx(132 / 38)
    # The second search of int8 chose plan 1, a point below; of its 2,016 pairs one is swapped.
    assert int8["regret_pt"] == pytest.approx(1.0)
    assert int8["kendall_tau"] == pytest.approx(1 - 2 / 2016)
    assert bfloat16["regret_pt"] == 0


def test_searches_of_which_opening_was_not_timed_say_nothing_of_it(
    tables: ModuleType, drawn: ModuleType, tmp_path: Path
) -> None:
    run = _run("int8 channels_last", 10, list(range(64)))
    del run["open_s"], run["peer_open_s"]
    (tmp_path / "search-resnet56.json").write_text(json.dumps(_cell(runs=[run])), encoding="utf-8")
    (row,) = tables._search_rows(tmp_path, "resnet56", _full())
    line = drawn.candidates([row]).splitlines()[2]
    assert line.startswith("| resnet56 | search | processes, int8 | tp-float32 | 64 |")
    assert "| 12.80 | 1 | – |" in line  # a lone run has no range
    assert "| 12.8 | – | 1 | 0.00 pt |" in drawn.candidates_brief([row])


def test_a_table_says_where_it_was_measured_and_what_is_not(
    tables: ModuleType, drawn: ModuleType, tmp_path: Path
) -> None:
    run = _run("int8 channels_last", 10, list(range(64)))
    (tmp_path / "search-resnet56.json").write_text(json.dumps(_cell(runs=[run])), encoding="utf-8")
    (row,) = tables._search_rows(tmp_path, "resnet56", _full())
    other = {**row, "mode": "full", "engine": "serial", "commit": "fedcba9876", "dirty": True}
    text = drawn.candidates([row, other])
    assert "Measured on A CPU, 2 threads, at `01234567` (search of resnet56), " in text
    assert "`fedcba98 (dirty)` (full of resnet56)." in text
    partial = text.splitlines()[-1]
    assert partial.startswith(
        "Partial: not measured yet: resnet56: full beside tp-float32 by processes;"
    )
    assert "resnet56: search beside tp-float32 by serial" in partial
    assert partial.endswith("; vgg16_bn; resnet18.")


def test_the_short_table_is_of_searches_in_processes_beside_float32(drawn: ModuleType) -> None:
    row: dict[str, Any] = {"network": "n", "mode": "search", "engine": "processes"}
    row |= {"peer": "tp-float32", "candidates_per_s": 3.388, "regret_pt": 0.25, "turns": 3}
    row |= {"ratio": 10.14, "ratio_min": 10.06, "ratio_max": 10.22}
    row |= {"ratio_opened": 4.71, "ratio_opened_min": 4.64, "ratio_opened_max": 4.8}
    others = [{**row, "mode": "full"}, {**row, "engine": "serial"}, {**row, "peer": "masks"}]
    (line,) = drawn.candidates_brief([*others, row]).splitlines()[2:]
    assert line == "| n | 3.39 | 10.1 (10.1 to 10.2) | 4.7 (4.6 to 4.8) | 3 | 0.25 pt |"
