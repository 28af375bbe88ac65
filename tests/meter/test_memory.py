"""Peak memory of one forward pass against what must be alive at once."""

import gc
import os

import pytest
import torch
from torch import nn

from prunus.errors import InputError
from prunus.meter import as_predictor, peak_memory_bytes

FLOAT = 4


def test_a_linear_layer_holds_its_output() -> None:
    output = 64 * 1000 * FLOAT
    peak = peak_memory_bytes(nn.Linear(100, 1000), torch.zeros(64, 100))
    assert output <= peak < 10 * output


def test_two_neighbors_are_alive_at_once_and_no_more() -> None:
    # Widths 1000 -> 1000 -> 10: an activation and its successor, never all of them.
    network = nn.Sequential(nn.Linear(100, 1000), nn.ReLU(), nn.Sigmoid(), nn.Linear(1000, 10))
    wide = 64 * 1000 * FLOAT
    peak = peak_memory_bytes(network, torch.zeros(64, 100))
    assert 2 * wide <= peak < 2.5 * wide


def test_work_in_place_needs_one_activation() -> None:
    wide = 64 * 1000 * FLOAT
    in_place = nn.Sequential(nn.Linear(100, 1000), nn.ReLU(inplace=True))
    assert wide <= peak_memory_bytes(in_place, torch.zeros(64, 100)) < 1.5 * wide


def test_parameters_do_not_count_and_modes_come_back() -> None:
    network = nn.Sequential(nn.Linear(2000, 1000), nn.Dropout(0.5)).train()
    peak = peak_memory_bytes(network, torch.zeros(1, 2000))
    assert 1000 * FLOAT <= peak < 2000 * 1000 * FLOAT / 10
    assert all(module.training for module in network.modules())


def test_a_collection_of_old_garbage_is_no_warning(capfd: pytest.CaptureFixture[str]) -> None:
    """PyTorch's profiler warns of memory that it has not seen handed out."""

    class Loop:
        def __init__(self) -> None:
            self.me, self.tensor = self, torch.zeros(10_000)

    class Wasteful(nn.Linear):
        waste = 0

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            kept: list[list[int]] = [[] for _ in range(self.waste)]
            self.waste = 5_000  # of the pass after that to warm up: enough for a collection
            return super().forward(inputs) + len(kept)

    gc.collect()
    for _ in range(50):
        Loop()
    peak_memory_bytes(Wasteful(10, 1000), torch.zeros(8, 10))
    assert gc.isenabled()
    assert "Memory block" not in capfd.readouterr().err


def test_predictors_and_networks_agree() -> None:
    network = nn.Linear(100, 1000).eval()
    x = torch.zeros(8, 100)
    assert peak_memory_bytes(as_predictor(network), x) == peak_memory_bytes(network, x)
    assert peak_memory_bytes(nn.Identity(), x) == 0


def test_an_engine_whose_memory_is_hidden_is_refused() -> None:
    with pytest.raises(InputError, match="another engine"):
        peak_memory_bytes(lambda _: [1.0], None)


@pytest.mark.parametrize("device", ["meta", "nonsense"])
def test_devices_that_are_not_there_are_refused(device: str) -> None:
    with pytest.raises(InputError, match=device):
        peak_memory_bytes(nn.Identity(), torch.zeros(1), device)


@pytest.mark.parametrize("level", [None, "2"])
def test_the_environment_is_left_as_it_was(
    monkeypatch: pytest.MonkeyPatch, level: str | None
) -> None:
    monkeypatch.delenv("KINETO_LOG_LEVEL", raising=False)
    if level is not None:
        monkeypatch.setenv("KINETO_LOG_LEVEL", level)
    peak_memory_bytes(nn.Identity(), torch.zeros(1))
    assert os.environ.get("KINETO_LOG_LEVEL") == level


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_holds_the_output_too() -> None:
    output = 64 * 1000 * FLOAT
    layer = nn.Linear(100, 1000).cuda()
    peak = peak_memory_bytes(layer, torch.zeros(64, 100, device="cuda"), "cuda")
    assert output <= peak < 10 * output
