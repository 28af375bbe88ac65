"""Steps of a training as CUDA graphs: the same training, and none where it cannot be."""

import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import nn

from prunus.progress import Silent
from prunus.train import Execution, epoch, fit
from prunus.train.captured import nothing_drawn
from tests.train.fakes import search_digits, settings, small_cnn, train_digits


@pytest.mark.parametrize("draw", [lambda: torch.rand(1), random.random, np.random.rand])
def test_choices_that_the_host_draws_are_no_part_of_a_graph(draw: Callable[[], object]) -> None:
    """A replay would repeat the one choice that was made at the capture."""
    before, plain = torch.get_rng_state(), random.getstate()
    with pytest.raises(RuntimeError, match="draws random numbers"), nothing_drawn():
        draw()
    assert torch.equal(torch.get_rng_state(), before)
    assert random.getstate() == plain
    with nothing_drawn():
        small_cnn().train()(torch.zeros(2, 1, 8, 8))
    with pytest.raises(ZeroDivisionError), nothing_drawn():  # another error is not hidden
        _ = draw(), 1 / 0


class Capture:
    """Stands for a captured loss, which takes a GPU; refuses to be made where ``fails``."""

    made, fails = 0, False

    def __init__(self, *given: object) -> None:
        type(self).made += 1
        if self.fails:
            raise RuntimeError("cannot be captured")
        self.shape = cast("torch.Tensor", given[3]).shape

    def takes(self, inputs: torch.Tensor) -> bool:
        return inputs.shape == self.shape

    def __call__(self, *_: object) -> float:
        return 0.5


def trainer(monkeypatch: pytest.MonkeyPatch, *, fails: bool = False, **changes: Any) -> Any:
    """Of batches of 4 images, 10 steps an epoch, on a device that is never touched."""
    monkeypatch.setattr(Capture, "made", 0)
    monkeypatch.setattr(Capture, "fails", fails)
    monkeypatch.setattr(epoch, "CapturedLoss", Capture)
    given = {
        "network": small_cnn(),
        "teaching": None,
        "config": settings(batch_size=4, epochs=2),
        "execution": Execution(),
        "device": torch.device("cuda", 0),
        "seed": 0,
        "samples": 40,
        "unlabeled": None,
        "after_step": None,
        "progress": Silent(),
    }
    return epoch.EpochTrainer(**{**given, **changes})


def step(made: Any, inputs: Any, labels: torch.Tensor | None) -> float | None:
    found: float | None = made._captured_step(0, inputs, labels, "train")
    return found


def test_whole_batches_of_images_with_labels_are_captured_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = trainer(monkeypatch)
    images, labels = torch.zeros(4, 1, 8, 8), torch.zeros(4, dtype=torch.int64)
    assert step(made, images[:3], labels[:3]) is None  # the last batch of an epoch
    assert step(made, {"input_ids": images}, labels) is None
    assert step(made, images, None) is None
    assert Capture.made == 0
    assert step(made, images, labels) == step(made, images, labels) == 0.5
    assert step(made, torch.zeros(4, 1, 6, 6), labels) is None  # another shape
    assert Capture.made == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"device": torch.device("cpu")},
        {"config": settings(batch_size=4, epochs=1)},  # 10 steps
        {"teaching": SimpleNamespace(is_pure=False, projection=nn.Identity())},
    ],
    ids=["cpu", "short", "teacher"],
)
def test_what_is_not_captured(monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]) -> None:
    made = trainer(monkeypatch, **changes)
    assert step(made, torch.zeros(4, 1, 8, 8), torch.zeros(4, dtype=torch.int64)) is None
    assert Capture.made == 0


def test_what_could_not_be_captured_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    made = trainer(monkeypatch, fails=True)
    images, labels = torch.zeros(4, 1, 8, 8), torch.zeros(4, dtype=torch.int64)
    assert step(made, images, labels) is None
    assert step(made, images, labels) is None
    assert Capture.made == 1


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_a_captured_step_trains_as_steps_launched_one_by_one(
    monkeypatch: pytest.MonkeyPatch, alpha: float
) -> None:
    def trained() -> dict[str, torch.Tensor]:
        network = small_cnn()
        config = settings(
            precision="float32", layout="channels_last", epochs=3, lr=0.05, distill_alpha=alpha
        )
        fit(
            network,
            train_digits(0, 1210),  # a last batch of another shape
            search_digits(1210, 1797),
            config,
            seed=0,
            teacher=small_cnn() if alpha else None,
            device="cuda",
        )
        return network.state_dict()

    captured = trained()
    monkeypatch.setattr(epoch, "MIN_STEPS", 10**9)
    plain = trained()
    for name, tensor in plain.items():
        torch.testing.assert_close(captured[name], tensor, rtol=1e-4, atol=1e-5, msg=name)
    assert int(captured["1.num_batches_tracked"]) == int(plain["1.num_batches_tracked"]) > 0


@pytest.mark.gpu
@needs_cuda
def test_work_that_waits_for_the_device_is_trained_on_without_a_capture() -> None:
    class Waiting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = small_cnn()

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            scale = float(images.abs().max())  # waits: no graph can hold it
            return cast("torch.Tensor", self.inner(images / scale))

    config = settings(precision="float32", layout="contiguous", epochs=6, lr=0.1)
    result = fit(
        Waiting(), train_digits(0, 1200), search_digits(1200, 1797), config, seed=0, device="cuda"
    )
    assert result.search_top1 > 0.7
