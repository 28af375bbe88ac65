"""Records of runs: what they refuse, and that nothing is lost in their files."""

import math
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from prunus.errors import InputError, SettingError
from prunus.records import (
    Certificate,
    Comparison,
    Cost,
    Environment,
    HistoryPoint,
    Latency,
    LayerWidth,
    RunRecord,
    Score,
    Source,
)

COST = Cost(macs=10, effective_macs=8, params=5, nonzero_params=4, uncounted=("fft",))


def run(**changes: Any) -> RunRecord:
    values: dict[str, Any] = {
        "method": "magnitude",
        "source": Source(model="resnet20", arguments={"num_classes": 10}),
        "data": "digits",
        "seed": 3,
        "target": {"macs": 0.5},
        "recipe": {"steps": [{"prune": "magnitude"}]},
        "dense_cost": COST,
        "cost": COST,
        "latency": Latency(
            median_ms=1.5,
            p95_ms=2.0,
            iqr_ms=0.1,
            repeats=30,
            warmup=5,
            batch=1,
            threads=1,
            device="cpu",
        ),
        "scores": (
            Score(value=0.9, loss=0.3, samples=360, split="test", stage="dense"),
            Score(value=0.8, samples=100, split="search", stage="after_cut"),
        ),
        "certificates": (
            Certificate(passed=True, eval_difference=1e-7, train_difference=None, samples=2),
        ),
        "widths": (LayerWidth(group="conv1", before=16, after=8),),
        "history": (HistoryPoint(phase="fit", step=1, seconds=0.5, values={"loss": 1.25}),),
        "test_evaluations": {"dense": 1, "after_training": 1},
        "environment": Environment.capture(threads=1),
    }
    return RunRecord(**(values | changes))


def test_run_and_comparison_survive_json(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    run().save(path)
    assert RunRecord.load(path) == run()
    both = Comparison(title="two", runs=(run(), run(seed=4)))
    both.save(path)  # replaces the file
    assert Comparison.load(path) == both


def test_second_look_at_the_test_split_is_refused(tmp_path: Path) -> None:
    run(test_evaluations={"dense": 1, "after_cut": 0})
    with pytest.raises(SettingError, match="more than once: {'after_cut': 2}"):
        run(test_evaluations={"dense": 1, "after_cut": 2})
    path = tmp_path / "run.json"
    run().save(path)
    path.write_text(path.read_text().replace('"dense": 1', '"dense": 2'))
    with pytest.raises(InputError, match="evaluated more than once"):
        RunRecord.load(path)


def test_score_is_found_by_stage_and_split() -> None:
    record = run()
    assert record.score("dense") == record.scores[0]
    assert record.score("after_cut", "search") == record.scores[1]
    assert record.score("after_cut") is None


@pytest.mark.parametrize("field", ["macs", "effective_macs", "params", "nonzero_params"])
def test_costs_are_not_negative(field: str) -> None:
    values = {"macs": 1, "effective_macs": 1, "params": 1, "nonzero_params": 1, field: -1}
    with pytest.raises(ValidationError, match=field):
        Cost.model_validate(values)


@pytest.mark.parametrize(
    "changes", [{"split": "validation"}, {"stage": "later"}, {"samples": 0}, {"metric": "top5"}]
)
def test_score_of_unknown_kind_is_refused(changes: dict[str, Any]) -> None:
    values = {"value": 0.5, "samples": 1, "split": "test", "stage": "dense"} | changes
    with pytest.raises(ValidationError, match=next(iter(changes))):
        Score.model_validate(values)


def test_environment_names_the_machine_and_versions() -> None:
    here = Environment.capture(threads=3, gpu="none", packages=["pytest", "no-such-package"])
    assert (here.threads, here.gpu) == (3, "none")
    assert {"torch", "numpy", "pytest"} <= set(here.versions)
    assert "no-such-package" not in here.versions
    assert here.cores >= 1
    assert here.cpu
    assert (here.commit is None) == (here.dirty is None)


@pytest.mark.parametrize("installed", [False, True])
def test_the_commit_is_of_the_repository_that_holds_the_package(
    installed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not of one whose .venv it is installed in, which git ignores."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")

    def git(*arguments: str) -> str:
        who = ("-c", "user.name=a", "-c", "user.email=a@b")
        done = subprocess.run(
            ["git", *who, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    file = tmp_path / (".venv" if installed else "src") / "prunus" / "records.py"
    file.parent.mkdir(parents=True)
    file.write_text("", encoding="utf-8")
    (tmp_path / ".gitignore").write_text(".venv\n", encoding="utf-8")
    git("init")
    git("add", ".")
    git("commit", "-m", "First")
    monkeypatch.setattr("prunus.records.__file__", str(file))
    here = Environment.capture(threads=1)
    if installed:
        assert (here.commit, here.dirty) == (None, None)
    else:
        assert (here.commit, here.dirty) == (git("rev-parse", "HEAD"), False)


@pytest.mark.parametrize(("policy", "waiting"), [("PASSIVE", "passive"), ("", None), (None, None)])
def test_how_idle_threads_wait_stands_in_the_environment(
    policy: str | None, waiting: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if policy is not None:
        monkeypatch.setenv("OMP_WAIT_POLICY", policy)
    assert Environment.capture(threads=1).waiting == waiting


@pytest.mark.skipif(
    not Path("/proc/cpuinfo").exists(), reason="the instructions are read from there"
)
def test_environment_names_the_instructions_that_torch_finds() -> None:
    found = Environment.capture(threads=1).instructions
    expected = {"AVX512": "avx512f", "AVX2": "avx2"}.get(torch.backends.cpu.get_cpu_capability())
    assert expected is None or expected in found
    assert len(set(found)) == len(found) < 12  # those that matter, not all flags


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_history_of_a_diverged_training_loads_again(value: float, tmp_path: Path) -> None:
    path = tmp_path / "point.json"
    HistoryPoint(phase="fit", step=1, seconds=0.5, values={"loss": value}).save(path)
    again = HistoryPoint.load(path).values["loss"]
    assert again == value or (math.isnan(again) and math.isnan(value))


def test_failed_certificate_loads_again(tmp_path: Path) -> None:
    path = tmp_path / "certificate.json"
    failed = Certificate(passed=False, eval_difference=math.inf, train_difference=None, samples=2)
    failed.save(path)
    assert Certificate.load(path) == failed
