"""MACs against closed formulas: one multiply-add is one MAC, biases and element-wise work are 0."""

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from prunus.errors import InputError
from prunus.meter import count_macs
from prunus.seeding import host_states
from tests.meter.wrappers import NeedsValues

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


@dataclass(frozen=True)
class Convolution:
    dims: int
    groups: int
    per_group_in: int
    per_group_out: int
    kernel: int
    stride: int
    padding: int
    dilation: int
    length: int
    batch: int
    bias: bool
    transposed: bool

    def build(self) -> nn.Module:
        kind = (TRANSPOSED if self.transposed else CONVOLUTIONS)[self.dims]
        return kind(
            self.groups * self.per_group_in,
            self.groups * self.per_group_out,
            self.kernel,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
            bias=self.bias,
        )

    def positions(self) -> int:
        """Transposed, every input position is scattered; else every output one is gathered."""
        if self.transposed:
            return int(self.length**self.dims)
        reach = self.dilation * (self.kernel - 1) + 1
        return int(((self.length + 2 * self.padding - reach) // self.stride + 1) ** self.dims)


@settings(max_examples=40, deadline=None)
@given(
    st.builds(
        Convolution,
        dims=st.integers(1, 3),
        groups=st.integers(1, 3),
        per_group_in=st.integers(1, 3),
        per_group_out=st.integers(1, 3),
        kernel=st.integers(1, 3),
        stride=st.integers(1, 3),
        padding=st.integers(0, 2),
        dilation=st.integers(1, 2),
        length=st.integers(5, 8),
        batch=st.integers(1, 2),
        bias=st.booleans(),
        transposed=st.booleans(),
    )
)
def test_convolution_follows_the_formula(case: Convolution) -> None:
    channels = case.groups * case.per_group_in
    x = torch.zeros(case.batch, channels, *[case.length] * case.dims)
    counted = count_macs(case.build(), x)
    # N * positions * O * (I / groups) * k^dims
    filters = case.groups * case.per_group_out
    kernel = case.per_group_in * case.kernel**case.dims
    assert counted.macs == case.batch * case.positions() * filters * kernel
    assert counted.uncounted == ()


def test_vgg_like_network_by_hand() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1, bias=False),
        nn.GELU(),
        nn.AdaptiveAvgPool2d(4),
        nn.Upsample(scale_factor=2, mode="bilinear"),
        nn.Flatten(),
        nn.Linear(16 * 8 * 8, 10),
    )
    counted = count_macs(network, torch.zeros(1, 3, 16, 16))
    by_module = {
        "0": 16 * 16 * 8 * 3 * 9,
        "4": 8 * 8 * 16 * 8 * 9,
        "9": 1024 * 10,
    }
    assert counted.by_module == by_module
    assert counted.macs == sum(by_module.values())
    assert counted.uncounted == ()


def test_matrix_products_of_every_spelling() -> None:
    class Products(nn.Module):
        def forward(self, a: Tensor, b: Tensor, v: Tensor) -> Tensor:
            # a [2, 3, 4], b [2, 4, 5], v [4]
            parts = [
                a @ b,  # 2*3*4*5
                torch.einsum("nij,njk->nik", a, b),  # 2*3*4*5
                torch.einsum("nij,mjk->nmik", a, b),  # 2*2*3*4*5
                a @ v,  # 2*3*4
                a[0] @ b[0],  # 3*4*5
                v @ v,  # 4
                torch.tensordot(a, b, dims=([2], [1])),  # (2*3)*4*(2*5)
                torch.baddbmm(a @ b, a, b),  # 2 * 2*3*4*5
                torch.addbmm(a[0] @ b[0], a, b),  # 3*4*5 + 2*3*4*5
                torch.addmv(a[0] @ v, a[0], v),  # 2 * 3*4
                F.linear(a, b[0].t()),  # 2*3*4*5
                torch.outer(v, v),  # element-wise: nothing is summed
            ]
            return torch.stack([part.sum() for part in parts])

    counted = count_macs(Products(), (torch.zeros(2, 3, 4), torch.zeros(2, 4, 5), torch.zeros(4)))
    expected = 120 + 120 + 240 + 24 + 60 + 4 + 240 + 240 + (60 + 120) + 24 + 120
    assert counted.macs == expected
    assert counted.uncounted == ()


@pytest.mark.skipif(not hasattr(F, "grouped_mm"), reason="this torch has no grouped_mm")
@pytest.mark.parametrize(
    ("a", "b", "macs"),
    [
        ((12, 8), (3, 8, 16), 12 * 8 * 16),  # each row meets one matrix
        ((3, 4, 8), (8, 48), 4 * 8 * 48),  # each column one
        ((4, 48), (48, 16), 4 * 48 * 16),  # runs of what is summed
        ((3, 4, 8), (3, 8, 16), 3 * 4 * 8 * 16),  # as bmm
    ],
)
def test_grouped_products_meet_their_own_matrix(
    a: tuple[int, ...], b: tuple[int, ...], macs: int
) -> None:
    class Grouped(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            runs = {(2, 3): x.shape[0], (3, 2): y.shape[-1], (2, 2): x.shape[-1]}
            whole = runs.get((x.ndim, y.ndim))
            ends = None
            if whole is not None:
                ends = torch.tensor([whole // 3, 2 * whole // 3, whole], dtype=torch.int32)
            out: Tensor = F.grouped_mm(x, y, offs=ends)
            return out

    counted = count_macs(Grouped(), (torch.zeros(a), torch.zeros(b)))
    assert (counted.macs, counted.uncounted) == (macs, ())


def test_lookups_and_norms_are_free() -> None:
    network = nn.Sequential(nn.Embedding(11, 6), nn.LayerNorm(6), nn.Softmax(-1), nn.Dropout(0.5))
    counted = count_macs(network, torch.zeros(1, 4, dtype=torch.long))
    assert (counted.macs, counted.by_module, counted.uncounted) == (0, {}, ())


def test_contractions_without_a_rule_are_named() -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            spectrum: Tensor = torch.fft.rfft(x)
            return spectrum.abs().sum() + torch.cdist(x, x).sum() + torch.relu_(x).sum()

    counted = count_macs(Odd(), torch.zeros(4, 4))
    assert counted.macs == 0
    assert counted.uncounted == ("aten._cdist_forward", "aten._fft_r2c")


def test_a_module_called_twice_counts_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = nn.Sequential(nn.Linear(3, 3))

        def forward(self, x: Tensor) -> Tensor:
            twice: Tensor = self.block(self.block(x))
            return twice @ x.t()

    counted = count_macs(Twice(), torch.zeros(2, 3))
    assert counted.by_module == {"": 2 * 3 * 2, "block.0": 2 * 2 * 9}


@pytest.mark.parametrize("wrap", [nn.Sequential, NeedsValues])
def test_the_network_is_not_touched(wrap: type[nn.Module]) -> None:
    network = wrap(nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Dropout(0.5)))
    network.train()
    inner = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    inner[0].eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    places = {name: tensor.data_ptr() for name, tensor in network.state_dict().items()}
    flags = [module.training for module in network.modules()]
    generator = torch.get_rng_state()
    x = torch.zeros(1, 2, 5, 5)

    assert count_macs(network, x).macs == 9 * 3 * 2 * 9

    after = network.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert {name: tensor.data_ptr() for name, tensor in after.items()} == places
    assert [module.training for module in network.modules()] == flags
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())
    assert all(p.grad is None and p.requires_grad for p in network.parameters())
    assert torch.equal(torch.get_rng_state(), generator)
    assert torch.equal(x, torch.zeros(1, 2, 5, 5))


def test_the_count_is_that_of_eval_mode_and_draws_nothing_from_the_global_generator() -> None:
    class Noisy(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            out = super().forward(x + torch.rand(1, device=x.device))
            return super().forward(out) if self.training else out

    for network in (Noisy(3, 3), NeedsValues(Noisy(3, 3))):
        generator = torch.get_rng_state()
        assert count_macs(network.train(), torch.zeros(1, 3)).macs == 9
        assert torch.equal(torch.get_rng_state(), generator)


def test_inputs_by_name_and_by_position_agree() -> None:
    network = nn.Bilinear(2, 3, 4)
    first, second = torch.zeros(1, 2), torch.zeros(1, 3)
    by_position = count_macs(network, (first, second))
    assert by_position == count_macs(network, {"input1": first, "input2": second})
    assert by_position.uncounted == ("aten._trilinear",)


def test_inputs_the_network_cannot_take_are_refused() -> None:
    with pytest.raises(InputError, match=r"example_inputs \(\[1, 5\]\).*cannot be multiplied"):
        count_macs(nn.Linear(3, 2), torch.zeros(1, 5))
    with pytest.raises(InputError, match=r"lazy tensor 'weight'"):
        count_macs(nn.LazyLinear(3), torch.zeros(1, 5))


@pytest.mark.parametrize(
    "norm",
    [
        nn.BatchNorm2d(8),
        nn.BatchNorm2d(8, affine=False),
        nn.BatchNorm2d(8, track_running_stats=False),  # by the batch's own statistics, always
    ],
    ids=["running", "plain", "own"],
)
@pytest.mark.parametrize("inplace", [False, True])
def test_batch_norm_and_bounded_rectifiers_cost_nothing_and_keep_the_shape(
    norm: nn.Module, inplace: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prunus.meter.macs._FAILURES", ())  # nor is it run again, on values
    middle = [norm, nn.ReLU6(inplace), nn.Hardtanh()]
    network = nn.Sequential(nn.Conv2d(3, 8, 3), *middle, nn.Flatten(), nn.Linear(8 * 6 * 6, 5))
    assert count_macs(network, torch.zeros(2, 3, 8, 8)).macs == 2 * (27 * 8 * 36 + 288 * 5)


@pytest.mark.parametrize("width", [1, 7, 9])
def test_a_batch_norm_of_another_width_is_refused(width: int) -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(width))
    with pytest.raises(InputError, match="network failed on example_inputs"):
        count_macs(network, torch.zeros(2, 3, 8, 8))


def test_what_is_no_network_is_refused() -> None:
    wrong: Any = "resnet20"
    with pytest.raises(InputError, match="network is a str: give a torch.nn.Module"):
        count_macs(wrong, torch.zeros(1, 3))


class Jittered(nn.Linear):
    """Draws from the generators of Python, NumPy and torch."""

    def forward(self, x: Tensor) -> Tensor:
        drawn = random.random() + np.random.random()  # noqa: NPY002 (a user's code does)
        return super().forward(x + drawn * torch.rand(1))


def test_what_a_network_draws_leaves_no_trace() -> None:
    network, before = Jittered(4, 2), host_states()
    assert count_macs(network, torch.ones(1, 4)).macs == 8
    assert host_states() == before
