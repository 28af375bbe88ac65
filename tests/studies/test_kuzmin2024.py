"""Study K's queue, on digits: rounds, cells, one look a cell, resume, and what the tables say of them."""

import argparse
import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from prunus.data import load_data
from prunus.zoo import build

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "studies" / "kuzmin2024"


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


def test_a_cell_tells_where_its_round_was_done_not_where_it_was_collected(
    study: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain, collect = study.Chain("digits_cnn", "l2", 0, "small", (2, 3, 4, 5)), study.Chain._collect
    monkeypatch.setattr(study.Chain, "_collect", lambda *_: None)  # killed before it could
    chain.run("cpu", tmp_path / "runs")
    here = study.environment_of("cpu")
    monkeypatch.setattr(study.Chain, "_collect", collect)
    monkeypatch.setattr(study, "environment_of", lambda _: {**here, "cpu": "another machine's"})
    chain.run("cpu", tmp_path / "runs")
    cells = _cells(study)
    assert [c["round"] for c in cells] == [2, 3, 4, 5]
    assert {c["environment"]["cpu"] for c in cells} == {here["cpu"]}
    ends = [(tmp_path / "runs" / chain.name / "steps" / f"{k:02d}-train.json") for k in (3, 12)]
    first, last = (datetime.fromtimestamp(end.stat().st_mtime, UTC) for end in ends)
    assert cells[0]["finished"] == first.isoformat(timespec="seconds")
    assert cells[3]["finished"] == last.isoformat(timespec="seconds")


@pytest.mark.parametrize("text", ["0/2", "3/2", "-1/3", "2", "a/b", ""])
def test_a_shard_that_is_none_is_refused(study: ModuleType, text: str) -> None:
    assert study.shard_of("2/3") == (2, 3)
    with pytest.raises(argparse.ArgumentTypeError, match=f"'{text}' is no shard: give such as 2/8"):
        study.shard_of(text)


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
    options.scale, options.machine = "small", "gpu"
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


def test_a_chain_does_not_go_on_from_the_rounds_of_another_kind_of_machine(
    study: ModuleType,
) -> None:
    import equal_macs

    for chain, rounds in ((study.Chain, (2, 3)), (equal_macs.CutToMacs, (2,))):
        names = {
            chain("vgg16_bn", "l2", 0, "small", rounds, machine).name
            for machine in ("two-cores", "gpu")
        }
        assert len(names) == 2


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


def test_table_2_tells_which_processors_and_formats_its_cells_are_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    monkeypatch.syspath_prepend(str(FOLDER))
    import study_tables

    monkeypatch.setattr(study_tables, "STUDIES", tmp_path)
    folder = tmp_path / "kuzmin2024" / "results" / "cells" / "two-cores"
    folder.mkdir(parents=True)

    def cell(
        method: str, seed: int, instructions: list[str], number: int = 2, form: str | None = None
    ) -> None:
        of = {"network": "vgg16_bn", "method": method, "seed": seed, "scale": "small"}
        of |= {"round": number} | ({} if form is None else {"precision": form})
        ran = {"environment": {"cpu": "Some CPU", "instructions": instructions}}
        given = {"settings": {"epochs": 5, "generations": 10, "images": 1000}}
        record = json.dumps(of | ran | given)
        name = f"small-vgg16_bn-{method}-seed{seed}-round{number}.json"
        (folder / name).write_text(record, "utf-8")

    known = {"round": 2, "params": 1, "macs": 1, "top1_mean": 0.9, "top1_std": None, "seeds": 3}
    of = {"network": "vgg16_bn", "machine": "two-cores", "scale": "small", "paper_top1": 0.8}
    row = {"method": "genetic", **known, **of}
    cell("genetic", 0, ["avx2", "avx512_vnni"])
    cell("genetic", 1, ["avx2", "avx512_vnni"])
    table = study_tables.kuzmin_quality([row])
    told = "Cells of vgg16_bn are of `two-cores`: Some CPU with VNNI. Trained in "
    assert f"{told}a format not recorded (genetic 0/1).\n" in table
    cell("random", 2, ["avx2"], form="float32")
    cell("random", 2, ["avx2"], number=3, form="bfloat16")
    cell("random", 1, ["avx2"], form="float32")
    table = study_tables.kuzmin_quality([row])
    assert "with VNNI (genetic 0/1); Some CPU without VNNI (random 1/2)." in table
    assert (
        "Trained in a format not recorded (genetic 0/1); bfloat16 (random 2 at round 3); "
        "float32 (random 1/2 at round 2)." in table
    )


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
    assert table[5].startswith("Dense: n 95.00% (the paper's 50.00%): compare drops, not levels.")
    # Networks of two scales were not trained alike.
    mixed = study_tables.kuzmin_brief([*rows[:-1], {**rows[-1], "scale": "full"}]).splitlines()
    assert mixed[3] == "| n | 2.5 M | 70.00% (full) | – | 50.00% |"


def test_gaps_to_the_nulls_are_told_with_both_spreads_and_the_macs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import study_tables

    def row(method: str, top1: float, spread: float, macs: int, seeds: int = 3) -> dict[str, Any]:
        of = {"network": "n", "scale": "small", "round": 2, "method": method, "seeds": seeds}
        return {**of, "top1_mean": top1, "top1_std": spread, "macs": macs}

    rows = [
        row("genetic", 0.90, 0.004, 60),
        row("l2", 0.88, 0.010, 20),
        row("random", 0.909, 0.006, 40),
        row("random-search", 0.80, 0.001, 30, seeds=2),
        row("genetic-paper", 0.85, 0.001, 40),
    ]
    table = study_tables.kuzmin_against(rows).splitlines()
    assert table[0].startswith("| network | round | method | to `l2` | to `random` |")
    # 2 points are more than 0.4 and 1.0 together, 0.9 points are less than 0.4 and 0.6.
    assert table[2] == (
        "| n | 2 | genetic | **+2.00 pt** (spreads 1.40), 3.0 × MACs "
        "| -0.90 pt (spreads 1.00), 1.5 × MACs | – | – |"
    )
    assert table[3] == (
        "| n | 2 | genetic-paper | **-3.00 pt** (spreads 1.10), 2.0 × MACs "
        "| **-5.90 pt** (spreads 0.70), 1.0 × MACs | – | – |"
    )
    assert len(table) == 4


def test_drops_are_from_round_1_and_stand_beside_the_papers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import study_tables

    def row(method: str, number: int, top1: float, paper: float, seeds: int = 3) -> dict[str, Any]:
        of = {"network": "n", "scale": "small", "round": number, "method": method, "seeds": seeds}
        return {**of, "top1_mean": top1, "top1_std": 0.002, "paper_top1": paper}

    rows = [
        row("dense", 1, 0.90, 0.70, seeds=1),
        row("genetic", 2, 0.91, 0.71),
        row("genetic", 3, 0.85, 0.60),
        row("l2", 3, 0.80, 0.60),
        row("random", 2, 0.70, 0.71, seeds=2),
    ]
    assert study_tables.kuzmin_drops(rows).splitlines() == [
        "| network | method | round 2 | round 3 |",
        "|---|---|--:|--:|",
        "| n | genetic | +1.00 ± 0.20 | -5.00 ± 0.20 |",
        "| n | l2 | – | -10.00 ± 0.20 |",
        "| n | *the paper's* | +1.00 | -10.00 |",
    ]
    longer = {**row("genetic", 3, 0.88, 0.60), "scale": "full"}
    assert study_tables.kuzmin_drops([*rows, longer]).splitlines()[2:5] == [
        "| n | genetic (small) | +1.00 ± 0.20 | -5.00 ± 0.20 |",
        "| n | l2 (small) | – | -10.00 ± 0.20 |",
        "| n | genetic (full) | – | -2.00 ± 0.20 |",
    ]


def test_table_3_holds_the_searches_of_every_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import study_tables

    def cells(pattern: str) -> list[dict[str, Any]]:
        method = pattern.removeprefix("*-").removesuffix("-seed*.json")
        cell = {"network": "vgg16_bn", "round": 2, "seed": 0, "method": method}
        here = {"machine": "two-cores", "environment": {"threads": 1}, "notes": []}
        return [{**cell, **here, "seconds": {"search": 10.0}}]

    monkeypatch.setattr(study_tables, "_cells", cells)
    told = [line.split(" | ")[2] for line in study_tables.kuzmin_seconds([]).splitlines()[2:]]
    assert told == ["genetic", "genetic-paper", "random-search"]


def test_the_figure_tells_what_it_shows_and_shows_no_line_of_few_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import study_figures

    def row(
        method: str, number: int, seeds: int = 3, scale: str | None = "small"
    ) -> dict[str, Any]:
        of = {"network": "n&m", "scale": scale, "round": number, "method": method, "seeds": seeds}
        figures = {"params": 2_000_000 // number, "macs": 90_000_000 // number}
        return {**of, **figures, "top1_mean": 0.9, "top1_std": 0.01 if seeds > 1 else None}

    rows = [
        row("dense", 1, 1, None),
        row("genetic", 2),
        row("genetic", 3),
        row("l2", 2),
        row("random", 2, seeds=2),
        row("taylor", 2, scale="full"),
    ]
    path = tmp_path / "figure.svg"
    assert study_figures.description_in(path) is None
    study_figures.draw(rows, path)
    told = study_figures.description_in(path)
    assert told == study_figures.described(rows)
    assert told.splitlines() == [
        "n&m genetic: 1.000 M parameters, 45.0 M executed MACs, 90.00% ± 1.00% top-1 on test, 3 seeds",
        "n&m genetic: 0.667 M parameters, 30.0 M executed MACs, 90.00% ± 1.00% top-1 on test, 3 seeds",
        "n&m l2: 1.000 M parameters, 45.0 M executed MACs, 90.00% ± 1.00% top-1 on test, 3 seeds",
    ]
    drawn = path.read_text(encoding="utf-8")
    for method, shown in [("genetic", True), ("l2", True), ("random", False), ("taylor", False)]:
        assert (f"<!-- {method} -->" in drawn) == shown  # of the legend
