"""Networks that cannot compute are refused by the tensor at fault, and masks are no fault."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from prunus.data import from_datasets
from prunus.errors import InputError
from prunus.graph import trace
from prunus.recipe import Prune, compress
from prunus.sound import require_sound


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2)
    ).eval()


def spoiled(tensor: str, value: float) -> nn.Sequential:
    made = network()
    made.state_dict()[tensor].view(-1)[0] = value  # the state shares the memory of the network
    return made


FAULTS = [
    ("0.weight", torch.nan, r"not finite \(1 of 36\)"),
    ("4.bias", torch.inf, r"not finite \(1 of 2\)"),
    ("1.running_mean", torch.nan, r"not finite \(1 of 4\)"),
    ("1.running_var", -2.0, r"a variance below 0 \(-2\)"),
]


def _compressed(made: nn.Module) -> None:
    images, labels = torch.rand(24, 1, 4, 4), torch.arange(24) % 2
    samples = torch.utils.data.TensorDataset(images, labels)
    tests = torch.utils.data.TensorDataset(torch.rand(8, 1, 4, 4), labels[:8])
    compress(made, [Prune(method="l2", target="macs=0.5")], from_datasets(samples, tests))


@pytest.mark.parametrize(("tensor", "value", "said"), FAULTS)
@pytest.mark.parametrize(
    "door", [lambda made: trace(made, torch.zeros(2, 1, 4, 4)), _compressed], ids=["trace", "run"]
)
def test_the_tensor_at_fault_is_named_where_work_begins(
    door: Callable[[nn.Module], object], tensor: str, value: float, said: str
) -> None:
    with pytest.raises(InputError, match=rf"tensor '{tensor}' of Sequential holds .*{said}: take"):
        door(spoiled(tensor, value))


class Causal(nn.Module):
    """Attention of one head with a mask as code in the wild keeps it: a buffer, or a parameter."""

    def __init__(self, *, parameter: bool) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)
        mask = torch.full((3, 3), -torch.inf).triu(1)
        if parameter:
            self.mask: Tensor = nn.Parameter(mask, requires_grad=False)
        else:
            self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.inner(x)
        scores = (hidden @ hidden.transpose(1, 2) + self.mask).softmax(-1)
        out: Tensor = scores @ hidden
        return out


@pytest.mark.parametrize("parameter", [False, True])
def test_masks_are_no_fault(parameter: bool) -> None:
    made = Causal(parameter=parameter)
    require_sound(made)
    trace(made, torch.rand(2, 3, 4))
    made.mask.fill_(torch.nan)
    if parameter:
        with pytest.raises(InputError, match=r"tensor 'mask' of Causal holds .* \(9 of 9\)"):
            require_sound(made)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_any_type_of_numbers_is_judged(dtype: torch.dtype) -> None:
    made = nn.Linear(2, 1, bias=False).to(dtype)
    require_sound(made)
    made.weight.data = torch.tensor([[1.0, torch.nan]]).to(dtype)
    with pytest.raises(InputError, match=r"tensor 'weight' of Linear .* \(1 of 2\)"):
        require_sound(made)
