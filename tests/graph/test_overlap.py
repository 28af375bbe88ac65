"""Parameters over one memory are refused whatever their shapes; parts that lie apart are none."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from prunus.errors import InputError
from prunus.graph import certify, cut, plan_of, trace
from prunus.meter import count_params
from prunus.plan import Bits, KeepLayers
from tests.helpers import all_but


def autoencoder(second: Callable[[Tensor], Tensor], outputs: int = 16) -> nn.Sequential:
    """16 to 8 and on; the second layer's weight is made of the first one's, ``[8, 16]``."""
    network = nn.Sequential(
        nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, outputs), nn.ReLU(), nn.Linear(outputs, 3)
    )
    first, last = (network.get_parameter(f"{k}.weight") for k in (0, 2))
    last.data = second(first.data)
    return network


TIES: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    "transpose": (lambda w: w.t(), 16),
    "another shape": (lambda w: w.reshape(16, 8), 16),
    "first rows": (lambda w: w[:4, :8], 4),
    "last rows": (lambda w: w[4:, 8:], 4),
    "every other column": (lambda w: w[:, 1::2], 8),
    "one value everywhere": (lambda w: w[0, 3].expand(4, 8), 4),
    "the same bits": (lambda w: w.view(torch.int32).view(torch.float32)[2:6, :8], 4),
}


@pytest.mark.parametrize("name", list(TIES))
def test_a_weight_in_the_memory_of_another_is_refused(name: str) -> None:
    network = autoencoder(*TIES[name])
    with pytest.raises(InputError, match=r"'0\.weight' and '2\.weight' share their memory") as told:
        trace(network, torch.randn(4, 16))
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("second", ["rows", "columns", "every other column"])
def test_parts_of_one_memory_that_lie_apart_are_cut(second: str) -> None:
    whole = torch.randn(16, 16, generator=torch.Generator().manual_seed(0)) / 4
    parts = {
        "rows": (whole[:8], whole[8:]),
        "columns": (whole[:, :8].t(), whole[:, 8:].t()),
        "every other column": (whole[:, ::2].t(), whole[:, 1::2].t()),
    }
    one, two = nn.Linear(16, 8), nn.Linear(16, 8)
    one.weight.data, two.weight.data = parts[second]
    network = nn.Sequential(one, nn.ReLU(), nn.Linear(8, 16), nn.ReLU(), two, nn.ReLU())
    network.append(nn.Linear(8, 3)).eval()
    found = trace(network, torch.randn(4, 16, generator=torch.Generator().manual_seed(1)))
    plan = found.plan({"0": all_but(8, 2)})
    assert certify(network, found, plan).passed
    # 17 for each of 7 and 8 outputs, 16 * (7 + 1), 3 * (8 + 1).
    assert count_params(cut(network, plan)) == found.params(plan.channels) == 17 * 15 + 128 + 27


def test_layers_of_a_stack_with_a_transposed_tie_are_not_dropped() -> None:
    network = nn.Sequential(*(nn.Sequential(nn.Linear(4, 4, bias=False)) for _ in range(3)))
    network.get_parameter("2.0.weight").data = network.get_parameter("0.0.weight").data.t()
    with pytest.raises(InputError, match=r"'0\.0\.0\.weight' and '0\.2\.0\.weight'"):
        plan_of(
            nn.Sequential(network), [KeepLayers(stack="0", keep=Bits.pack([True, False, True]))]
        )


def test_a_transpose_taken_in_the_forward_pass_is_counted_once_and_stays_tied() -> None:
    """What the refusal asks for."""

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encode, self.out = nn.Linear(16, 8), nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.encode(x).relu()
            answer: Tensor = self.out(nn.functional.linear(hidden, self.encode.weight.t()).relu())
            return answer

    network = Tied().eval()
    found = trace(network, torch.randn(4, 16))
    plan = found.plan({"encode": all_but(8, 1)})
    assert count_params(cut(network, plan)) == found.params(plan.channels) == 17 * 7 + 17 * 3
