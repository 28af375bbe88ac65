"""Attention and recurrent layers against formulas, on every way PyTorch runs them."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from prunus.meter import count_macs
from prunus.meter.contractions import RULES
from tests.meter.wrappers import NeedsValues, UnderInferenceMode


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


def test_values_may_be_wider_than_queries_on_back_ends_that_take_them() -> None:
    query, key, value = (torch.zeros(2, 4, *shape) for shape in ((7, 6), (5, 6), (5, 9)))
    rule = RULES["aten::_scaled_dot_product_efficient_attention"]
    (found,) = rule((query, key, value), None)
    assert found.macs == 2 * 4 * 7 * 5 * (6 + 9)


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
