import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from prunus.errors import InputError
from prunus.meter import as_predictor
from prunus.train import evaluate, fit, forward_logits
from prunus.train.forward import modes_restored, placed, to_place
from tests.train.fakes import (
    inputs_of,
    same_state,
    search_digits,
    settings,
    small_cnn,
    train_digits,
)


class Keywords(nn.Module):
    """Answers as the models of Hugging Face do."""

    def forward(self, a: Tensor, b: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=a - b)


def test_mapping_is_passed_by_name_and_logits_are_read_from_the_output() -> None:
    a, b = torch.ones(2, 3), torch.full((2, 3), 4.0)
    assert torch.equal(forward_logits(Keywords(), {"b": b, "a": a}), torch.full((2, 3), -3.0))


class WithAuxiliary(nn.Module):
    """Logits first, those of an auxiliary head after, as networks of torchvision in training."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = small_cnn()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.inner(x), x.flatten(1)


def test_a_network_that_returns_a_tuple_is_trained_and_judged_as_it_is_measured() -> None:
    plain, network = small_cnn(), WithAuxiliary()
    train, search = train_digits(0, 64), search_digits(64, 96)
    for one in (plain, network):
        fit(one, train, search, settings(epochs=1), seed=0)
    assert same_state(network.inner, plain)
    assert evaluate(network, search) == evaluate(plain, search)
    images, _ = inputs_of(search), network.eval()
    assert torch.equal(as_predictor(network)(images), forward_logits(network, images))


@pytest.mark.parametrize("network", [nn.Flatten(0), nn.Identity()], ids=["1-D", "3-D"])
def test_output_that_is_not_logits_is_refused(network: nn.Module) -> None:
    with pytest.raises(InputError, match="must return logits"):
        forward_logits(network, torch.zeros(2, 3, 4))


def test_flags_of_frozen_modules_come_back() -> None:
    network = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1))
    network[1].eval()
    with modes_restored(network):
        network.eval()
        assert not any(m.training for m in network.modules())
    assert [m.training for m in network.modules()] == [True, True, False]


def test_layout_comes_back_and_values_stay() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv3d(2, 2, 2), nn.Linear(2, 2))
    before = {k: (v.clone(), v.stride()) for k, v in network.state_dict().items()}
    weight = next(network.parameters())
    with placed(network, torch.device("cpu"), channels_last=True):
        assert weight.is_contiguous(memory_format=torch.channels_last)
        assert weight is next(network.parameters())
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name][0])
        assert tensor.stride() == before[name][1]


def test_narrow_shortcuts_with_a_stride_compute_as_they_are_and_answer_in_the_layout() -> None:
    narrow, wide = nn.Conv2d(6, 24, 1, 2), nn.Conv2d(24, 32, 1, 2)
    network = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), narrow, wide)
    images = torch.rand(2, 3, 8, 8)
    expected = network(images)
    seen: dict[nn.Module, Tensor] = {}
    with placed(network, torch.device("cpu"), channels_last=True):
        for layer in (narrow, wide):  # after those of ``placed``: what the layer itself is given
            layer.register_forward_pre_hook(lambda module, inputs: seen.update({module: inputs[0]}))
        output = network(images.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(output, expected)
    assert seen[narrow].is_contiguous()
    assert seen[wide].is_contiguous(memory_format=torch.channels_last)
    assert len(narrow._forward_pre_hooks) == 1
    assert not narrow._forward_hooks


NARROW = """
import torch
from torch import nn
from prunus.train.forward import placed, to_place

for channels in (2, 4, 6):
    network = nn.Sequential(nn.Conv2d(3, channels, 3, padding=1), nn.Conv2d(channels, 12, 1, 2))
    with placed(network, torch.device("cpu"), channels_last=True):
        inputs = to_place(torch.rand(16, 3, 8, 8), torch.device("cpu"), channels_last=True)
        for _ in range(12):
            network(inputs).sum().backward()
            others = [torch.rand(n) for n in (100, 333, 1000, 5000)]
print("whole")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the check of the heap is of glibc")
def test_training_of_a_narrow_shortcut_leaves_the_memory_of_others_alone() -> None:
    # In a process of its own: without the care of ``placed`` it ends in a crash on CPUs with AVX2.
    done = subprocess.run(
        [sys.executable, "-c", NARROW],
        env=os.environ | {"GLIBC_TUNABLES": "glibc.malloc.check=3", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.stdout.strip() == "whole", done.stderr[-500:]


def test_only_images_are_turned_to_channels_last() -> None:
    inputs = {"image": torch.rand(2, 3, 4, 4), "token": torch.rand(2, 3)}
    moved = to_place(inputs, torch.device("cpu"), channels_last=True)
    assert isinstance(moved, dict)
    assert moved["image"].is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(moved["image"], inputs["image"])
    assert moved["token"].is_contiguous()
