"""Run folders: a killed run ends as an uninterrupted one; another run's folder is refused."""

import errno
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from torch import nn

from prunus.artifact import load
from prunus.data import TextOptions
from prunus.errors import InputError, StorageError, TemporaryFolderError
from prunus.recipe import Prune, Recalibrate, Repeat, Step, Train, compare, compress, train_network
from prunus.recipe.folder import open_run, require_usable
from prunus.recipe.measure import look
from prunus.recipe.subject import data_digest, resolve_subject
from prunus.records import Comparison, Environment, RunRecord, Source
from prunus.train import TrainConfig
from tests.limits import files_of_at_most
from tests.recipe import texts
from tests.recipe.subjects import (
    FAST,
    STEPS,
    Killed,
    Killer,
    few_digits,
    same_state,
    trained_cnn,
)

ROUNDS: tuple[Step, ...] = (
    Repeat(
        times=2,
        steps=(
            Prune(method="random", target="macs=0.4"),
            Recalibrate(images=64),
            Train(epochs=2, lr=0.02, batch_size=32, precision="float32", layout="contiguous"),
        ),
    ),
)
# Phases of STEPS on 256 samples in batches of 32: 8 steps an epoch.
DEATHS = [
    ("evaluate dense", 1),
    ("certify and cut", 1),
    ("evaluate after cut", 1),
    ("recalibrate", 1),
    ("train", 5),
    ("train", 20),
    ("evaluate after training", 1),
    ("measure", 1),
]
# Notes on the folder and on what befell it: a run without one has none of them.
OF_THE_FOLDER = ("repeated after a kill", "no artifact was saved")


def _facts(record: RunRecord) -> tuple[object, ...]:
    """What must not depend on how often a run was interrupted: all but times."""
    history = [(p.phase, p.step, p.values) for p in record.history]
    return (
        record.plans,
        record.scores,
        record.cost,
        record.certificates,
        record.widths,
        record.test_evaluations,
        [note for note in record.notes if not any(said in note for said in OF_THE_FOLDER)],
        history,
    )


@pytest.mark.parametrize(("phase", "advance"), DEATHS)
def test_a_killed_run_ends_as_an_uninterrupted_one(
    tmp_path: Path, phase: str, advance: int
) -> None:
    whole = compress(trained_cnn(), STEPS, few_digits(), latency=None)
    out = tmp_path / "run"
    with pytest.raises(Killed):
        compress(
            trained_cnn(),
            STEPS,
            few_digits(),
            out=out,
            progress=Killer(phase, advance),
            latency=None,
        )
    resumed = compress(trained_cnn(), STEPS, few_digits(), out=out, resume=True, latency=None)
    assert same_state(resumed.network, whole.network)
    assert resumed.plans == whole.plans
    assert _facts(resumed.record) == _facts(whole.record)
    # a kill between a look and the saving of its result is not hidden
    lost = [note for note in resumed.record.notes if "repeated after a kill" in note]
    stage = phase.removeprefix("evaluate ").replace(" ", "_")
    expected = (
        f"{stage}: the look at the test split was repeated after a kill (results lost unseen: 1)"
    )
    assert lost == ([expected] if phase.startswith("evaluate") else [])


def test_a_run_killed_again_and_again_in_its_rounds(tmp_path: Path) -> None:
    whole = compress(trained_cnn(), ROUNDS, few_digits(), latency=None)
    out = tmp_path / "run"
    # each life does one step more than the last, or dies within a training
    for phase in ("recalibrate", "train", "certify and cut", "train", "evaluate after training"):
        killer = Killer(phase, 12 if phase == "train" else 1)
        with pytest.raises(Killed):
            compress(
                trained_cnn(),
                ROUNDS,
                few_digits(),
                out=out,
                resume=True,
                progress=killer,
                latency=None,
            )
    resumed = compress(trained_cnn(), ROUNDS, few_digits(), out=out, resume=True, latency=None)
    assert same_state(resumed.network, whole.network)
    assert _facts(resumed.record) == _facts(whole.record)


def test_a_record_says_which_steps_were_done_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, capture = tmp_path / "run", Environment.capture
    with monkeypatch.context() as there:
        there.setattr(
            Environment,
            "capture",
            lambda *given, **more: capture(*given, **more).model_copy(update={"cpu": "Abacus"}),
        )
        with pytest.raises(Killed):
            compress(
                trained_cnn(), STEPS, few_digits(), out=out, progress=Killer("train", 5),
                latency=None,
            )  # fmt: skip
    record = compress(trained_cnn(), STEPS, few_digits(), out=out, resume=True, latency=None).record
    (note,) = (note for note in record.notes if "another environment" in note)
    assert note.startswith("steps[0].prune, steps[1].recalibrate: done in another")
    assert note.endswith(f"cpu was Abacus and is {record.environment.cpu}")
    steps = [json.loads(p.read_text()) for p in sorted((out / "steps").glob("0*-*.json"))]
    cpus = [step["environment"]["cpu"] for step in steps]
    assert cpus == ["Abacus", "Abacus", record.environment.cpu]


def test_finished_work_is_not_done_again(tmp_path: Path) -> None:
    out = tmp_path / "run"
    first = compress(trained_cnn(), STEPS, few_digits(), out=out, latency=FAST)
    watch, data = Killer(), few_digits()
    again = compress(trained_cnn(), STEPS, data, out=out, resume=True, progress=watch, latency=FAST)
    assert watch.phases == ["trace"]
    assert data.test.evaluations == 0
    assert again.record == first.record
    assert same_state(again.network, first.network)
    assert not list(out.rglob("*.ckpt"))


def test_a_training_picks_its_format_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = [STEPS[0], Train(epochs=2, lr=0.02, batch_size=32)]
    out = tmp_path / "run"
    with pytest.raises(Killed):
        compress(
            trained_cnn(), steps, few_digits(), out=out, progress=Killer("train", 3), latency=None
        )

    def forbidden(*_: object) -> None:
        pytest.fail("the trial was run again")

    monkeypatch.setattr("prunus.recipe.prepare.choose_execution", forbidden)
    done = compress(trained_cnn(), steps, few_digits(), out=out, resume=True, latency=None)
    train = done.record.recipe["steps"][1]["train"]
    assert train["precision"] in ("float32", "bfloat16")
    assert train["layout"] in ("contiguous", "channels_last")


def _changed_weight() -> nn.Module:
    network = trained_cnn()
    with torch.no_grad():
        network.get_parameter("fc.bias").add_(1e-3)
    return network


@pytest.mark.parametrize("harm", ["gone", "halved", "no manifest", "no plan"])
def test_a_finished_run_writes_its_artifact_again_where_it_is_damaged(
    harm: str, tmp_path: Path
) -> None:
    source, out = Source(model="digits_cnn"), tmp_path / "run"
    first = compress(trained_cnn(), STEPS, few_digits(), out=out, source=source, latency=None)
    artifact = out / "artifact"
    weights = artifact / "model.safetensors"
    before = weights.read_bytes()
    if harm == "gone":
        shutil.rmtree(artifact)
    elif harm == "halved":
        weights.write_bytes(before[: len(before) // 2])
    else:
        next(artifact.glob("artifact.json" if harm == "no manifest" else "plan-*.json")).unlink()
    again = compress(
        trained_cnn(), STEPS, few_digits(), out=out, source=source, resume=True, latency=None
    )
    assert again.artifact_path == artifact
    assert same_state(load(artifact), first.network)
    assert weights.read_bytes() == before
    written = weights.stat().st_mtime_ns
    compress(trained_cnn(), STEPS, few_digits(), out=out, source=source, resume=True, latency=None)
    assert weights.stat().st_mtime_ns == written  # what is whole is left alone


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"recipe": [Prune(method="l1", target="macs=0.4"), *STEPS[1:]]}, "steps[0].prune.target"),
        ({"recipe": STEPS[:2]}, "recipe.steps[2].train.epochs was 3 and is absent (and"),
        ({"seed": 1}, "recipe.seed was 0 and is 1"),
        ({"network": _changed_weight}, "weights was"),
        ({"data": "digits"}, "data samples was"),
    ],
)
def test_another_run_is_refused_naming_what_changed(
    tmp_path: Path, change: dict[str, object], said: str
) -> None:
    out = tmp_path / "run"
    compress(trained_cnn(), STEPS, few_digits(), out=out, latency=None)
    given = {"network": trained_cnn, "recipe": STEPS, "data": few_digits(), **change}
    network = given.pop("network")()  # type: ignore[operator]
    with pytest.raises(InputError, match="holds another run") as caught:
        compress(network, **given, out=out, resume=True, latency=None)  # type: ignore[arg-type]
    assert said in str(caught.value)


def _activated_by(activation: nn.Module) -> nn.Module:
    """The same weights with every activation."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 24), activation, nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 10)
    ).eval()


def test_another_network_with_the_same_tensors_is_another_run(tmp_path: Path) -> None:
    out, steps = tmp_path / "run", (Prune(method="l1", target="macs=0.6"),)
    first = compress(_activated_by(nn.ReLU()), steps, few_digits(), out=out, latency=None)
    with pytest.raises(
        InputError, match=r"network form \(.*dropout.*\) was .* and is .*; give the"
    ):
        compress(_activated_by(nn.Sigmoid()), steps, few_digits(), out=out, resume=True)
    frozen = _activated_by(nn.ReLU())
    frozen.get_parameter("1.weight").requires_grad_(False)
    with pytest.raises(InputError, match=r"frozen parameters was none and is 1\.weight; give the"):
        compress(frozen, steps, few_digits(), out=out, resume=True)
    same = _activated_by(nn.ReLU()).train()
    again = compress(same, steps, few_digits(), out=out, resume=True, latency=None)
    assert again.record == first.record


class Notes(nn.Module):
    """Notes the size of its last input."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = _activated_by(nn.ReLU())
        self.last: tuple[int, ...] = ()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.last = tuple(x.shape)
        logits: torch.Tensor = self.inner(x)
        return logits


def test_what_a_network_notes_of_its_inputs_keeps_no_run_from_its_end(tmp_path: Path) -> None:
    config = TrainConfig(epochs=1, lr=0.1, batch_size=32, precision="float32", layout="contiguous")

    def run() -> Comparison:
        given = [Prune(method="l1", target="macs=0.6")]
        return compare(
            Notes(),
            {"l1": given},
            few_digits(),
            out=tmp_path / "c",
            resume=True,
            train_first=config,
            latency=None,
        )

    assert run().runs == run().runs


def test_inputs_of_other_sizes_and_longer_texts_are_another_run(tmp_path: Path) -> None:
    """Costs are stated for one of them."""
    out = tmp_path / "run"

    def run(inputs: torch.Tensor, *, resume: bool) -> None:
        compress(
            trained_cnn(),
            STEPS,
            few_digits(),
            example_inputs=inputs,
            out=out,
            resume=resume,
            latency=None,
        )

    run(torch.rand(2, 1, 8, 8), resume=False)
    run(torch.rand(3, 1, 8, 8), resume=True)  # what is in them says nothing
    with pytest.raises(InputError, match=r"inputs was '?1 x 8 x 8'? and is '?1 x 12 x 12"):
        run(torch.rand(2, 1, 12, 12), resume=True)
    file = texts.write(tmp_path)
    found = []
    for longest in (16, 24):
        options = TextOptions(vocab_size=160, max_length=longest)
        subject = resolve_subject(texts.NETWORK, f"text:{file}", text=options, untrained=True)
        found.append(subject.identity)
    assert {name for name in found[0] if found[0][name] != found[1][name]} == {"longest text"}


def test_another_code_of_the_factory_is_another_run(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    code = "from prunus import build\n\n\ndef make():\n    return build('digits_cnn')\n"
    digests = []
    for text in (code, code, code + "# changed\n"):
        file.write_text(text, encoding="utf-8")
        subject = resolve_subject(Source(model=f"{file}:make"), few_digits(), untrained=True)
        digests.append(subject.identity["source"])
    assert digests[0] == digests[1] != digests[2]
    assert digests[0]["model"] == "mine.py:make"


def test_a_folder_in_use_or_of_something_else_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with open_run(out, {"a": 1}), pytest.raises(InputError, match="in use by process"):  # noqa: SIM117
        with open_run(out, {"a": 1}, resume=True):
            pass
    with open_run(out, {"a": 1}, resume=True) as folder:
        assert folder.file.identity == {"a": "1"}
    with pytest.raises(InputError, match="holds a run already"), open_run(out, {"a": 1}):
        pass
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("x", encoding="utf-8")
    with pytest.raises(InputError, match=r"thesis\.txt"):
        compress(trained_cnn(), STEPS, few_digits(), out=tmp_path / "other", resume=True)
    assert [p.name for p in (tmp_path / "other").iterdir()] == ["thesis.txt"]
    with pytest.raises(InputError, match="is a file"):
        compress(trained_cnn(), STEPS, few_digits(), out=tmp_path / "other" / "thesis.txt")


def test_a_killed_training_resumes(tmp_path: Path) -> None:
    config = TrainConfig(epochs=3, lr=0.1, batch_size=32, precision="float32", layout="contiguous")
    whole = train_network("digits_cnn", config, few_digits())
    out = tmp_path / "run"
    with pytest.raises(Killed):
        train_network("digits_cnn", config, few_digits(), out=out, progress=Killer("train", 12))
    done = train_network("digits_cnn", config, few_digits(), out=out, resume=True)
    assert same_state(done.network, whole.network)
    assert done.record.test == whole.record.test
    again = train_network("digits_cnn", config, few_digits(), out=out, resume=True)
    assert same_state(again.network, whole.network)
    assert again.record == done.record


def test_a_look_that_a_signal_cut_short_is_in_the_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("prunus.recipe.measure.predictions", killed)
        with pytest.raises(Killed):
            look(trained_cnn(), few_digits(), "after_cut", "cpu", tmp_path / "looks.json")
    for lost in (1, 2):
        seen = look(trained_cnn(), few_digits(), "after_cut", "cpu", tmp_path / "looks.json")
        assert (seen.lost, seen.evaluations) == (lost, 1)
    assert look(trained_cnn(), few_digits(), "dense", "cpu", tmp_path / "looks.json").lost == 0


def test_a_moved_or_otherwise_spelled_folder_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = TrainConfig(epochs=1, lr=0.1, batch_size=32, precision="float32", layout="contiguous")
    monkeypatch.chdir(tmp_path)

    def run(out: Path) -> Comparison:
        data = few_digits()
        found = compare(
            "digits_cnn",
            ["l1"],
            data,
            "macs=0.5",
            out=out,
            resume=True,
            train_first=first,
            latency=None,
        )
        looks.append(data.test.evaluations)
        return found

    looks: list[int] = []
    started = run(Path("c"))
    assert run(tmp_path / "c").runs == started.runs
    (tmp_path / "c").rename(tmp_path / "d")
    (moved,) = run(Path("d")).runs  # the same, but for where the dense weights lie now
    before, now = (str(tmp_path / name / "dense") for name in "cd")
    assert now in moved.model_dump_json() and before not in moved.model_dump_json()
    assert (RunRecord.model_validate_json(moved.model_dump_json().replace(now, before)),) == (
        started.runs
    )
    assert looks == [3, 0, 0]
    assert load(tmp_path / "d" / "cells" / "l1-seed0" / "artifact")(torch.zeros(1, 1, 8, 8)).numel()


def test_changed_labels_and_images_are_another_run(tmp_path: Path) -> None:
    data = few_digits()
    assert data_digest(data) == data_digest(few_digits())
    assert data.test.evaluations == 0
    for role in ("train", "search", "test"):
        split = getattr(data, role)
        last = split.samples.indices[-1:]  # one sample of many, and one value of it
        for what in ("_labels", "_images"):
            store = split.samples.store.take(torch.arange(len(split.samples.store.labels)))
            mine = getattr(store, what)
            if what == "_labels":
                mine[last] = (mine[last] + 1) % 10
            else:
                mine[last, 0, 3, 3] += 1
            other = type(split)(replace(split.samples, store=store))
            changed = replace(data, **{role: other})
            assert data_digest(changed) != data_digest(data), (role, what)


def test_a_folder_that_cannot_be_written_is_refused_before_any_work(tmp_path: Path) -> None:
    watch = Killer()
    (tmp_path / "file").touch()
    for out in (Path("/proc/prunus/run"), tmp_path / "file" / "run"):
        with pytest.raises(InputError, match="cannot be written"):
            compress(trained_cnn(), STEPS, few_digits(), out=out, progress=watch)
    assert watch.phases == []
    require_usable(tmp_path / "a" / "b", resume=False)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_run_folder_of_a_newer_form_is_refused(tmp_path: Path) -> None:
    """It may hold what this version does not know of, and would go on without."""
    with open_run(tmp_path / "run", {"seed": "0"}, resume=False):
        pass
    file = tmp_path / "run" / "run.json"
    file.write_text(file.read_text().replace('"version": 1', '"version": 2'))
    with (
        pytest.raises(InputError, match=r"run\.json is not a valid RunFile: version: .*upgrade"),
        open_run(tmp_path / "run", {"seed": "0"}, resume=True),
    ):
        pass


@pytest.mark.skipif(sys.platform == "win32", reason="limits of POSIX")
@pytest.mark.parametrize(
    ("size", "writer"),
    [
        pytest.param(0, OSError, id="number of the process"),
        pytest.param(100, OSError, id="run.json"),
        pytest.param(5000, SafetensorError, id="weights after the cut"),
        pytest.param(60_000, OSError, id="checkpoint"),
    ],
)
def test_a_full_disk_is_told_in_one_line_and_loses_nothing(
    size: int, writer: type[Exception], tmp_path: Path
) -> None:
    """Whoever writes."""
    whole = compress(trained_cnn(), STEPS, few_digits(), latency=None)
    out = tmp_path / "run"
    with files_of_at_most(size), pytest.raises(StorageError) as caught:
        compress(trained_cnn(), STEPS, few_digits(), out=out, latency=None)
    assert str(caught.value) == (
        f"out='{out}': File too large: free some space and resume (--resume); what the folder says "
        "is done is safe"
    )
    assert isinstance(caught.value.__cause__, writer)
    again = compress(trained_cnn(), STEPS, few_digits(), out=out, resume=True, latency=None)
    assert same_state(again.network, whole.network)
    assert _facts(again.record) == _facts(whole.record)


@pytest.mark.skipif(sys.platform == "win32", reason="limits of POSIX")
def test_a_full_disk_ends_a_comparison_and_is_no_failure_of_a_method(tmp_path: Path) -> None:
    out = tmp_path / "c"
    with files_of_at_most(5000), pytest.raises(StorageError, match="File too large: free some"):
        compare(trained_cnn(), ["l1", "l2"], few_digits(), "macs=0.5", out=out, latency=None)
    assert not (out / "comparison.json").exists()


def test_torch_hides_what_the_disk_said(tmp_path: Path) -> None:
    """Its writer fails once more when it closes the file; other errors stay what they are."""

    def write() -> None:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        finally:
            raise RuntimeError("unexpected pos 35072 vs 34960")

    said = "No space left on device: free some space"
    with pytest.raises(StorageError, match=said), open_run(tmp_path / "run", {"seed": "0"}):
        write()
    with pytest.raises(FileNotFoundError), open_run(tmp_path / "other", {"seed": "0"}):
        (tmp_path / "absent").read_text()


@pytest.mark.parametrize("name", ["02-recalibrate.json", "02-recalibrate/model.safetensors"])
def test_a_damaged_file_of_a_step_is_refused_with_the_way_on(name: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(Killed):
        compress(trained_cnn(), STEPS, few_digits(), out=out, progress=Killer("train", 9))
    damaged = out / "steps" / name
    damaged.write_bytes(damaged.read_bytes()[:100])
    mark = out / "steps" / "02-recalibrate.json"
    with pytest.raises(InputError) as caught:
        compress(trained_cnn(), STEPS, few_digits(), out=out, resume=True)
    assert str(damaged) in str(caught.value)
    assert str(caught.value).endswith(
        f"; to do this step and those after it anew, delete {mark} and resume"
    )
    mark.unlink()
    again = compress(trained_cnn(), STEPS, few_digits(), out=out, resume=True, latency=None)
    whole = compress(trained_cnn(), STEPS, few_digits(), latency=None)
    assert same_state(again.network, whole.network)
    assert _facts(again.record) == _facts(whole.record)


def test_what_a_kill_left_of_a_step_is_taken_away(tmp_path: Path) -> None:
    """Half a network beside the place of a step, as it is written first, and half a folder."""
    out, source, killer = tmp_path / "run", Source(model="digits_cnn"), Killer("recalibrate")
    with pytest.raises(Killed):
        compress(trained_cnn(), STEPS, few_digits(), out=out, source=source, progress=killer)
    steps = out / "steps"
    for name in (
        "02-recalibrate",
        ".02-recalibrate.part-7",
        ".02-recalibrate.old-7",
        ".03-train.onnxruntime.part-7",  # as a deployment of this name has it
    ):
        (steps / name).mkdir()
        (steps / name / "plan-0.json").write_text("{")
    compress(trained_cnn(), STEPS, few_digits(), out=out, resume=True, source=source, latency=None)
    assert [path.name for path in sorted(steps.iterdir()) if path.is_dir()] == [
        "01-prune",
        "02-recalibrate",
        "03-train",
    ]


def test_a_full_folder_for_temporary_files_is_not_taken_for_the_run_s(tmp_path: Path) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(TemporaryFolderError), open_run(tmp_path / "run", {"seed": "0"}):
        raise TemporaryFolderError("folder '/tmp' does not take it: set TMPDIR") from full
