"""What the scripts of benchmarks write, and when: cut short, records are whole and looks are counted."""

import json
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from prunus.train import TrainConfig

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def record(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The module that writes records, with a folder of its own for them."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import record as module

    monkeypatch.setattr(module, "RESULTS", tmp_path)
    return module


def test_a_record_that_is_cut_short_leaves_the_one_before(
    record: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "folder" / "cell.json"
    record.write_json(path, {"epochs": 1})

    def half(self: Path, text: str, encoding: str) -> None:
        self.write_bytes(text.encode(encoding)[: len(text) // 2])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(KeyboardInterrupt):
        record.write_json(path, {"epochs": 2})
    assert json.loads(path.read_text(encoding="utf-8")) == {"epochs": 1}
    assert all(file.suffix == ".part" for file in path.parent.iterdir() if file != path)


def test_a_record_names_the_threads_that_were_set_since_the_start(
    record: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1000)
    record.write_results("folder/some", [], seed=3)
    run = json.loads((tmp_path / "folder" / "some.run.json").read_text(encoding="utf-8"))
    assert run["settings"] == {"seed": 3}
    start = record.START.model_dump(mode="json")
    assert start["threads"] != 1000
    assert run["environment"] == start | {"threads": 1000}


@pytest.fixture
def resnet56(record: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The module of ResNet-56, with a folder of its own for cells and cuts."""
    module = pytest.importorskip("resnet56", reason="needs torch-pruning")
    monkeypatch.setattr(module, "FOLDER", tmp_path)
    monkeypatch.setattr(module, "CUTS", tmp_path / "cuts")
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)  # main's, of all tests
    return module


@pytest.mark.parametrize("method", ["taylor", "tp-taylor"])
def test_cuts_are_decided_by_all_images_at_every_scale(
    resnet56: Any, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[object] = []

    def ours(context: Any) -> None:
        seen.append(context.train)
        raise RuntimeError("seen")

    def theirs(*given: object) -> None:
        seen.append(given[5])
        raise RuntimeError("seen")

    monkeypatch.setattr(resnet56, "make_method", lambda _: SimpleNamespace(decide=ours))
    monkeypatch.setattr(resnet56, "prune_with_torch_pruning", theirs)
    bench = object.__new__(resnet56.Bench)
    bench.dense, bench.example = torch.nn.Identity(), torch.zeros(1)
    bench.trace, bench.budget = (
        SimpleNamespace(macs=lambda _: 100),
        SimpleNamespace(limit=lambda _: 50),
    )
    bench.train = "some images"
    bench.data = SimpleNamespace(train="all images", search="of search")
    with pytest.raises(RuntimeError, match="seen"):
        bench.decided(method, 0)
    assert seen == ["all images"]


@pytest.fixture
def bench(resnet56: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A bench whose cells take no time: networks are none, and every accuracy is 0.9."""
    monkeypatch.setattr(resnet56, "recalibrate_batch_norm_", lambda *_, **__: None)
    fitted = SimpleNamespace(search_top1=0.9, precision="float32", layout="contiguous")
    monkeypatch.setattr(resnet56, "fit", lambda *_, **__: fitted)
    score = SimpleNamespace(top1=0.9, loss=0.1, samples=10)
    monkeypatch.setattr(resnet56, "evaluate", lambda *_, **__: score)
    monkeypatch.setattr(resnet56.Bench, "cut", lambda *_: (None, {}))
    monkeypatch.setattr(resnet56.Bench, "recipe", lambda *_: TrainConfig(epochs=1, lr=0.1))
    made = object.__new__(resnet56.Bench)
    made.images, made.train, made.device, made.dense = 10, None, "cpu", None
    made.workers = 7
    made.data = SimpleNamespace(search="search", test="test")
    return made


def test_looks_at_the_test_split_count_that_end_in_no_cell(
    resnet56: Any, bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two runs are killed behind their look, the third ends; then the network is due more epochs."""
    path = tmp_path / "epochs1-images10" / "scratch-seed0.json"

    def looks() -> int:
        cell: dict[str, dict[str, int]] = json.loads(path.read_text(encoding="utf-8"))
        return cell["test_evaluations"]["after_training"]

    with monkeypatch.context() as patch:

        def killed(target: Path, content: object) -> None:
            if target == path:
                raise KeyboardInterrupt
            honest(target, content)

        honest = resnet56.write_json
        patch.setattr(resnet56, "write_json", killed)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                bench.cell("scratch", 0, 1, 2)
    bench.cell("scratch", 0, 1, 2)
    assert looks() == 3
    bench.cell("scratch", 0, 1, 2)  # it is there
    assert looks() == 3
    bench.cell("scratch", 0, 1, 5)
    assert looks() == 4
    assert list(path.parent.iterdir()) == [path]
    assert json.loads(path.read_text(encoding="utf-8"))["workers"] == 7


@pytest.mark.parametrize(
    ("words", "workers", "drawn"),
    [([], 1, True), (["--shard", "2/8"], 8, False), (["--one-of", "3"], 3, False)],
    ids=["alone", "shard", "worker"],
)
def test_a_cell_is_told_how_many_processes_work_at_the_queue(
    resnet56: Any, monkeypatch: pytest.MonkeyPatch, words: list[str], workers: int, drawn: bool
) -> None:
    made: list[int] = []
    tables: list[object] = []

    def bench(device: str, images: int, workers: int, execution: object) -> Any:
        made.append(workers)
        return SimpleNamespace(cell=lambda *_: None)

    monkeypatch.setattr(resnet56, "Bench", bench)
    monkeypatch.setattr(resnet56, "table", lambda *given: tables.append(given))
    monkeypatch.setattr("sys.argv", ["resnet56.py", "run", "--threads", "1", *words])
    resnet56.main()
    assert made == [workers]
    assert bool(tables) == drawn


def test_formats_are_pinned_where_the_recipe_leaves_them_open(
    resnet56: Any, tmp_path: Path
) -> None:
    bench = object.__new__(resnet56.Bench)
    bench.images = 10_000
    bench.execution = {"precision": "float32", "layout": "auto"}
    path = tmp_path / bench.scale(1) / resnet56.RECIPE
    path.parent.mkdir()
    path.write_text(json.dumps({"config": {"lr": 0.01}}), encoding="utf-8")
    config = bench.recipe(1)
    assert (config.lr, config.precision, config.layout) == (0.01, "float32", "auto")
    path.write_text(json.dumps({"config": {"lr": 0.01, "precision": "bfloat16"}}), encoding="utf-8")
    with pytest.raises(SystemExit, match="--precision float32: .* has frozen bfloat16"):
        bench.recipe(1)
    bench.execution = {"precision": "auto", "layout": "auto"}
    assert bench.recipe(1).precision == "bfloat16"


def test_workers_of_a_queue_are_told_each_other(
    resnet56: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[list[str]] = []
    monkeypatch.setattr(resnet56, "table", lambda *_: None)
    monkeypatch.setattr(resnet56.subprocess, "run", lambda words, **_: begun.append(words[2:]))
    given = ["--workers", "3", "--threads", "1", "--methods", "l1", "--seeds", "0", "1"]
    monkeypatch.setattr("sys.argv", ["resnet56.py", "run", *given])
    resnet56.main()
    assert len(begun) == 2
    for words in begun:
        monkeypatch.setattr("sys.argv", ["resnet56.py", *words])
        options = resnet56.asked()
        assert (options.one_of, options.workers, options.methods) == (3, 1, ["l1"])


@pytest.fixture
def turns(record: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module of turns, with eight turns on a clock of its own, which pauses and runs move."""
    import turns as module

    clock = SimpleNamespace(now=0.0, log=[])
    clock.perf_counter = lambda: clock.now

    def sleep(seconds: float) -> None:
        clock.now += seconds
        clock.log.append(seconds)

    clock.sleep = sleep
    monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(module, "REPEATS", 8)
    return module


def test_kinds_of_turns_are_timed_side_by_side(turns: Any) -> None:
    """By hand: each run takes a hundredth longer than the one before, and twice that behind another.

    A turn has 18 runs of its own, so that two kinds of a turn are apart by some of them; between blocks
    of eight runs a kind there would be whole multiples.
    """
    clock = turns.time

    def run(name: str) -> None:
        runs = sum(isinstance(entry, str) for entry in clock.log)
        cold = 2 if clock.log and clock.log[-1] != name else 1
        clock.now += cold * (1 + 0.01 * runs)
        clock.log.append(name)

    rows = turns.measure("a", {"a": lambda: run("a"), "b": lambda: run("b")})
    found = {row["before"]: row for row in rows}
    assert next(iter(found)) == "itself" and found["itself"]["median_ratio"] == 1
    assert {"a pause of 0.1 s", "a pause of 1 s"} < set(found)
    for what, row in found.items():
        cold = what == "others" or "pause" in what
        assert row["median_ratio"] == pytest.approx(2 if cold else 1, rel=0.1), what
        assert row["q25_ratio"] <= row["median_ratio"] <= row["q75_ratio"]


def test_a_turn_times_each_kind_once_in_an_order_of_its_own(turns: Any) -> None:
    def turn_by_turn() -> list[list[str]]:
        begun: list[str] = []
        kinds = {what: lambda what=what: begun.append(what) for what in "abcdef"}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(turns, "kinds", lambda *_: kinds)
            patch.setattr(turns, "quartiles", lambda *_: {})
            runs = {"n": lambda: turns.time.sleep(1)}
            turns.measure("n", runs)
        return [begun[i : i + 6] for i in range(0, len(begun), 6)]

    orders = turn_by_turn()
    assert len(orders) == 8
    assert all(sorted(order) == list("abcdef") for order in orders)
    assert len(set(map(tuple, orders))) > 1
    assert orders == turn_by_turn()


@pytest.fixture
def libraries(record: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The module that measures networks of libraries: two networks, whose rows say ``now``."""
    module = pytest.importorskip("coverage_libraries", reason="needs transformers")
    monkeypatch.setattr(module, "CELLS", tmp_path / "cells")
    monkeypatch.setattr(module, "TIMM", "a b")
    monkeypatch.setattr(module, "TORCHVISION", "")
    monkeypatch.setattr(module, "version", lambda name: f"1.0 of {name}")
    module.now = "first"

    def measure(name: str, source: str, *_: object, onnx: bool) -> dict[str, str]:
        return {"name": name, "source": source, "said": module.now}

    monkeypatch.setattr(module, "measure", measure)
    return module


def test_a_record_of_libraries_has_the_environment_of_its_rows(
    libraries: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table is drawn up with another number of threads than the rows were measured with."""
    threads = torch.get_num_threads()
    libraries.main([])
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads + 1)
    (tmp_path / "coverage_libraries.run.json").unlink()
    libraries.main(["table"])
    run = json.loads((tmp_path / "coverage_libraries.run.json").read_text(encoding="utf-8"))
    assert run["environment"]["threads"] == threads
    assert run["settings"]["versions"] == {
        "timm": "1.0 of timm",
        "torchvision": "1.0 of torchvision",
    }
    rows = json.loads((tmp_path / "coverage_libraries.json").read_text(encoding="utf-8"))
    assert rows == [
        {"name": name, "source": "timm", "said": "first", "of": 2} for name in ("a", "b")
    ]


def test_rows_of_two_environments_make_no_record(
    libraries: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    libraries.main(["a"])
    threads = torch.get_num_threads()
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads + 1)
    with pytest.raises(SystemExit, match="differ in threads: one record is of one environment"):
        libraries.main([])
    assert len(list((tmp_path / "cells").rglob("*.json"))) == 1  # refused before hours of work


def test_a_row_that_is_kept_is_not_replaced_by_some_measured_again(
    libraries: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    libraries.main(["a"])
    libraries.now = "second"
    libraries.main(["a"])
    said = capsys.readouterr().out
    assert "'said': 'second'" in said and "remove it to replace it" in said
    libraries.main([])
    rows = json.loads((tmp_path / "coverage_libraries.json").read_text(encoding="utf-8"))
    assert [row["said"] for row in rows] == ["first", "second"]
