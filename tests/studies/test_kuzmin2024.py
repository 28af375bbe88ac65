"""Study K's queue, on digits: rounds, cells, one look a cell, resume, and what the tables say of them."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from prunus.compute import Compute
from prunus.data import load_data
from prunus.graph import cut, trace
from prunus.meter import measure_cost
from prunus.records import Source
from prunus.zoo import build

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "studies" / "kuzmin2024"
PRECISIONS = {"float32", "bfloat16", "int8", "int7"}


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ModuleType]:
    """The study on a small network, its results in a folder of the test."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(FOLDER))
    import paper
    import study

    weights = tmp_path / "weights.safetensors"
    save_file(build("digits_cnn").state_dict(), weights)
    source = Source(model="digits_cnn", weights=str(weights))
    monkeypatch.setitem(study.DENSE, "digits_cnn", source)
    monkeypatch.setitem(study.DENSE_EPOCHS, "digits_cnn", 1)
    monkeypatch.setitem(paper.PARAMS, "digits_cnn", (24_000, 12_000, 8_000, 5_000, 3_000))
    monkeypatch.setitem(paper.TOP1, "digits_cnn", (0.5,) * 5)
    monkeypatch.setitem(paper.SECONDS, "digits_cnn", (1.0,) * 5)
    monkeypatch.setitem(study.SCALES, "small", study.Scale(generations=1, images=64, epochs=1))
    monkeypatch.setattr(study, "POPULATION", 6)
    monkeypatch.setattr(study, "PARENTS", 2)
    monkeypatch.setattr(study, "data_of", lambda _: load_data("digits"))
    monkeypatch.setattr(study, "CELLS", tmp_path / "cells")
    monkeypatch.setattr(study, "SUMMARY", tmp_path / "summary.json")
    yield study
    for name in set(sys.modules) - before:
        if (FOLDER / f"{name}.py").exists():
            del sys.modules[name]


def test_a_queue_changes_no_file_that_git_tracks_and_table_sums_it_up(
    study: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The record of the next queue would be marked dirty.
    study.CELLS.mkdir()
    monkeypatch.setattr(study, "_queue", lambda _: [])
    command = ["study.py", "run", "--network", "digits_cnn", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", command)
    study.main()
    assert [p.name for p in study.CELLS.iterdir()] == ["dense-digits_cnn.json"]
    assert not study.SUMMARY.exists()
    monkeypatch.setattr(sys, "argv", ["study.py", "table"])
    study.main()
    assert [r["method"] for r in json.loads(study.SUMMARY.read_text(encoding="utf-8"))] == ["dense"]


def _cells(study: ModuleType) -> list[dict[str, Any]]:
    return [json.loads(p.read_text(encoding="utf-8")) for p in sorted(study.CELLS.rglob("*.json"))]


@pytest.mark.parametrize("method", ["genetic", "genetic-paper", "l2"])
def test_a_chain_meets_the_parameters_of_every_round(
    study: ModuleType, tmp_path: Path, method: str
) -> None:
    study.Chain("digits_cnn", method, 0, "small", (2, 3, 4, 5)).run("cpu", tmp_path / "runs")
    cells = _cells(study)
    assert [c["round"] for c in cells] == [2, 3, 4, 5]
    for cell, limit in zip(cells, (12_000, 8_000, 5_000, 3_000), strict=True):
        assert 0.95 * limit < cell["params"] <= limit
        assert cell["test_evaluations"] == 1 and cell["test_samples"] > 100
        assert cell["certificate"]["passed"]
        assert len(cell["training"]) == 1
    zeroed = method == "genetic-paper"
    assert all((c["effective_macs"] < c["macs"]) == zeroed for c in cells)
    study.write_summary()
    rows = json.loads(study.SUMMARY.read_text(encoding="utf-8"))
    assert [(r["round"], r["top1_mean"], r["seeds"]) for r in rows] == [
        (c["round"], round(c["top1"], 5), 1) for c in cells
    ]


def test_a_stopped_chain_keeps_its_finished_rounds_and_goes_on(
    study: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain = study.Chain("digits_cnn", "l2", 0, "small", (2, 3, 4, 5))
    compress = study.prunus.compress

    def stopped(*given: Any, **options: Any) -> Any:
        """Rounds 2 and 3, then Ctrl-C: as a run that was stopped leaves its folder."""
        compress(*given, **options)
        for path in (tmp_path / "runs" / chain.name / "steps").iterdir():
            if path.is_file() and int(path.name[:2]) > 6:
                path.unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(study.prunus, "compress", stopped)
    with pytest.raises(KeyboardInterrupt):
        chain.run("cpu", tmp_path / "runs")
    first = _cells(study)
    assert [c["round"] for c in first] == [2, 3]
    monkeypatch.setattr(study.prunus, "compress", compress)
    (tmp_path / "runs" / chain.name / "record.json").unlink()
    chain.run("cpu", tmp_path / "runs")
    cells = _cells(study)
    assert [c["round"] for c in cells] == [2, 3, 4, 5]
    assert cells[:2] == first


def test_from_scratch_has_the_epochs_of_all_rounds(study: ModuleType, tmp_path: Path) -> None:
    study.Chain("digits_cnn", "scratch", 0, "small", (3,)).run("cpu", tmp_path / "runs")
    (cell,) = _cells(study)
    # One epoch of the dense training, one each of rounds 2 and 3.
    assert len(cell["training"]) == 3
    assert cell["params"] <= 8_000
    assert not cell["search_seen_in_pretraining"]
    assert cell["precision"] in {"float32", "bfloat16"}


def test_the_dense_network_is_looked_at_once_and_stands_before_its_rounds(
    study: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    study.look_at_dense("digits_cnn", "cpu")
    (cell,) = _cells(study)
    assert (cell["network"], cell["test_evaluations"]) == ("digits_cnn", 1)
    assert cell["test_samples"] == len(load_data("digits").test)
    assert cell["params"] == sum(p.numel() for p in build("digits_cnn").parameters())
    monkeypatch.setattr(study, "evaluate", None)  # a second look would fail
    study.look_at_dense("digits_cnn", "cpu")
    study.write_summary()
    (row,) = json.loads(study.SUMMARY.read_text(encoding="utf-8"))
    assert (row["round"], row["method"], row["top1_mean"]) == (1, "dense", round(cell["top1"], 5))
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import study_tables

    assert "| digits_cnn | 1 | dense |" in study_tables.kuzmin_quality([row])


def _written(study: ModuleType, machine: str, method: str, seed: int, top1: float) -> None:
    path = study.Chain("digits_cnn", method, seed, "small", (2,), machine=machine).cell(2)
    path.parent.mkdir(parents=True, exist_ok=True)
    cost = {
        "params": 12_000,
        "macs": 9,
        "effective_macs": 9,
        "seconds": {"search": 2.0, "train": 1},
    }
    of = {"network": "digits_cnn", "method": method, "seed": seed, "round": 2, "scale": "small"}
    study.write(path, {**of, **cost, "top1": top1})


def test_methods_are_compared_on_the_machine_that_has_the_most_cells(study: ModuleType) -> None:
    _written(study, "gpu", "genetic", 0, 0.9)
    _written(study, "two-cores", "genetic", 0, 0.5)
    study.write_summary()
    assert [r["machine"] for r in study.read(study.SUMMARY)] == ["gpu"]  # the first of equals
    _written(study, "two-cores", "l2", 0, 0.25)
    _written(study, "two-cores", "l2", 1, 0.75)
    study.write_summary()
    rows = study.read(study.SUMMARY)
    assert [(r["method"], r["machine"], r["top1_mean"], r["seeds"]) for r in rows] == [
        ("genetic", "two-cores", 0.5, 1),
        ("l2", "two-cores", 0.5, 2),
    ]
    assert [r["search_seconds"] for r in rows] == [2.0, 2.0]


def test_the_queue_puts_every_method_of_a_seed_before_the_next_seed(study: ModuleType) -> None:
    options = type("Options", (), {})()
    options.seed, options.method, options.network = [0, 1], ["genetic", "scratch"], ["vgg16_bn"]
    options.scale, options.rounds, options.machine = "small", 5, "gpu"
    queue = [(c.seed, c.method, c.rounds) for c in study._queue(options)]
    scratch = [(5,), (3,), (4,), (2,)]
    assert queue[:5] == [(0, "genetic", (2, 3, 4, 5)), *((0, "scratch", k) for k in scratch)]
    assert {seed for seed, _, _ in queue[5:]} == {1}


@pytest.mark.parametrize(
    ("device", "cores", "folder"),
    [("cpu", 2, "two-cores"), ("cpu", 16, "16-cores"), ("cuda", 16, "gpu")],
)
def test_cells_of_another_kind_of_machine_go_to_a_folder_of_their_own(
    study: ModuleType, device: str, cores: int, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study.os, "cpu_count", lambda: cores)
    assert study.machine_of(device) == folder


def test_shares_of_the_recipe_are_the_papers_parameters(study: ModuleType) -> None:
    recipe = study.Chain("vgg16_bn", "genetic", 0, "small", (2, 3, 4, 5)).recipe(14_728_266)
    (repeat,) = recipe.steps
    limits = [int(share * 14_728_266) for share in repeat.schedule]
    assert all(
        0 <= wanted - limit <= 1
        for limit, wanted in zip(limits, (3_100_000, 900_000, 500_000, 300_000), strict=True)
    )
    options = repeat.steps[0].options
    assert (options["population"], options["parents"]) == (6, 2)
    assert (options["crossover"], options["mutation"]) == (0.6, 0.6)


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


def test_table_2_tells_which_processors_its_cells_are_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    monkeypatch.syspath_prepend(str(FOLDER))
    import study_tables

    monkeypatch.setattr(study_tables, "STUDIES", tmp_path)
    folder = tmp_path / "kuzmin2024" / "results" / "cells" / "two-cores"
    folder.mkdir(parents=True)

    def cell(method: str, seed: int, instructions: list[str]) -> None:
        of = {"network": "vgg16_bn", "method": method, "seed": seed, "scale": "small"}
        ran = {"environment": {"cpu": "Some CPU", "instructions": instructions}}
        given = {"settings": {"epochs": 5, "generations": 10, "images": 1000}}
        record = json.dumps(of | ran | given)
        (folder / f"small-vgg16_bn-{method}-seed{seed}-round2.json").write_text(record, "utf-8")

    known = {"round": 2, "params": 1, "macs": 1, "top1_mean": 0.9, "top1_std": None, "seeds": 3}
    of = {"network": "vgg16_bn", "machine": "two-cores", "scale": "small", "paper_top1": 0.8}
    row = {"method": "genetic", **known, **of}
    cell("genetic", 0, ["avx2", "avx512_vnni"])
    cell("genetic", 1, ["avx2", "avx512_vnni"])
    table = study_tables.kuzmin_quality([row])
    assert "Cells of vgg16_bn are of `two-cores`: Some CPU with VNNI.\n" in table
    cell("random", 2, ["avx2"])
    table = study_tables.kuzmin_quality([row])
    assert "with VNNI (genetic 0/1); Some CPU without VNNI (random 2)." in table


def test_the_front_page_has_a_line_a_round_and_tells_few_seeds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import study_tables

    def row(number: int, method: str, top1: float, seeds: int) -> dict[str, Any]:
        of = {"network": "n", "round": number, "method": method, "seeds": seeds}
        told = {"scale": "small" if number > 1 else None, "top1_mean": top1}
        spread = 0.01 if seeds > 1 else None
        return {**of, **told, "top1_std": spread, "paper_params": 2.5e6, "paper_top1": 0.5}

    rows = [
        row(1, "dense", 0.95, 1),
        row(2, "genetic", 0.9, 3),
        row(2, "l2", 0.8, 2),
        row(3, "genetic", 0.7, 1),
    ]
    table = study_tables.kuzmin_brief(rows).splitlines()
    assert table[0] == "| network | parameters | genetic | l2 | the paper's |"
    assert table[2] == "| n | 2.5 M | 90.00% ± 1.00% | 80.00% ± 1.00% (2 seeds) | 50.00% |"
    assert table[3] == "| n | 2.5 M | 70.00% | – | 50.00% |"
    assert table[5].startswith("Dense: n 95.00%.")


def test_the_ablation_sets_each_step_against_the_one_before_seed_by_seed(
    study: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ablation

    monkeypatch.setattr(ablation, "CELLS", tmp_path / "kuzmin2024" / "results" / "ablation")
    monkeypatch.setattr(ablation, "SUMMARY", tmp_path / "ablation.json")
    ablation.CELLS.mkdir(parents=True)

    def cell(variant: str, seed: int, kl: float) -> None:
        of = {"network": "n", "variant": variant, "seed": seed, "kl": kl, "top1": 0.5}
        cost = {"seconds": 1.0, "evaluations": 280, "params": 1, "macs": 1}
        ran = {"environment": {"cpu": "Some CPU", "instructions": ["avx2"]}}
        study.write(ablation.CELLS / f"{ablation._slug(variant)}-seed{seed}.json", of | cost | ran)

    for seed, (before, guided) in enumerate([(2.0, 1.5), (3.0, 2.3)]):
        cell("+ layers mixed one by one", seed, before)
        cell("guided", seed, guided)
    cell("l2", 1, 4.3)  # seed 0 has no partner
    cell("paper", 0, 5.0)
    ablation.write_summary()
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import study_tables

    monkeypatch.setattr(study_tables, "STUDIES", tmp_path)
    table = study_tables.kuzmin_ablation(study.read(ablation.SUMMARY)).splitlines()
    assert table[2].startswith("| n | paper | 5.000 | – |")
    assert "| 2.500 ± 0.707 | – |" in table[3]  # the step before it was not measured
    # -0.5 and -0.7: the mean, and the deviation of the two differences.
    assert "| -0.600 ± 0.141 to `+ layers mixed one by one` |" in table[4]
    assert "| l2 | 4.300 | +2.000 to `guided` |" in table[5]
    assert table[-1] == "Searched on: Some CPU without VNNI."


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
        record["environment"] = {"cpu": "Fast", "instructions": ["avx512_vnni"]}
        name = f"small-n-{method}-seed{seed}-round{number}.json"
        (results / "cells" / "two-cores" / name).write_text(json.dumps(record), encoding="utf-8")

    # Top-1 on search is no measure of the pruned network, whose dense one has seen that split.
    for seed in (0, 1):
        cell("genetic", seed, 2, 0.9, [0.99, 0.99])
        cell("genetic", seed, 3, 0.8, [0.99, 0.99])
    cell("scratch", 0, 3, 0.0, [0.5, 0.8, 0.7, 0.85])
    cell("scratch", 1, 3, 0.0, [0.5, 0.6, 0.7, 0.79])

    def row(method: str, number: int, speed: float, seed: int = 0) -> dict[str, Any]:
        return {"method": method, "seed": seed, "round": number, "images_per_second": speed}

    rows = [row("genetic", k, speed, s) for s in (0, 1) for k, speed in ((2, 10.0), (3, 20.0))]
    given = {"threads": 2, "batch_size": 128, "repeats": 5, "images": 2560}
    timed: dict[str, Any] = {"network": "n", "train_images": 1000, "settings": given}
    timed |= {"rows": [*rows, row("scratch", 3, 50.0)], "environment": {"cpu": "Slow"}}
    path = results / "clock" / "small-n-two-cores.json"
    path.write_text(json.dumps(timed), encoding="utf-8")
    line = [{"network": "n", "machine": "two-cores", "scale": "small"}]
    table = study_tables.kuzmin_from_scratch(line).splitlines()
    # Pruned: 101 s + 2 epochs of 100 s, then 101 s + 2 of 50 s. Narrow: 20 s an epoch.
    assert table[2] == ("| n | 3 | 80.00% ± 0.00% | 502 ± 0 | 82.00% ± 4.24% | 1 of 2 | 40 | 80 |")
    assert table[4].startswith("n: 2 threads, batch 128, median of 5 turns of 2,560 images")
    assert table[4].endswith("; epochs timed on Slow without VNNI, searches on Fast with VNNI.")
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
