"""Study K's scripts beside its queue: single cuts, what is timed, and what the tables say of them."""

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from prunus.compute import Compute
from prunus.data import load_data
from prunus.graph import cut, trace
from prunus.meter import measure_cost
from prunus.zoo import build

ROOT = Path(__file__).parents[2]
PRECISIONS = {"float32", "bfloat16", "int8", "int7"}


def test_the_clock_times_the_networks_of_the_cells(
    study: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import clock

    monkeypatch.setattr(clock, "IMAGES", 256)
    study.Chain("digits_cnn", "genetic", 0, "small", (2, 3)).run("cpu", tmp_path / "runs")
    assert clock.compared("digits_cnn", "small", "two-cores") == []  # nothing to set it against
    study.Chain("digits_cnn", "scratch", 0, "small", (3,)).run("cpu", tmp_path / "runs")
    cells = clock.compared("digits_cnn", "small", "two-cores")
    # The round before, too: a pruned network has been through it.
    assert [(c["method"], c["round"]) for c in cells] == [
        ("genetic", 2),
        ("genetic", 3),
        ("scratch", 3),
    ]
    record = clock.clocked("digits_cnn", cells, 3)
    assert [(r["method"], r["round"], r["params"]) for r in record["rows"]] == [
        (c["method"], c["round"], c["params"]) for c in cells
    ]
    for row in record["rows"]:
        assert 0 < row["least"] <= row["images_per_second"] <= row["most"]
    assert record["train_images"] == len(load_data("digits").train)
    assert record["settings"]["images"] == 256


@pytest.mark.parametrize("network", ["vgg16_bn", "resnet18"])
@pytest.mark.usefixtures("study")
def test_a_network_of_the_papers_widths_is_built_again(network: str) -> None:
    import clock

    dense = build(network).eval()
    found = trace(dense, torch.zeros(2, 3, 32, 32))
    choice = {g.name: np.arange(g.units) % 3 == 0 for g in found.cuttable}
    small = cut(dense, found.plan(choice))
    widths = [m.out_channels for m in small.modules() if isinstance(m, nn.Conv2d)]
    params = measure_cost(small, found.example_inputs).params
    cell = {"method": "genetic", "widths": widths, "params": params}
    again = clock.narrowed(dense, found, cell)
    assert [m.out_channels for m in again.modules() if isinstance(m, nn.Conv2d)] == widths
    with pytest.raises(RuntimeError, match=f"give {params}, not {params + 1}"):
        clock.narrowed(dense, found, {**cell, "params": params + 1})


def test_the_ablation_sets_each_step_against_the_one_before_seed_by_seed(
    study: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ablation

    monkeypatch.setattr(ablation, "RESULTS", tmp_path / "kuzmin2024" / "results")
    (ablation.RESULTS / "ablation_macs").mkdir(parents=True)

    def cell(variant: str, seed: int, kl: float, form: str = "int8") -> None:
        of = {"network": "n", "variant": variant, "seed": seed, "kl": kl, "top1": 0.5}
        cost = {"seconds": 1.0, "evaluations": 280, "params": 1, "macs": 2e6}
        searched = f"genetic: 280 different networks in {form} channels_last"
        notes = [] if variant == "l2" else [searched]
        ran = {"environment": {"cpu": "Some CPU", "instructions": ["avx2"]}, "notes": notes}
        study.write(ablation.cell_file("n", variant, seed, "macs"), of | cost | ran)

    for seed, (before, guided) in enumerate([(2.0, 1.5), (3.0, 2.3)]):
        cell("+ layers mixed one by one", seed, before)
        cell("guided", seed, guided)
    cell("l2", 1, 4.3)  # seed 0 has no partner
    cell("paper", 0, 5.0)
    cell("guided by taylor", 0, 2.5)
    cell("guided by taylor", 1, 9.9, "float32")  # which says nothing beside one in int8
    ablation.write_summary("ablation_macs")
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import study_tables

    monkeypatch.setattr(study_tables, "STUDIES", tmp_path)
    record, draw = study_tables.TABLES["kuzmin_ablation_macs"]
    table = draw(study.read(ablation.RESULTS / f"{record}.json")).splitlines()
    assert table[2].startswith("| n | paper | 2.0 | 1 | 5.000 | – |")
    assert "| 2.500 ± 0.707 | – |" in table[3]  # the step before it was not measured
    # -0.5 and -0.7: the mean, and the deviation of the two differences.
    assert "| -0.600 ± 0.141 to `+ layers mixed one by one` |" in table[4]
    assert "| +1.000 to `guided` (1 of 2 pairs) |" in table[5]
    assert "| l2 | 2.0 | 1 | 4.300 | +2.000 to `guided` |" in table[6]
    assert table[-1] == (
        "Searched on: Some CPU without VNNI; candidates scored in float32 channels_last, int8 channels_last."
    )


def test_an_ablation_is_at_equal_parameters_or_at_equal_macs(study: ModuleType) -> None:
    import ablation
    import equal_macs

    found = {equal: ablation.budget_of("digits_cnn", equal) for equal in ablation.EQUAL}
    params = study.paper.PARAMS["digits_cnn"][2]  # of round 3
    assert (found["params"].quantity, found["params"].value) == ("params", params)
    assert (found["macs"].quantity, found["macs"].value) == ("macs", equal_macs.SHARE)


def test_table_4_counts_all_rounds_before_and_stops_at_the_first_epoch_as_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import study_tables

    monkeypatch.setattr(study_tables, "STUDIES", tmp_path)
    results = tmp_path / "kuzmin2024" / "results"
    (results / "cells" / "two-cores").mkdir(parents=True)
    (results / "clock").mkdir()

    def cell(method: str, seed: int, number: int, top1: float, seen: list[float]) -> None:
        of = {"network": "n", "method": method, "seed": seed, "round": number, "scale": "small"}
        took = {"search": 100.0 if method == "genetic" else 0.0, "cut": 1.0, "train": 5e5}
        points = [{"search_top1": value, "seconds": 5e5} for value in seen]
        record = {**of, "top1": top1, "seconds": took, "training": points}
        ran = {"cpu": "Fast", "instructions": ["avx512_vnni"], "threads": 1 + seed}
        name = f"small-n-{method}-seed{seed}-round{number}.json"
        content = json.dumps({**record, "environment": ran})
        (results / "cells" / "two-cores" / name).write_text(content, encoding="utf-8")

    # Top-1 on search is no measure of the pruned network, whose dense one has seen that split.
    for seed in (0, 1):
        cell("genetic", seed, 2, 0.9, [0.99, 0.99])
        cell("genetic", seed, 3, 0.8, [0.99, 0.99])
    cell("scratch", 0, 3, 0.0, [0.5, 0.8, 0.7, 0.85])
    cell("scratch", 1, 3, 0.0, [0.5, 0.6, 0.7, 0.79])

    def row(method: str, number: int, speed: float, seed: int = 0) -> dict[str, Any]:
        of = {"method": method, "seed": seed, "round": number, "images_per_second": speed}
        return of | {"precision": "float32" if method == "scratch" else "bfloat16"}

    rows = [row("genetic", k, speed, s) for s in (0, 1) for k, speed in ((2, 10.0), (3, 20.0))]
    given = {"threads": 2, "batch_size": 128, "repeats": 5, "images": 2560}
    timed: dict[str, Any] = {"network": "n", "train_images": 1000, "settings": given}
    timed |= {"rows": [*rows, row("scratch", 3, 50.0)], "environment": {"cpu": "Slow"}}
    path = results / "clock" / "small-n-two-cores.json"
    path.write_text(json.dumps(timed), encoding="utf-8")
    line = [{"network": "n", "machine": "two-cores", "scale": "small"}]
    table = study_tables.kuzmin_from_scratch(line).splitlines()
    # Pruned: 101 s + 2 epochs of 100 s, then 101 s + 2 of 50 s. Narrow: 20 s an epoch.
    assert table[2] == (
        "| n | 3 | 80.00% ± 0.00% | 502 ± 0 | 82.00% ± 4.24% | 1 of 2 | 40 | 80 | bfloat16, float32 |"
    )
    assert table[4].startswith("n: 2 threads, batch 128, median of 5 turns of 2,560 images")
    assert (
        "; epochs timed on Slow without VNNI, searches on Fast with VNNI with 1 thread, Fast"
        in table[4]
    )
    # Without the seconds of an earlier round a seed has no sum, and a round without seeds no line.
    timed["rows"].remove(row("genetic", 2, 10.0, 1))
    path.write_text(json.dumps(timed), encoding="utf-8")
    assert "| 1 of 1 |" in study_tables.kuzmin_from_scratch(line).splitlines()[2]
    timed["rows"].remove(row("genetic", 2, 10.0, 0))
    path.write_text(json.dumps(timed), encoding="utf-8")
    assert "| n | 3 |" not in study_tables.kuzmin_from_scratch(line)
    path.unlink()
    assert study_tables.kuzmin_from_scratch(line) == "Not measured yet."


def test_at_equal_macs_a_cut_is_of_the_dense_network_and_kernels_are_executed_all_the_same(
    study: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import equal_macs

    monkeypatch.setattr(equal_macs, "CELLS", tmp_path / "equal")
    monkeypatch.setattr(equal_macs, "SUMMARY", tmp_path / "equal_macs.json")
    monkeypatch.setattr(equal_macs, "SHARE", 0.5)
    dense = build("digits_cnn").eval()
    macs = measure_cost(dense, torch.zeros(1, 1, 8, 8)).macs
    for method in ("genetic", "genetic-kernels", "genetic-paper-neurons"):
        chain = equal_macs.CutToMacs("digits_cnn", method, 0, "small", (equal_macs.ROUND,))
        chain.run("cpu", tmp_path / "runs")
    assert not study.CELLS.exists()  # cells of Table 2 are others
    equal_macs.write_summary()
    rows = {r["method"]: r for r in study.read(equal_macs.SUMMARY)}
    assert list(rows) == ["genetic", "genetic-kernels", "genetic-paper-neurons"]
    for row in rows.values():
        assert 0.45 * macs < row["macs"] <= 0.5 * macs
    assert rows["genetic-kernels"]["effective_macs"] < 0.95 * rows["genetic-kernels"]["macs"]
    assert rows["genetic"]["effective_macs"] == rows["genetic"]["macs"]
    assert rows["genetic-paper-neurons"]["effective_macs"] == rows["genetic-paper-neurons"]["macs"]
    (cell,) = [study.read(p) for p in equal_macs.CELLS.glob("*/*-genetic-seed0.json")]
    assert len(cell["training"]) == 1 and cell["test_evaluations"] == 1
    assert rows["genetic"]["top1_by_seed"] == {"0": cell["top1"]}


def test_searches_are_timed_from_the_dense_network_without_its_trainings(
    study: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ablation
    import searches

    monkeypatch.setattr(searches, "CELLS", tmp_path / "searches")
    monkeypatch.setattr(searches, "SUMMARY", tmp_path / "searches.json")
    monkeypatch.setattr(ablation, "compute_of", lambda _: Compute())
    command = ["searches.py", "run", "--network", "digits_cnn", "--seed", "0", "1"]
    monkeypatch.setattr(sys, "argv", command)
    searches.main()
    paths = sorted(searches.CELLS.glob("*/*.json"))
    assert len(paths) == 4 and not study.CELLS.exists()
    cells = {(c["method"], c["seed"]): c for c in map(study.read, paths)}
    # 6 networks, then 4 children in the one generation, some of them twins; as many by random search.
    assert all(1 < cell["evaluations"] <= 10 for cell in cells.values())
    assert all(cell["scored_in"].split()[0] in PRECISIONS for cell in cells.values())
    assert all(0 < cell["seconds"] < 600 for cell in cells.values())
    monkeypatch.setattr(searches, "searched", None)  # none is done twice
    searches.main()
    for path in paths:
        cell = study.read(path)
        took = {"genetic": 4.0, "random-search": 1.0}[cell["method"]] * (1 + cell["seed"])
        study.write(path, {**cell, "seconds": took})
    searches.write_summary()
    rows = study.read(searches.SUMMARY)
    assert [(r["method"], r["seeds"], r["paper_seconds"]) for r in rows] == [
        ("genetic", 2, 1.0),
        ("random-search", 2, 1.0),
    ]
    told = ("seconds_mean", "seconds_std", "seconds_most")
    assert [rows[0][name] for name in told] == [6.0, 2.8, 8.0]  # of 4 and 8 seconds
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import study_tables

    line = study_tables.kuzmin_searches(rows).splitlines()[2]
    assert line.startswith("| digits_cnn | 2 | genetic | 6 ± 3 | 8 | 1 |")
    assert line.endswith(f"{rows[0]['scored_in']} | 2 |")


def test_differences_at_equal_macs_are_taken_seed_by_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import study_tables

    def row(method: str, scores: dict[str, float]) -> dict[str, Any]:
        of = {"network": "n", "scale": "small", "machine": "two-cores", "method": method}
        cost = {"macs": 9e6, "effective_macs": 8e6, "params": 1000}
        return {
            **of,
            **cost,
            "top1_mean": 0.5,
            "top1_std": None,
            "seeds": len(scores),
            "top1_by_seed": scores,
        }

    rows = [
        row("genetic", {"0": 0.80, "1": 0.90}),
        row("l2", {"0": 0.79, "1": 0.87, "2": 0.1}),  # seed 2 has no partner
        row("random", {"2": 0.1}),
    ]
    table = study_tables.kuzmin_equal_macs(rows).splitlines()
    assert table[2].endswith("| 50.00% | – | 2 |")
    assert table[3].endswith("| 50.00% | -2.00 ± 1.41 pt (2 of 3 seeds) | 3 |")
    assert table[4].endswith("| 50.00% | – | 1 |")
