"""Trainings of a run have one format and layout, which its student can run in, too."""

from pathlib import Path
from typing import Any

import pytest
import torch

from prunus.errors import InputError
from prunus.recipe import Student, Train, compress
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
