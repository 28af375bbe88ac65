"""MACs against closed formulas: one multiply-add is one MAC, biases and element-wise work are 0."""

import math
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from prunus.errors import InputError
from prunus.meter import count_macs

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


class NeedsValues(nn.Module):
    """Cannot run on meta: reads a value, and changes a buffer on the way."""

    seen: Tensor

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        if x.sum().item() > 1e9:
            raise ValueError("too large")
        out: Tensor = self.inner(x)
        return out


class UnderInferenceMode(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        with torch.inference_mode():
            out: Tensor = self.inner(x)
        return out


class Attention(nn.Module):
    """Causal attention of `heads` queries over `key_heads` keys, eager or fused."""

    def __init__(self, heads: int, key_heads: int, *, fused: bool) -> None:
        super().__init__()
        self.heads, self.key_heads, self.fused = heads, key_heads, fused

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if self.fused:
            return F.scaled_dot_product_attention(
                query, key, value, is_causal=True, enable_gqa=self.heads != self.key_heads
            )
        key = key.repeat_interleave(self.heads // self.key_heads, -3)
        value = value.repeat_interleave(self.heads // self.key_heads, -3)
        weights = (query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])).softmax(-1)
        return weights @ value


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


@pytest.mark.parametrize("backend", [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH])
@pytest.mark.parametrize("wrap", [None, NeedsValues, UnderInferenceMode])
def test_attention_counts_alike_on_every_back_end(
    backend: SDPBackend, wrap: type[nn.Module] | None
) -> None:
    class OneInput(nn.Module):
        def __init__(self, *, fused: bool) -> None:
            super().__init__()
            self.attention = Attention(4, 4, fused=fused)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.attention(x, x[..., :5, :], x[..., :5, :6])
            return out

    x = torch.zeros(2, 4, 7, 6)
    expected = 2 * 4 * 7 * 5 * (6 + 6)
    for fused in (True, False):
        network: nn.Module = OneInput(fused=fused)
        network = wrap(network) if wrap is not None else network
        with sdpa_kernel(backend):
            counted = count_macs(network, x)
        assert counted.macs == expected
        assert counted.uncounted == ()


@pytest.mark.parametrize("fused", [True, False])
def test_grouped_queries_count_at_the_heads_of_the_queries(fused: bool) -> None:
    query, key = torch.zeros(1, 6, 7, 8), torch.zeros(1, 2, 5, 8)
    counted = count_macs(Attention(6, 2, fused=fused), (query, key, key))
    assert counted.macs == 6 * 7 * 5 * (8 + 8)


@pytest.mark.parametrize("wrap", [None, NeedsValues, UnderInferenceMode])
@pytest.mark.parametrize(("kind", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
def test_recurrent_layers_follow_the_formula(
    kind: type[nn.LSTM | nn.GRU | nn.RNN], gates: int, wrap: type[nn.Module] | None
) -> None:
    class Output(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = kind(4, 5, num_layers=2, bidirectional=True, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.layers(x)[0]
            return out

    network: nn.Module = Output()
    network = wrap(network) if wrap is not None else network
    counted = count_macs(network, torch.zeros(3, 7, 4))
    one_direction = gates * 5 * (4 + 5) + gates * 5 * (2 * 5 + 5)
    assert counted.macs == 3 * 7 * 2 * one_direction
    assert counted.uncounted == ()


@pytest.mark.parametrize("wrap", [None, NeedsValues, UnderInferenceMode])
def test_transformer_layer_is_counted_where_pytorch_has_a_fast_path(
    wrap: type[nn.Module] | None,
) -> None:
    tokens, width, hidden = 3, 8, 16
    layer: nn.Module = nn.TransformerEncoderLayer(width, 2, hidden, batch_first=True).eval()
    layer = wrap(layer) if wrap is not None else layer
    with torch.no_grad():
        counted = count_macs(layer, torch.zeros(1, tokens, width))
    projections, attention = 4 * tokens * width**2, 2 * tokens**2 * width
    assert counted.macs == projections + attention + 2 * tokens * width * hidden
    assert counted.uncounted == ()
    assert torch.backends.mha.get_fastpath_enabled()


def test_lookups_and_norms_are_free() -> None:
    network = nn.Sequential(nn.Embedding(11, 6), nn.LayerNorm(6), nn.Softmax(-1), nn.Dropout(0.5))
    counted = count_macs(network, torch.zeros(1, 4, dtype=torch.long))
    assert (counted.macs, counted.by_module, counted.uncounted) == (0, {}, ())


def test_contractions_without_a_rule_are_named() -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.fft.rfft(x).abs().sum() + torch.cdist(x, x).sum() + torch.relu_(x).sum()

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
