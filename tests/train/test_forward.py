from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from prunus.errors import InputError
from prunus.train import forward_logits
from prunus.train.forward import modes_restored, placed, resolve_device, to_place


class Keywords(nn.Module):
    """Answers as the models of Hugging Face do."""

    def forward(self, a: Tensor, b: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=a - b)


def test_mapping_is_passed_by_name_and_logits_are_read_from_the_output() -> None:
    a, b = torch.ones(2, 3), torch.full((2, 3), 4.0)
    assert torch.equal(forward_logits(Keywords(), {"b": b, "a": a}), torch.full((2, 3), -3.0))


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


def test_only_images_are_turned_to_channels_last() -> None:
    inputs = {"image": torch.rand(2, 3, 4, 4), "token": torch.rand(2, 3)}
    moved = to_place(inputs, torch.device("cpu"), channels_last=True)
    assert isinstance(moved, dict)
    assert moved["image"].is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(moved["image"], inputs["image"])
    assert moved["token"].is_contiguous()


@pytest.mark.parametrize("device", ["tpu9", "meta", "cuda:99"])
def test_unusable_device_is_named(device: str) -> None:
    with pytest.raises(InputError, match=device):
        resolve_device(device)
