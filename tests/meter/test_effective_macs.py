"""Effective MACs: a zero weight takes its own multiply-adds away, and nothing else."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunus.meter import count_macs
from tests.meter.wrappers import NeedsValues


def zero_(tensor: Tensor, *where: int | slice) -> None:
    with torch.no_grad():
        tensor[where] = 0


class FusedProjections(nn.Module):
    """One matrix for query, key and value, of which the query's part alone is used."""

    def __init__(self) -> None:
        super().__init__()
        self.fused = nn.Parameter(torch.ones(12, 4))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.fused.chunk(3)[0])


def identity(network: nn.Module) -> nn.Module:
    return network


@pytest.fixture(params=[identity, NeedsValues], ids=["meta", "cpu"])
def place(request: pytest.FixtureRequest) -> Callable[[nn.Module], nn.Module]:
    chosen: Callable[[nn.Module], nn.Module] = request.param
    return chosen


def test_half_the_kernels_zeroed_leaves_half(place: Callable[[nn.Module], nn.Module]) -> None:
    layer = nn.Conv2d(4, 6, 3, groups=2)
    nn.init.ones_(layer.weight)
    zero_(layer.weight, slice(None), 0)  # one of the two inputs of every filter
    counted = count_macs(place(layer), torch.ones(1, 4, 7, 7))
    assert counted.macs == 25 * 6 * 2 * 9
    assert counted.effective_macs * 2 == counted.macs


@pytest.mark.parametrize("zeros", [0, 1, 5, 12])
def test_single_weights_of_a_linear_layer(
    zeros: int, place: Callable[[nn.Module], nn.Module]
) -> None:
    layer = nn.Linear(4, 3)
    nn.init.ones_(layer.weight)
    with torch.no_grad():
        layer.weight.view(-1)[:zeros] = 0
    counted = count_macs(place(layer), torch.ones(2, 5, 4))
    assert counted.macs == 2 * 5 * 12
    assert counted.effective_macs == 2 * 5 * (12 - zeros)


def test_a_slice_of_a_fused_matrix_has_its_own_share(
    place: Callable[[nn.Module], nn.Module],
) -> None:
    network = FusedProjections()
    zero_(network.fused, slice(4, 8))  # the key's part, which is not used
    zero_(network.fused, 0)  # one row of four of the query
    counted = count_macs(place(network), torch.ones(1, 4))
    assert (counted.macs, counted.effective_macs) == (16, 12)


def test_a_parameter_inside_a_larger_block_of_memory(
    place: Callable[[nn.Module], nn.Module],
) -> None:
    block = torch.ones(100)
    block[:50] = 0
    layer = nn.Linear(4, 3, bias=False)
    layer.weight = nn.Parameter(block[46:58].view(3, 4))  # 4 zeros, then 8 ones
    assert count_macs(place(layer), torch.ones(1, 4)).effective_macs == 8


def test_a_cast_weight_is_still_known(place: Callable[[nn.Module], nn.Module]) -> None:
    class Cast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4, 4))

        def forward(self, x: Tensor) -> Tensor:
            return x.double() @ self.weight.to(torch.float64).t()

    network = Cast()
    zero_(network.weight, 0)
    assert count_macs(place(network), torch.ones(1, 4)).effective_macs == 12


def test_both_matrices_of_an_lstm(place: Callable[[nn.Module], nn.Module]) -> None:
    class Output(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(3, 5)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.lstm(x)[0]
            return out

    network = Output()
    weights = dict(network.named_parameters())
    for parameter in weights.values():
        nn.init.ones_(parameter)
    zero_(weights["lstm.weight_ih_l0"], slice(None), 0)
    zero_(weights["lstm.weight_hh_l0"])
    counted = count_macs(place(network), torch.ones(7, 1, 3))
    assert counted.macs == 7 * 4 * 5 * (3 + 5)
    assert counted.effective_macs == 7 * 4 * 5 * 2


def test_zero_activations_do_not_count_as_zero_weights(
    place: Callable[[nn.Module], nn.Module],
) -> None:
    layer = nn.Linear(4, 3)
    nn.init.ones_(layer.weight)
    counted = count_macs(place(layer), torch.zeros(1, 4))
    assert counted.effective_macs == counted.macs == 12


def test_tied_weights_share_their_zeros(place: Callable[[nn.Module], nn.Module]) -> None:
    first, second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
    nn.init.ones_(first.weight)
    second.weight = first.weight
    zero_(first.weight, 0)
    network = nn.Sequential(first, second)
    counted = count_macs(place(network), torch.ones(1, 4))
    assert (counted.macs, counted.effective_macs) == (32, 24)


class Changed(nn.Module):
    """A weight of zeros, or a copy of it, that is written to before it multiplies."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what
        self.weight = nn.Parameter(torch.zeros(3, 4))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight if self.what == "weight" else self.weight.clone()
        if self.what == "row":
            weight[0].add_(1.0)
        elif self.what != "nothing":
            weight.add_(1.0)
        return x @ weight


@pytest.mark.parametrize(
    ("what", "effective"), [("nothing", 0), ("copy", 12), ("row", 12), ("weight", 12)]
)
def test_what_was_written_to_is_no_copy_any_more(
    place: Callable[[nn.Module], nn.Module], what: str, effective: int
) -> None:
    counted = count_macs(place(Changed(what)), torch.ones(1, 3))
    assert (counted.macs, counted.effective_macs) == (12, effective)


def test_weights_without_values_count_fully() -> None:
    with torch.device("meta"):
        layer = nn.Linear(4, 3)
    counted = count_macs(layer, torch.zeros(1, 4))
    assert (counted.macs, counted.effective_macs) == (12, 12)
