"""Steps of a training as CUDA graphs: the same training, and none where it cannot be."""

import random
from collections.abc import Callable
from typing import cast

import pytest
import torch
from torch import nn

from prunus.train import epoch, fit
from prunus.train.captured import nothing_drawn
from tests.train.fakes import search_digits, settings, small_cnn, train_digits


@pytest.mark.parametrize("draw", [lambda: torch.rand(1), random.random])
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
