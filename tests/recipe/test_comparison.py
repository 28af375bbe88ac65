"""Several methods and seeds: one dense measurement, cells that stand alone, null baselines shown."""

import json
import shutil
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

import pytest
from torch import nn

from prunus.cli.build import method_steps
from prunus.cli.given import Cut, Subject, Training
from prunus.compute import Compute
from prunus.data import DataSplits
from prunus.errors import BudgetError, InputError, PrunusError
from prunus.method import Context, Decision, Method
from prunus.plan import Plan
from prunus.prune import L1
from prunus.recipe import (
    COMPARISON_FILE,
    Prune,
    Recalibrate,
    Step,
    Train,
    compare,
    compress,
    standard_steps,
)
from prunus.recipe.comparison import Cell, TraceOptions, make_cells
from prunus.recipe.folder import RUN_FILE, RunFile, open_run
from prunus.recipe.recipe import Recipe
from prunus.recipe.saved import load_network
from prunus.records import Comparison, RunRecord
from prunus.report import comparison_rows, report_warnings, write_report
from prunus.train import Execution, TrainConfig
from tests.recipe import texts
from tests.recipe.subjects import SHORT, Killed, Killer, few_digits, trained_cnn


def test_the_dense_network_is_measured_once() -> None:
    data = few_digits()
    found = compare(trained_cnn(), ["random", "l1"], data, "macs=0.5", seeds=(0, 1), latency=None)
    keys = [(run.method, run.seed) for run in found.runs]
    assert keys == [("random", 0), ("random", 1), ("l1", 0), ("l1", 1)]
    assert data.test.evaluations == 1 + 4 * 2  # dense, then cut and recalibrated in each cell
    assert all(run.test_evaluations["dense"] == 1 for run in found.runs)
    assert len({run.score("dense") for run in found.runs}) == 1
    random_plans = {run.plans for run in found.runs if run.method == "random"}
    assert len(random_plans) == 2


def test_a_cell_is_what_compress_makes() -> None:
    found = compare(
        trained_cnn(), ["l1"], few_digits(), "macs=0.5", seeds=(1,), finetune=SHORT, latency=None
    )
    steps = standard_steps("l1", "macs=0.5", finetune=SHORT)
    alone = compress(trained_cnn(), steps, few_digits(), seed=1, latency=None)
    assert found.runs[0].plans == alone.record.plans
    assert found.runs[0].scores == alone.record.scores


@pytest.mark.parametrize("reads_texts", [False, True])
def test_a_methods_name_means_the_same_in_python_and_on_the_command_line(
    reads_texts: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On texts nothing is recalibrated; else on as many images as the step takes by itself."""
    seen: list[tuple[Step, ...]] = []

    def noted(cells: Sequence[Cell], *_: object, **__: object) -> tuple[RunRecord, ...]:
        seen.extend(cell.recipe.steps for cell in cells)
        return ()

    monkeypatch.setattr("prunus.recipe.comparison._compare", noted)
    cut = Prune(method="l1", target="macs=0.5")
    first = TrainConfig(epochs=1, lr=0.1)
    if reads_texts:
        data = f"text:{texts.write(tmp_path)}"
        compare(texts.NETWORK, ["l1"], data, "macs=0.5", text=texts.OPTIONS, train_first=first)
    else:
        compare("digits_cnn", ["l1"], few_digits(), "macs=0.5", train_first=first)
        compare(trained_cnn(), ["l1"], few_digits(), "macs=0.5")
    subject = Subject("bert_tiny" if reads_texts else "digits_cnn", (), None, None)
    training = Training(None, None, None, None, None, None, None)
    said = method_steps(("l1",), Cut("macs=0.5", (), ()), training, subject)
    seen.append(said["l1"])
    expected = (cut,) if reads_texts else (cut, Recalibrate(images=1024))
    assert seen == [expected] * len(seen)


@pytest.mark.parametrize("kept", [False, True])
def test_all_rows_are_trained_in_one_format(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: bool
) -> None:
    """A trial is timed: what is noise in it must not tell rows apart."""
    said = cycle([Execution(layout="channels_last"), Execution()])
    monkeypatch.setattr("prunus.recipe.prepare.choose_execution", lambda *_: next(said))
    found = compare(
        trained_cnn(),
        ["random", "l1"],
        few_digits(),
        "macs=0.5",
        seeds=(0, 1),
        finetune=Train(epochs=1, lr=0.02, batch_size=64),
        out=tmp_path / "c" if kept else None,
        latency=None,
    )
    trainings = [Recipe.model_validate(run.recipe).steps[-1] for run in found.runs]
    layouts = [step.layout for step in trainings if isinstance(step, Train)]
    assert layouts == 4 * ["channels_last"]


def test_null_baselines_are_shown_as_such() -> None:
    """By the methods that their rows cut with, whatever the rows are called."""
    chance = Prune(method="random", target="macs=0.7")
    norms = Prune(method="l1", target="macs=0.5")
    rows = {"mine": [chance], "random": [norms], "both": [chance, norms]}
    found = compare(trained_cnn(), rows, few_digits(), latency=None)
    kinds = {row.method: row.kind for row in comparison_rows(found)}
    assert kinds == {"dense": "dense", "mine": "null", "random": "method", "both": "method"}


def test_own_steps_are_a_row_of_their_own() -> None:
    steps = {
        "mine": (Prune(method="l1", target="macs=0.5"),),
        "gentle": (Prune(method="l1", target="macs=0.8"),),
    }
    found = compare(trained_cnn(), steps, few_digits(), latency=None)
    assert [(run.method, run.target) for run in found.runs] == [
        ("mine", {"macs": 0.5}),
        ("gentle", {"macs": 0.8}),
    ]


def test_a_failing_cell_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Method, context: Context) -> Decision:
        raise BudgetError("nothing fits")

    monkeypatch.setattr(L1, "decide", fail)
    found = compare(
        trained_cnn(), ["l1", "l2"], few_digits(), "macs=0.5", out=tmp_path / "c", latency=None
    )
    assert [run.method for run in found.runs] == ["l2"]
    assert "l1 (seed 0) failed: nothing fits" in found.runs[0].notes
    with pytest.raises(BudgetError, match="nothing fits"):
        compare(trained_cnn(), ["l1"], few_digits(), "macs=0.5", latency=None)
    monkeypatch.undo()
    again = compare(
        trained_cnn(),
        ["l1", "l2"],
        few_digits(),
        "macs=0.5",
        out=tmp_path / "c",
        resume=True,
        latency=None,
    )
    assert [run.method for run in again.runs] == ["l1", "l2"]
    assert not any("failed" in note for run in again.runs for note in run.notes)


def test_phases_that_a_failing_cell_leaves_open_are_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes after would be counted as a part of them."""

    def fail(self: Method, context: Context) -> Decision:
        context.progress.start("search", 10)
        context.progress.start("score", 10)
        raise BudgetError("nothing fits")

    monkeypatch.setattr(L1, "decide", fail)
    seen = _Depth()
    compare(trained_cnn(), ["l1", "l2"], few_digits(), "macs=0.5", latency=None, progress=seen)
    assert seen.stack == []
    assert seen.advanced.count(("compare",)) == 2  # one for each cell, the failed one too


class _Depth:
    """Which phases are open at every advance."""

    def __init__(self) -> None:
        self.stack: list[str] = []
        self.advanced: list[tuple[str, ...]] = []

    def start(self, phase: str, total: int) -> None:
        self.stack.append(phase)

    def advance(self, n: int = 1, **values: float) -> None:
        self.advanced.append(tuple(self.stack))

    def finish(self) -> None:
        self.stack.pop()


def test_a_killed_comparison_resumes_and_may_grow(tmp_path: Path) -> None:
    first = TrainConfig(epochs=2, lr=0.1, batch_size=32, precision="float32", layout="contiguous")

    def run(methods: list[str], out: Path | None, killer: Killer | None = None) -> Comparison:
        return compare(
            "digits_cnn",
            methods,
            few_digits(),
            "macs=0.5",
            seeds=(0,),
            finetune=SHORT,
            out=out,
            resume=out is not None,
            train_first=first,
            progress=killer,
            latency=None,
        )

    whole = run(["l1", "random"], None)
    out = tmp_path / "c"
    for death in (("train", 9), ("compare", 1), ("evaluate after cut", 1)):
        with pytest.raises(Killed):
            run(["l1", "random"], out, Killer(*death))
    resumed = run(["l1", "random"], out)
    assert [r.plans for r in resumed.runs] == [r.plans for r in whole.runs]
    assert [r.scores for r in resumed.runs] == [r.scores for r in whole.runs]
    weights = resumed.runs[0].source.weights
    assert weights is not None
    assert Path(weights).is_file()
    grown = run(["l1", "random", "l2"], out)
    assert grown.runs[:2] == resumed.runs
    assert Comparison.load(out / COMPARISON_FILE) == grown
    report = json.loads(
        (write_report(grown, out).parent / "report.json").read_text(encoding="utf-8")
    )
    assert [row["method"] for row in report["rows"]] == ["dense", "l1", "random", "l2"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"methods": []}, "methods is []"),
        ({"methods": "l1"}, "give a list"),
        ({"methods": 3}, "methods is 3; give a list"),
        ({"methods": [Prune(method="l1")]}, "methods is a list of steps; give every list of steps"),
        ({"seeds": 3}, "seeds is 3; give a list of them"),
        ({"seeds": "0,1"}, "seeds is '0,1'; give a list of them"),
        ({"methods": ["l1", "l1"]}, "each once"),
        ({"methods": {"dense": [SHORT]}}, "a row is named 'dense', as the dense network is"),
        ({"methods": {"dense (int8)": [SHORT]}}, "a row is named 'dense (int8)'"),
        ({"methods": ["l9"]}, "no method 'l9'"),
        ({"seeds": ()}, "seeds is []"),
        ({"seeds": (-1,)}, "seed"),
        ({"target": ""}, "target is missing"),
        ({"target": "macs=0.001"}, "cannot be reached"),
        ({"options": {"l2": {}}}, "'l2', which is not among the methods"),
    ],
)
def test_what_cannot_work_is_refused_before_any_look(change: dict[str, object], said: str) -> None:
    data = few_digits()
    given = {"methods": ["l1"], "target": "macs=0.5", **change}
    with pytest.raises(PrunusError) as caught:
        compare(trained_cnn(), data=data, latency=None, **given)  # type: ignore[arg-type]
    assert said in str(caught.value)
    assert data.test.evaluations == 0


def test_another_target_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "c"
    compare(trained_cnn(), ["l1"], few_digits(), "macs=0.5", out=out, latency=None)
    with pytest.raises(InputError, match="holds a run already"):
        compare(trained_cnn(), ["l1"], few_digits(), "macs=0.5", out=out)
    with pytest.raises(InputError, match=r"target was macs=0\.5 and is macs=0\.6"):
        compare(trained_cnn(), ["l1"], few_digits(), "macs=0.6", out=out, resume=True)


def test_no_two_rows_share_a_folder_and_ordinary_names_keep_theirs(tmp_path: Path) -> None:
    out = tmp_path / "c"
    step = (Prune(method="l1", target="macs=0.5"),)
    names = ["svd 0.2", "svd_0.2", "Резка", "Квант", "distilled + int8 (onnxruntime)"]
    for given in (names[:1], names):  # rows are added to a comparison that has folders
        rows = dict.fromkeys(given, step)
        found = compare(trained_cnn(), rows, few_digits(), out=out, resume=True, latency=None)
        assert [run.method for run in found.runs] == given
    folders = {path.name for path in (out / "cells").iterdir()}
    assert len(folders) == 5
    assert {"svd_0.2-seed0", "distilled___int8__onnxruntime_-seed0"} <= folders
    kept = Comparison.load(out / COMPARISON_FILE)
    turned = dict.fromkeys(["Квант", "Резка"], step)  # the order of such names is all the same
    again = compare(trained_cnn(), turned, few_digits(), out=out, resume=True, latency=None)
    assert again.runs[:2] == (kept.runs[3], kept.runs[2])
    assert {run.method for run in again.runs[2:]} == set(names) - set(turned)


def test_names_too_long_for_a_folder_have_their_beginning_and_no_two_the_same() -> None:
    step = (Prune(method="l1", target="macs=0.5"),)
    longest = "n" * (255 - len("-seed0"))  # what a folder could be named by before
    names = [longest, "x" * 300, "x" * 299 + "y", "Резка" * 60]
    cells = make_cells(dict.fromkeys(names, step), "", (0, 10), None, {}, TraceOptions())
    folders = {(cell.name, cell.recipe.seed): cell.folder for cell in cells}
    assert folders[longest, 0] == f"{longest}-seed0"
    assert folders["x" * 300, 0].startswith("x" * 100 + "-")
    assert len(set(folders.values())) == 2 * len(names)
    assert all(len(folder.encode()) <= 255 for folder in folders.values())


def test_a_row_of_a_long_name_is_run_and_resumed(tmp_path: Path) -> None:
    rows = {"x" * 300: (Prune(method="l1", target="macs=0.5"),)}
    data, out = few_digits(), tmp_path / "c"
    first = compare(trained_cnn(), rows, data, out=out, latency=None)
    looks = data.test.evaluations
    assert compare(trained_cnn(), rows, data, out=out, resume=True, latency=None) == first
    assert data.test.evaluations == looks


def test_a_cell_folder_of_another_run_is_refused_before_any_cell_runs(tmp_path: Path) -> None:
    def go(share: float, methods: tuple[str, ...] = ("first", "second")) -> Comparison:
        first = (Prune(method="random", target="macs=0.5"),)
        second = (Prune(method="l1", target=f"macs={share}"),)
        rows = {name: {"first": first, "second": second}[name] for name in methods}
        return compare(trained_cnn(), rows, data, out=out, resume=True, latency=None)

    out, data = tmp_path / "c", few_digits()
    go(0.5, ("second",))
    looks = data.test.evaluations
    with pytest.raises(InputError, match=r"second-seed0' holds another run: .* and is macs=0\.6"):
        go(0.6)
    assert data.test.evaluations == looks
    assert {path.name for path in (out / "cells").iterdir()} == {"second-seed0"}
    stranger = out / "cells" / "first-seed0"
    stranger.mkdir()
    (stranger / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match="holds 'notes.txt' and is no run"):
        go(0.5)
    (stranger / "notes.txt").unlink()
    assert [run.method for run in go(0.5).runs] == ["first", "second"]


def test_rows_of_a_folder_that_was_moved_start_from_one_dense_network(tmp_path: Path) -> None:
    def go(out: Path, *methods: str) -> Comparison:
        return compare(
            "digits_cnn",
            methods,
            few_digits(),
            "macs=0.5",
            train_first=TrainConfig(**SHORT.model_dump(include=set(TrainConfig.model_fields))),
            latency=None,
            out=out,
            resume=True,
        )

    go(tmp_path / "a", "random", "l1")
    (tmp_path / "a").rename(tmp_path / "b")
    found = go(tmp_path / "b", "l1", "l2")
    assert [run.method for run in found.runs] == ["l1", "l2", "random"]
    weights = tmp_path / "b" / "dense" / "artifact" / "model.safetensors"
    assert {run.source.weights for run in found.runs} == {str(weights.resolve())}
    assert {run.recipe["weights"] for run in found.runs} == {str(weights.resolve())}
    told = report_warnings(found, comparison_rows(found))
    assert not any("different dense weights" in warning for warning in told)
    # A row of other weights, as somebody may have put it there, stays what it was.
    stranger = tmp_path / "b" / "cells" / "random-seed0" / RUN_FILE
    file = RunFile.load(stranger)
    file.model_copy(update={"identity": {**file.identity, "weights": "0"}}).save(stranger)
    kept = go(tmp_path / "b", "l1").runs
    old = next(run for run in kept if run.method == "random")
    assert old.source.weights == str(weights).replace("/b/", "/a/")
    told = report_warnings(found.model_copy(update={"runs": kept}), comparison_rows(found))
    assert any("different dense weights" in warning for warning in told)


def test_seeds_of_a_row_that_would_be_done_otherwise_are_refused_before_a_training(
    tmp_path: Path,
) -> None:
    """They are one mean with those that are kept."""

    def go(seeds: tuple[int, ...], train: Train, data: DataSplits, watch: Killer) -> Comparison:
        return compare(
            "digits_cnn",
            ["l1"],
            data,
            "macs=0.5",
            seeds=seeds,
            finetune=train,
            train_first=TrainConfig(**SHORT.model_dump(include=set(TrainConfig.model_fields))),
            latency=None,
            out=out,
            resume=True,
            progress=watch,
        )

    out = tmp_path / "c"
    go((0,), SHORT, few_digits(), Killer())
    longer = SHORT.model_copy(update={"epochs": 2})
    shutil.rmtree(out / "dense")  # as where it were to be trained
    for seeds, said in (((1,), r"l1-seed0' holds another run of this row: "), ((0,), "l1-seed0' ")):
        data, watch = few_digits(), Killer()
        with pytest.raises(InputError, match=rf"{said}.*train\.epochs was 1 and is 2") as caught:
            go(seeds, longer, data, watch)
        assert "name a new folder" in str(caught.value)
        assert watch.phases == ["trace"] and data.test.evaluations == 0
    assert [run.seed for run in go((1,), SHORT, few_digits(), Killer()).runs] == [1, 0]


def test_seeds_of_a_search_that_would_be_scored_otherwise_are_refused(tmp_path: Path) -> None:
    def go(seed: int, batch_size: int) -> Comparison:
        compute = Compute(precision="float32", layout="contiguous", batch_size=batch_size)
        more = {"latency": None, "resume": True, "seeds": (seed,), "compute": compute}
        return compare(trained_cnn(), steps, data, out=tmp_path / "c", **more)  # type: ignore[arg-type]

    options = {"population": 4, "parents": 2, "generations": 0, "images": 32}
    steps = {"genetic": [Prune(method="genetic", target="macs=0.5", options=options)]}
    data = few_digits()
    go(0, 32)
    with pytest.raises(InputError, match="row: compute.batch_size was 32 and is 64; all seeds"):
        go(1, 64)


def test_seeds_of_a_row_may_be_added_where_the_format_was_picked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = cycle([Execution(layout="channels_last"), Execution()])
    monkeypatch.setattr("prunus.recipe.prepare.choose_execution", lambda *_: next(said))
    train, out = Train(epochs=1, lr=0.02, batch_size=64), tmp_path / "c"
    for seed in (0, 1):
        more = {"latency": None, "resume": True, "seeds": (seed,), "finetune": train}
        found = compare(trained_cnn(), ["l1"], few_digits(), "macs=0.5", out=out, **more)  # type: ignore[arg-type]
    assert [run.seed for run in found.runs] == [1, 0]


def test_rows_that_are_not_asked_for_again_stay_in_the_comparison(tmp_path: Path) -> None:
    def go(methods: list[str], seeds: tuple[int, ...]) -> Comparison:
        data, more = few_digits(), {"latency": None, "resume": True, "seeds": seeds}
        return compare(trained_cnn(), methods, data, "macs=0.5", out=out, **more)  # type: ignore[arg-type]

    out = tmp_path / "c"
    first = go(["l1", "random"], (0, 1))
    last = go(["l2"], (1,))
    assert [(run.method, run.seed) for run in last.runs] == [
        ("l2", 1), ("l1", 0), ("l1", 1), ("random", 0), ("random", 1)
    ]  # fmt: skip
    assert sorted(last.runs[1:], key=lambda r: (r.method, r.seed)) == list(first.runs)
    assert Comparison.load(out / COMPARISON_FILE) == last
    (out / "cells" / "random-seed0" / "record.json").unlink()  # as a kill leaves a row
    assert ("random", 0) not in [(run.method, run.seed) for run in go(["l2"], (1,)).runs]


def test_a_cell_folder_in_use_fails_alone(tmp_path: Path) -> None:
    def go(methods: list[str]) -> Comparison:
        data = few_digits()
        return compare(trained_cnn(), methods, data, "macs=0.5", out=out, resume=True, latency=None)

    out = tmp_path / "c"
    go(["l1"])
    cell = out / "cells" / "l1-seed0"
    with open_run(cell, RunFile.load(cell / RUN_FILE).identity, resume=True):
        found = go(["l1", "l2"])
    assert [run.method for run in found.runs] == ["l2"]
    assert any("l1 (seed 0) failed" in n and "is in use by" in n for n in found.runs[0].notes)


def test_of_steps_that_rows_share_the_last_network_alone_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []

    def noted(folder: Path, dense: nn.Module) -> tuple[nn.Module, tuple[Plan, ...]]:
        loaded.append(folder.name)
        return load_network(folder, dense)

    monkeypatch.setattr("prunus.recipe.resume.load_network", noted)
    shared: list[Step] = [Prune(method="l1", target="macs=0.5"), Recalibrate(images=64)]
    rows = {"short": shared, "long": [*shared, SHORT]}
    found = compare(trained_cnn(), rows, few_digits(), out=tmp_path / "c", latency=None)
    assert loaded == ["02-recalibrate"]
    alone = compress(trained_cnn(), rows["long"], few_digits(), latency=None)
    assert found.runs[1].scores == alone.record.scores
