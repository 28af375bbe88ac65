"""Trainings of a run have one format and layout, which its student can run in, too."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunus.errors import InputError
from prunus.recipe import Recalibrate, Step, Student, Train, compare, compress, train_network
from prunus.records import Source
from prunus.train import Execution, TrainConfig
from prunus.train.precision import runs_in
from prunus.zoo import load_source
from tests.recipe.subjects import few_digits, trained_cnn

FLAT = """
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.out = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(256, 10)

    def forward(self, x):
        x = self.conv(x).relu()
        return self.out(x.{flatten})
"""


@pytest.mark.parametrize(
    ("formats", "left_open"),
    [
        ([{"precision": "bfloat16"}, {"precision": "bfloat16"}], ("bfloat16", "auto")),
        ([{"precision": "bfloat16"}, {"precision": "float32"}], ("auto", "auto")),
        ([{"layout": "contiguous"}, {}], ("auto", "auto")),
    ],
)
def test_the_trial_times_what_is_left_open(
    monkeypatch: pytest.MonkeyPatch, formats: list[dict[str, Any]], left_open: tuple[str, str]
) -> None:
    """Else the layout that is fastest in another number format is picked."""
    seen: list[TrainConfig] = []

    def stop(_network: Any, _sample: Any, config: TrainConfig, _device: Any) -> None:
        seen.append(config)
        raise InputError("seen enough")

    monkeypatch.setattr("prunus.recipe.prepare.choose_execution", stop)
    steps = [Train.model_validate({"epochs": 1, "lr": 0.05, **each}) for each in formats]
    with pytest.raises(InputError, match="seen enough"):
        compress(trained_cnn(), steps, few_digits(), latency=None)
    assert [(config.precision, config.layout) for config in seen] == [left_open]


@pytest.mark.parametrize(
    ("flatten", "layout"),
    [("view(x.size(0), -1)", "contiguous"), ("flatten(1)", "channels_last")],
)
def test_a_student_is_trained_in_a_layout_that_it_can_run_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flatten: str, layout: str
) -> None:
    """A view of an activation in channels_last is an error; the dense network has none."""
    (tmp_path / "flat.py").write_text(FLAT.format(flatten=flatten), encoding="utf-8")
    model = f"{tmp_path / 'flat.py'}:Net"
    wanted = Execution("float32", "channels_last")
    monkeypatch.setattr("prunus.recipe.prepare.choose_execution", lambda *_: wanted)
    data = few_digits()
    sample = next(iter(data.train.batches(8)))
    student = load_source(Source(model=model))
    assert runs_in(student, sample, wanted, torch.device("cpu")) == (layout == "channels_last")
    steps = (Student(model=model), Train(epochs=1, lr=0.05, distill_alpha=0.5))
    done = compress(trained_cnn(), steps, data, latency=None)
    assert done.record.recipe["steps"][1]["train"]["layout"] == layout


WHOLE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.out = nn.Linear(64, 10)

    def forward(self, x):
        if torch.is_autocast_enabled("cpu"):
            raise RuntimeError("could not create a primitive\\nfor this")
        return self.out(x.flatten(1))
"""
FIXED = {"epochs": 1, "lr": 0.05, "precision": "float32", "layout": "contiguous"}


@pytest.fixture
def whole(tmp_path: Path) -> str:
    """A network that has no kernel for bfloat16."""
    (tmp_path / "whole.py").write_text(WHOLE, encoding="utf-8")
    return f"{tmp_path / 'whole.py'}:Net"


@pytest.fixture
def viewed(tmp_path: Path) -> str:
    """A network that cannot run in channels_last."""
    (tmp_path / "flat.py").write_text(FLAT.format(flatten="view(x.size(0), -1)"), encoding="utf-8")
    return f"{tmp_path / 'flat.py'}:Net"


def refused(do: Callable[[], object], said: str) -> None:
    with pytest.raises(InputError) as caught:
        do()
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_format_that_a_student_cannot_run_in_is_refused_before_any_training(
    monkeypatch: pytest.MonkeyPatch, whole: str, viewed: str
) -> None:
    """Also of a teacher; a comparison ended in a traceback, its other rows lost."""
    for module in ("dense", "execute"):
        monkeypatch.setattr(f"prunus.recipe.{module}.fit", None)  # called by none
    data, first = few_digits(), TrainConfig.model_validate(FIXED)
    half = Train.model_validate({**FIXED, "precision": "bfloat16", "distill_alpha": 0.5})
    last = Train.model_validate({**FIXED, "layout": "channels_last", "distill_alpha": 0.5})
    cases: list[tuple[list[Step], str]] = [
        ([Student(model=whole), half], "steps[1].train.precision=bfloat16: "),
        ([Student(model=whole), half], "cannot run in it on device 'cpu'; set precision=float32"),
        ([Student(model=viewed), last], "steps[1].train.layout=channels_last: "),
        ([Student(model=viewed), last], "set layout=contiguous, or auto"),
    ]
    given: dict[str, Any] = {"train_first": first, "latency": None}
    for steps, said in cases:
        refused(partial(compress, "digits_cnn", steps, data, **given), said)
        rows: dict[str, list[Step]] = {"good": [Recalibrate()], "bad": steps}
        refused(partial(compare, "digits_cnn", rows, data, **given), said)
    taught: list[Step] = [Student(model="digits_cnn"), half]
    refused(lambda: compress(Source(model=whole), taught, data, latency=None), "whole.py:Net")
    assert data.test.evaluations == 0


def test_a_teacher_that_is_not_asked_need_not_run_in_a_students_format(whole: str) -> None:
    half = Train.model_validate({**FIXED, "precision": "bfloat16"})
    steps: list[Step] = [Student(model="digits_cnn"), half]
    done = compress(Source(model=whole), steps, few_digits(), latency=None)
    assert done.record.recipe["steps"][1]["train"]["precision"] == "bfloat16"


@pytest.mark.parametrize(
    ("precision", "layout"), [("bfloat16", "auto"), ("bfloat16", "contiguous")]
)
def test_a_format_that_a_network_cannot_be_trained_in_leaves_no_folder(
    tmp_path: Path, whole: str, precision: str, layout: str
) -> None:
    asked = TrainConfig.model_validate({**FIXED, "precision": precision, "layout": layout})
    data, out, source = few_digits(), tmp_path / "run", Source(model=whole)
    steps: list[Step] = [Recalibrate()]
    said = "precision=bfloat16: "
    refused(lambda: train_network(source, asked, data, out=out), said)
    refused(lambda: compress(source, steps, data, train_first=asked, out=out), said)
    refused(lambda: compare(source, {"a": steps}, data, train_first=asked, out=out), said)
    assert not out.exists()


def test_a_network_that_cannot_be_trained_at_all_says_why_itself() -> None:
    class Broken(nn.Module):
        """Has a mistake of its own."""

        def __init__(self) -> None:
            super().__init__()
            self.out = nn.Linear(64, 10)

        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                raise RuntimeError("a mistake inside")
            out: Tensor = self.out(x.flatten(1))
            return out

    asked = TrainConfig.model_validate({**FIXED, "precision": "bfloat16"})
    with pytest.raises(InputError, match="raised RuntimeError: a mistake inside") as caught:
        train_network(Broken(), asked, few_digits())
    assert "bfloat16" not in str(caught.value)  # the format is not to blame
