"""Study M: its bootstrap by hand, its rows, and what its tables say."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score

from tests.studies.torkunova import FOLDER, ROOT, cell_of


def test_the_bootstrap_gives_the_f1_of_scikit_learn_and_no_difference_for_equals(
    text_study: ModuleType,
) -> None:
    draw = np.random.default_rng(0)
    labels = draw.random(400) < 0.4
    one, two = draw.random(400) < 0.9, draw.random(400) < 0.7  # which texts are right
    found = text_study.bootstrap.f1_difference(labels, one, two)
    wanted = f1_score(labels, labels == one) - f1_score(labels, labels == two)
    assert found["difference"] == pytest.approx(wanted, abs=1e-12)
    assert found["low"] < wanted < found["high"]
    assert found["low"] > 0  # 90 % against 70 % of 400 texts is no chance
    same = text_study.bootstrap.f1_difference(labels, one, one)
    assert same["difference"] == same["low"] == same["high"] == 0


def test_every_row_and_chain_of_the_paper_is_run(text_study: ModuleType) -> None:
    rows = {text_study.summary.plain_row(row) for row in text_study.SETS["sms"].suite.rows()}
    assert set(text_study.sizes.paper.LINES) - {"none"} <= rows
    # The rows of part (a) have rows of part (b) that tell their quality.
    kinds = {text_study.summary.plain_row(row) for row in text_study._rows(text_study.SETS["sst2"])}
    assert {"int8 linear", "int8 linear + embeddings", "distilled", "student alone"} <= kinds


def test_rows_that_draw_nothing_have_one_seed(text_study: ModuleType) -> None:
    rows = text_study._rows(text_study.SETS["sst2"])
    drawn = {row for row, steps in rows.items() if any(map(text_study._draws, steps))}
    fixed = {row for row in rows if row.startswith(("float", "bfloat16", "vocab"))}
    assert drawn
    assert fixed == rows.keys() - drawn


def test_bare_products_are_those_of_bytes(text_study: ModuleType) -> None:
    shapes = [(8, 4), (4, 6)]
    given = text_study.bound._bytes(shapes)
    found = text_study.bound._products(shapes, 1)(given)
    weight = np.random.default_rng(0).integers(-64, 64, (8, 4), dtype=np.int8)
    assert found.tolist() == ((given["x8"].long().numpy() - 128) @ weight.astype(int)).tolist()


def test_what_int8_products_alone_take_is_told_from_its_record(text_study: ModuleType) -> None:
    import text_tables

    times = {"float32": 100.0, "products of dense": 20.0, "products of pruning by half": 8.0}
    record = {
        "latencies": {n: {"median_ms": found, "lead": 1} for n, found in times.items()},
        "multiply_adds": {"dense": 5_000_000_000, "pruning by half": 2_000_000_000},
        "environment": {"cpu": "A CPU", "threads": 2},
    }
    table = text_tables.torkunova_bound(record, "avx512")
    assert "A CPU (AVX-512 VNNI), 2 threads, by turns with PyTorch's float32 (100.0 ms)." in table
    assert "Each run timed behind an untimed run of its own." in table
    assert "at most" not in table  # engines spare a part of these products
    assert "| dense | 20.0 | 500 | 5.00 | 5 and 7 |" in table  # 10 billion operations in 20 ms
    assert "| pruning by half | 8.0 | 500 | 12.50 | 15 |" in table


def test_without_the_last_layers_spared_products_the_older_processor_is_too_slow_still() -> None:
    """As the page says: three quarters of the last of twelve layers are what engines spare."""
    path = FOLDER / "results" / "bound-avx512.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    layer = 4 * 768 * 768 + 2 * 768 * 3072
    assert record["multiply_adds"]["dense"] == 12 * layer * record["sequence"]
    times = {name: found["median_ms"] for name, found in record["latencies"].items()}
    for name, asked in (("dense", 7), ("pruning by half", 15)):
        assert times["float32"] / (times[f"products of {name}"] * 15 / 16) < asked


def test_the_encoder_of_the_papers_tucker_row_is_twenty_times_smaller(
    text_study: ModuleType,
) -> None:
    # 12 layers of 768 wide: 4 square matrices, up and down of the feed-forward part, in MB.
    rank, width, inner, layers = round(text_study.TextSuite().rank * 768), 768, 3072, 12
    square = 4 * layers * rank**2 + 2 * rank * width
    oblong = layers * rank**2 + rank * (width + inner)
    # The paper's rows imply 17 MB: 385 less the word embeddings' 368.
    assert 4 * (square + 2 * oblong) / 1e6 <= 17


def test_a_summary_tells_means_spreads_and_the_papers_figures(
    text_study: ModuleType, tmp_path: Path
) -> None:
    (tmp_path / "cells").mkdir()
    for seed, f1 in enumerate((0.90, 0.92, 0.94)):
        cell = cell_of(seed, f1)
        (tmp_path / "cells" / f"{seed}.json").write_text(json.dumps(cell), encoding="utf-8")
    text_study.summary.write(tmp_path)
    (row,) = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    assert row["f1_mean"] == pytest.approx(0.92)
    assert row["f1_std"] == pytest.approx(0.02)
    assert row["f1_by_seed"] == {"0": 0.90, "1": 0.92, "2": 0.94}
    assert (row["seeds"], row["size_mb"], row["paper_size_mb"]) == (3, 10.2, 10.3)
    assert row["against_dense"]["difference"] == pytest.approx(-0.05)
    import text_tables

    table = text_tables.torkunova_quality([row])
    assert "| distilled | 0.9200 ± 0.0200 | 3 | -0.0500" in table
    assert text_tables.torkunova_sizes([row]) == "Not measured yet."


def test_speeds_are_of_networks_that_were_timed_in_turns(
    text_study: ModuleType, tmp_path: Path
) -> None:
    (tmp_path / "cells").mkdir()
    cells = []
    # The machine grew slower from seed to seed; each seed's own turns say 4, 5 and 6 times as fast.
    for seed, (row, dense) in enumerate(((8.0, 32.0), (4.0, 20.0), (1.0, 6.0))):
        cells.append(cell_of(seed, 0.9))
        cells[-1] |= {"latency": {"median_ms": row}, "dense_latency": {"median_ms": dense}}
        cells[-1]["deployed"] = {"own_float32_latency": {"median_ms": dense / 2}}
        (tmp_path / "cells" / f"{seed}.json").write_text(json.dumps(cells[-1]), encoding="utf-8")
    text_study.summary.write(tmp_path)
    import text_tables

    summed = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    line = text_tables.torkunova_quality(summed, cells).splitlines()[4]
    assert line.endswith("| 2.50 | 5.00 | 0.952 |")
    untimed = [{**cell, "latency": None} for cell in cells]
    line = text_tables.torkunova_quality(summed, untimed).splitlines()[4]
    assert line.endswith("| – | – | 0.952 |")


def test_times_of_a_row_and_of_the_dense_network_are_means_over_the_same_seeds(
    text_study: ModuleType, tmp_path: Path
) -> None:
    (tmp_path / "cells").mkdir()
    # The last seed's row was not timed: its dense network's time has nothing to stand beside.
    times = ((8.0, 32.0, 16.0), (4.0, 20.0, 9.0), (None, 99.0, 99.0))
    for seed, (row, dense, own) in enumerate(times):
        cell = cell_of(seed, 0.9) | {"dense_latency": {"median_ms": dense}}
        cell["latency"] = None if row is None else {"median_ms": row}
        cell["deployed"] = {"own_float32_latency": {"median_ms": own}}
        (tmp_path / "cells" / f"{seed}.json").write_text(json.dumps(cell), encoding="utf-8")
    text_study.summary.write(tmp_path)
    (found,) = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    assert (found["cpu_ms"], found["fp32_eager_cpu_ms"]) == (6.0, 26.0)
    assert found["fp32_same_engine_cpu_ms"] == 12.5
    cell = cell_of(0, 0.9)  # on PyTorch, of which the dense network is the float32
    assert text_study.summary._quality([cell])["fp32_same_engine_cpu_ms"] == 8.0


def test_aims_are_judged_from_the_records(text_study: ModuleType) -> None:
    import text_tables

    rows = [
        _row("student alone", 0.80),
        _row("distilled", 0.85),
        _row("int8 linear (torch)", 0.896, worst=-0.007),  # of two seeds, 0.893 and 0.899
    ]
    rows.append(_row("distilled + tucker + int8 embeddings (onnxruntime)", 0.83, size_mb=1.7))
    table = text_tables.torkunova_aims(rows)
    assert "| F1 of the teacher on SST-2 | ≥ 0.9 | 0.900 | met |" in table
    assert "that the student alone lacks, mean over seeds | ≥ 0.333 | 0.500 | met |" in table
    assert "that the student alone lacks, least seed | ≥ 0.333 | – | not measured |" in table
    assert "training texts alone, mean over seeds | ≥ 0.333 | – | not measured |" in table
    assert "quantizing loses, SST-2, mean over seeds | ≤ 0.005 | 0.0040 | met |" in table
    assert "quantizing loses, SST-2, worst seed | ≤ 0.005 | 0.0070 | not met |" in table
    assert "of at most 2 MB, SST-2 | ≥ 0.84 | 0.830 | not met |" in table
    assert "lacks to its teacher, SMS | ≤ 0.015 | – | not measured |" in table
    timed = {"cpu_ms": 10.0, "fp32_eager_cpu_ms": 55.0, "fp32_same_engine_cpu_ms": 19.0}
    row = {"part": "a", "row": "int8 linear + embeddings (onnxruntime)", **timed}
    table = text_tables.torkunova_aims([row])
    assert "× PyTorch float32 | ≥ 5 | 5.500 | met |" in table
    assert "× its own float32 | ≥ 2 | 1.900 | not met |" in table
    assert "(AVX2): × its own" in table and "AMX" not in table and "AVX-512" not in table
    faster = {**row, "machine": "amx", "fp32_same_engine_cpu_ms": 30.0}
    table = text_tables.torkunova_aims([row, faster])
    assert "(AMX): × its own float32 | ≥ 2 | 3.000 | met |" in table
    assert "embeddings (AVX2): × its own float32 | ≥ 2 | 1.900 | not met |" in table


def test_the_gap_that_a_student_closes_is_told_by_seed_and_without_more_texts(
    text_study: ModuleType,
) -> None:
    import text_tables

    # The teacher has 0.90. By seed: 0.06 of 0.10, 0.03 of 0.12 and 0.06 of 0.08.
    rows = [
        {**_row("student alone", 0.80), "f1_by_seed": {"0": 0.80, "1": 0.78, "2": 0.82}},
        {**_row("distilled", 0.85), "f1_by_seed": {"2": 0.88, "1": 0.81, "0": 0.86}},
        _row("distilled, training texts alone", 0.82),
    ]
    table = text_tables.torkunova_aims(rows)
    assert "that the student alone lacks, mean over seeds | ≥ 0.333 | 0.500 | met |" in table
    assert "that the student alone lacks, least seed | ≥ 0.333 | 0.250 | not met |" in table
    assert "the training texts alone, mean over seeds | ≥ 0.333 | 0.200 | not met |" in table


def test_rows_that_were_trained_on_drawn_texts_say_on_how_many(text_study: ModuleType) -> None:
    import text_tables

    cells = [cell_of(0, 0.9) | {"text": {"train_size": 6000}}]
    (row,) = [text_study.summary._quality(cells)]
    told = text_tables.torkunova_quality([row], cells)
    assert "**sst2**, minilm: dense F1 0.9500. Trained on 6,000 drawn texts." in told
    cells[0]["text"] = {"train_size": None}
    assert "drawn texts" not in text_tables.torkunova_quality([row], cells)


def test_the_short_table_holds_the_rows_that_there_are(text_study: ModuleType) -> None:
    import text_tables

    rows = [_row("distilled", 0.85, f1_std=0.01), _row("float32 (onnxruntime)", 0.9)]
    rows += [{**rows[0], "data": "sms"}, _row("student alone", 0.8)]
    cells = [
        {"set": "sst2", "row": "distilled", "deployed": None, "latency": {"median_ms": 2.0}}
        | {"dense_latency": {"median_ms": 9.0}}
    ]
    lines = text_tables.torkunova_brief(rows, cells).splitlines()[2:]
    assert lines == [
        "| dense, float32 (onnxruntime) | 0.9000 | 10.00 | – |",
        "| distilled | 0.8500 ± 0.0100 | 10.00 | 4.50 |",
    ]


MEDIANS = {"sizes": 20.0, "sizes-avx512": 7.0, "sizes-avx512-avxvnni": 6.0, "sizes-amx": 5.0}


def test_sizes_of_each_machine_stand_in_a_table(text_study: ModuleType, tmp_path: Path) -> None:
    for folder, median in MEDIANS.items():
        (tmp_path / folder).mkdir()
        cell = _sized("none", median, f"CPU of {folder}")
        (tmp_path / folder / "none.json").write_text(json.dumps(cell), encoding="utf-8")
    text_study.summary.write(tmp_path)
    rows = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    import text_tables

    plain = text_tables.torkunova_sizes(rows)
    amx = text_tables.torkunova_sizes(rows, "amx")
    assert (
        "CPU of sizes (AVX2), 2 threads." in plain
        and "| none | 1.00 | 711 | 20.0 |" in plain.replace("**", "")
    )
    assert "measured at different times; × are ratios" in plain
    assert "CPU of sizes-amx (AMX), 2 threads." in amx and "| 5.0 |" in amx and "20.0" not in amx
    for machine, median in (("avx512", 7.0), ("avx512-avxvnni", 6.0)):
        assert f"| {median} |" in text_tables.torkunova_sizes(rows, machine)


def test_the_range_of_what_ratios_are_to_stands_above_them(text_study: ModuleType) -> None:
    import text_tables

    rows = [
        {"part": "a", "row": name, "cpu": "a CPU", "threads": 2, "lead": 1, "f1_row": None}
        | {"size_mb": 9.0, "paper_size_mb": None, "cpu_ms": 10.0}
        | {"fp32_same_engine_cpu_ms": 20.0, "fp32_eager_cpu_ms": eager}
        for name, eager in (("one", 133.6), ("two", 175.2), ("three", 140.0))
    ]
    table = text_tables.torkunova_sizes(rows)
    assert "PyTorch's float32, timed with every row, took 134 to 175 ms." in table


def test_aims_that_are_reached_are_so_beside_the_shortest_time_of_pytorch() -> None:
    """As the page says, of the processor that reaches them: its other times were up to a third longer."""
    path = ROOT / "studies" / "torkunova2023" / "results" / "summary.json"
    rows = json.loads(path.read_text(encoding="utf-8"))
    mine = {r["row"]: r for r in rows if r.get("machine") == "avx512-avxvnni"}
    shortest = min(row["fp32_eager_cpu_ms"] for row in mine.values())
    for row, least in (
        ("int8 linear + embeddings (onnxruntime)", 5),
        ("int8 linear + embeddings (openvino)", 7),
        ("layers + int8 in one shape (openvino)", 15),
    ):
        assert shortest / mine[row]["cpu_ms"] >= least


def test_times_on_a_gpu_stand_beside_the_rows_that_run_there(
    text_study: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = torch.nn.Embedding(2000, 4)
    network = _Words(table)
    made = text_study.sizes.Subject("dense", network, text_study.sizes.NETWORK)
    monkeypatch.setattr(text_study.sizes, "subjects", lambda: {"dense": lambda: made})
    text_study.sizes.gpu(tmp_path / "gpu.json", device="cpu")
    times = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))["latencies"]
    assert set(times) == {"dense", "dense in float16"}
    assert times["dense"]["repeats"] == text_study.sizes.GPU_REPEATS
    assert table.weight.dtype == torch.float32  # the half is a copy
    (tmp_path / "sizes").mkdir()
    for name in ("none", "int8 linear (torch)"):
        (tmp_path / "sizes" / f"{name}.json").write_text(
            json.dumps(_sized(name, 20.0)), encoding="utf-8"
        )
    text_study.summary.write(tmp_path)
    rows = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    found = {row["row"]: row["gpu_ms"] for row in rows}
    assert found == {"none": round(times["dense"]["median_ms"], 3), "int8 linear (torch)": None}


@pytest.mark.parametrize(
    ("lead", "told"),
    [(1, "an untimed run of its own"), (None, "the run of another network")],
)
def test_times_on_a_gpu_say_what_ran_before_them(
    text_study: ModuleType, lead: int | None, told: str
) -> None:
    import text_tables

    found = {"median_ms": 4.0, "batch": 1, "repeats": 9, "lead": lead}
    record = {"latencies": {"dense": found, "dense in float16": found}, "sequence": 128}
    record["environment"] = {"gpu": "A card", "versions": {"torch": "2.0"}}
    assert f"Each run timed behind {told}." in text_tables.torkunova_gpu(record)


@pytest.mark.parametrize(
    ("row", "quality"),
    [
        ("none (openvino)", "dense"),
        ("tucker", "tucker"),
        ("pruning", None),  # by a third, where part (b) prunes by half
        ("pruning + int8 (openvino)", None),
        ("pruning by half", "pruning"),
        ("pruning by half + int8 (openvino)", "pruning + int8 (openvino)"),
        ("distilled + int8 embeddings (openvino)", None),  # not in part (b)
    ],
)
def test_a_size_names_the_row_that_tells_its_quality(
    text_study: ModuleType, row: str, quality: str | None
) -> None:
    known = {"tucker", "pruning", "pruning + int8 (openvino)"}
    assert text_study.summary.f1_row(row, known) == quality


class _Words(torch.nn.Module):
    """Takes texts, as the study's networks do."""

    def __init__(self, table: torch.nn.Embedding) -> None:
        super().__init__()
        self.table = table

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.table(input_ids) * attention_mask[..., None]
        return found


def _sized(row: str, median: float, cpu: str = "a CPU") -> dict[str, Any]:
    found = {"median_ms": median, "threads": 2}
    cell = {"row": row, "engine": "torch", "network": "BERT", "size_bytes": 1_000_000}
    cell |= {"latency": found, "own_float32_latency": found, "dense_latency": found}
    return {**cell, "environment": {"cpu": cpu, "commit": "0" * 40, "dirty": False}}


def _row(name: str, f1: float, *, worst: float = 0.0, **more: float) -> dict[str, Any]:
    known: dict[str, Any] = {"part": "b", "data": "sst2", "dense_f1": 0.9, "size_mb": 10.0}
    known |= {"f1_std": None, "against_dense": {"difference": worst}}
    return {"row": name, "f1_mean": f1, **known, **more}
