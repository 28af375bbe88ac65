"""Files of a run that are gone or damaged: made anew, or refused with a way on that works."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from prunus.errors import InputError, PrunusError, StorageError
from prunus.plan import Bits
from prunus.quantize import load_deployed
from prunus.recipe import Deploy, Prune, Step, Train, compare, compress, train_network
from prunus.records import Comparison, Environment
from prunus.train import TrainConfig
from tests.recipe.subjects import Killed, Killer, few_digits, same_state, trained_cnn

TRAIN = Train(epochs=1, lr=0.02, batch_size=32, precision="float32", layout="contiguous")
FIRST = TrainConfig(epochs=1, lr=0.1, batch_size=32, precision="float32", layout="contiguous")
CUT = Prune(method="l1", target="macs=0.5")


def _told(steps: list[Step], out: Path) -> str:
    """What a resumed run is refused with, in one line."""
    with pytest.raises(PrunusError) as caught:
        compress(trained_cnn(), steps, few_digits(), out=out, resume=True, latency=None)
    assert "\n" not in str(caught.value)
    return str(caught.value)


DEPLOYS: list[Step] = [CUT, Deploy(engine="onnxruntime")]


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run that ends with a deployment."""
    out = tmp_path_factory.mktemp("deployed") / "run"
    compress(trained_cnn(), DEPLOYS, few_digits(), out=out, latency=None)
    return out


@pytest.mark.parametrize("harm", ["cut short", "gone", "no record"])
def test_a_deployed_network_that_is_damaged_is_no_finished_step(
    harm: str, deployed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(deployed, out)
    place, mark = out / "steps" / "02-deploy.onnxruntime", out / "steps" / "02-deploy.json"
    file = place / ("deployed.json" if harm == "no record" else "model.onnx")
    if harm == "cut short":
        file.write_bytes(file.read_bytes()[:1000])
    else:
        file.unlink()
    said = _told(DEPLOYS, out)
    assert file.name in said
    assert said.endswith(f"to do this step and those after it anew, delete {mark} and resume")
    if harm == "no record":  # what is left is no deployment's, and in the way of a new one
        mark.unlink()
        compress(trained_cnn(), DEPLOYS, few_digits(), out=out, resume=True, latency=None)
        load_deployed(place)


def test_the_step_is_named_whose_network_is_damaged(tmp_path: Path) -> None:
    """The network before the first cut is read of an earlier step than the last."""
    steps: list[Step] = [TRAIN, CUT, TRAIN]
    out = tmp_path / "run"
    with pytest.raises(Killed):
        compress(
            trained_cnn(), steps, few_digits(), out=out, progress=Killer("train", 9), latency=None
        )
    file, mark = out / "steps" / "01-train" / "model.safetensors", out / "steps" / "01-train.json"
    file.write_bytes(b"")
    said = _told(steps, out)
    assert str(file) in said
    assert said.endswith(f"delete {mark} and resume")
    mark.unlink()
    again = compress(trained_cnn(), steps, few_digits(), out=out, resume=True, latency=None)
    whole = compress(trained_cnn(), steps, few_digits(), latency=None)
    assert same_state(again.network, whole.network)


def _dense(**changes: Any) -> dict[str, Any]:
    """A comparison whose dense network is trained first."""
    return {"train_first": FIRST, "latency": None, **changes}


@pytest.mark.parametrize(
    ("harm", "delete"),
    [
        ("dense.json", "dense.json"),
        ("dense/training.json", "dense/training.json"),
        ("dense/artifact", "dense/training.json"),
        ("dense/artifact/artifact.json", "dense/training.json"),
        ("looks.json", "looks.json"),
        ("cells/l1-seed0/run.json", "cells/l1-seed0"),
        ("run.json", "."),
    ],
)
def test_a_damaged_file_of_a_run_is_made_anew_by_the_way_on_that_is_told(
    harm: str, delete: str, first: Path, tmp_path: Path
) -> None:
    out = tmp_path / "c"
    shutil.copytree(first, out)
    before = Comparison.load(out / "comparison.json").runs[0]
    harmed, deleted = out / harm, out / delete
    if harm == "looks.json":
        (out / "dense.json").unlink()  # else nothing is looked at here
    _empty(harmed)
    with pytest.raises(InputError) as caught:
        compare("digits_cnn", ["l1"], few_digits(), "macs=0.5", out=out, resume=True, **_dense())
    said = str(caught.value)
    assert str(harmed) in said
    assert f"delete {'the folder ' if deleted.is_dir() else ''}{deleted}" in said
    shutil.rmtree(deleted) if deleted.is_dir() else deleted.unlink()
    again = compare(
        "digits_cnn", ["l1"], few_digits(), "macs=0.5", out=out, resume=True, **_dense()
    )
    assert again.runs[0].plans == before.plans
    assert again.runs[0].scores == before.scores


def _empty(path: Path) -> None:
    """Nothing is left in a file; nothing is left of a folder."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.write_bytes(b"")


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished comparison."""
    out = tmp_path_factory.mktemp("first") / "c"
    compare("digits_cnn", ["l1"], few_digits(), "macs=0.5", out=out, **_dense())
    return out


def test_a_folder_in_the_place_of_a_record_is_told(first: Path, tmp_path: Path) -> None:
    """It may hold anything: it is not taken away."""
    out = tmp_path / "c"
    shutil.copytree(first, out)
    file = out / "cells" / "l1-seed0" / "record.json"
    file.unlink()
    file.mkdir()
    with pytest.raises(InputError, match=r"record\.json is a folder; move it away and resume"):
        compare("digits_cnn", ["l1"], few_digits(), "macs=0.5", out=out, resume=True, **_dense())
    with pytest.raises(InputError, match=r"record\.json: a folder is in its place; move it away"):
        Bits.pack([True]).save(file)


def test_a_file_in_the_place_of_the_steps_is_told(tmp_path: Path) -> None:
    out = tmp_path / "run"
    compress(trained_cnn(), [CUT], few_digits(), out=out, latency=None)
    shutil.rmtree(out / "steps")
    (out / "steps").touch()
    assert "steps' is no folder: move it away and resume" in _told([CUT], out)


class _Taken(Killer):
    """Deletes the folder of a run at an advance of a phase."""

    def __init__(self, out: Path, phase: str, advance: int) -> None:
        super().__init__(phase, advance)
        self._out = out

    def advance(self, n: int = 1, **values: float) -> None:
        try:
            super().advance(n, **values)
        except Killed:
            shutil.rmtree(self._out, ignore_errors=True)


@pytest.mark.parametrize(
    ("phase", "advance"), [("certify and cut", 1), ("train", 3), ("measure", 1)]
)
def test_a_run_whose_folder_is_taken_away_ends_and_makes_none_anew(
    phase: str, advance: int, tmp_path: Path
) -> None:
    steps: list[Step] = [CUT, TRAIN]
    out = tmp_path / "run"
    progress = _Taken(out, phase, advance)
    with pytest.raises(
        StorageError, match="was moved or deleted while it was in use: move it back"
    ):
        compress(trained_cnn(), steps, few_digits(), out=out, progress=progress, latency=None)
    assert not out.exists()


def test_a_training_whose_folder_is_taken_away_ends_and_makes_none_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(out: Path, progress: Killer) -> None:
        with pytest.raises(StorageError, match="was moved or deleted while it was in use"):
            train_network("digits_cnn", FIRST, few_digits(), out=out, progress=progress)
        assert not out.exists()

    run(tmp_path / "a", _Taken(tmp_path / "a", "train", 1))

    def taken(*_: object) -> Environment:
        shutil.rmtree(tmp_path / "b")
        return Environment.capture(1)

    monkeypatch.setattr("prunus.recipe.dense.environment", taken)  # after the last checkpoint
    run(tmp_path / "b", Killer())


def test_what_a_kill_left_half_written_is_taken_away(first: Path, tmp_path: Path) -> None:
    out = tmp_path / "c"
    shutil.copytree(first, out)
    cell = out / "cells" / "l1-seed0"
    folders = [
        cell / ".artifact.part-7",
        cell / ".artifact.old-7",
        out / "dense" / ".artifact.part-7",
        out / "engines" / ".onnxruntime-0a1b.part-7",
    ]
    file = out / "teacher" / ".0a1b.safetensors.part-7"
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "plan-0.json").write_text("{", encoding="utf-8")
    file.parent.mkdir()
    file.write_bytes(b"half")
    mine = out / ".notes.part-7"  # of the user
    mine.touch()
    compare("digits_cnn", ["l1"], few_digits(), "macs=0.5", out=out, resume=True, **_dense())
    assert not [path for path in (*folders, file) if path.exists()]
    assert mine.exists()


def test_a_folder_whose_name_is_no_text_is_refused_before_any_work(tmp_path: Path) -> None:
    watch, out = Killer(), tmp_path / "bad\udcffname"
    with pytest.raises(InputError, match=r"is not UTF-8; name a folder that is") as caught:
        compress(trained_cnn(), [CUT], few_digits(), out=out, progress=watch)
    str(caught.value).encode()
    assert watch.phases == []
