"""MACs of contractions without a label rule: constant, and the meter's count."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from prunus.graph import cut, trace
from prunus.meter import count_macs
from tests.helpers import Wired, random_choice


def recurrent(kind: type[nn.LSTM | nn.GRU | nn.RNN], **options: bool) -> nn.Module:
    width = 24 * (2 if options.get("bidirectional") else 1)
    return Wired(
        lambda m, x: m.out(m.hidden(m.rnn(m.first(x))[0][:, -1]).relu()),
        first=nn.Linear(6, 8),
        rnn=kind(8, 24, batch_first=True, **options),
        hidden=nn.Linear(width, 40),
        out=nn.Linear(40, 3),
    )


class Product(nn.Module):
    """A matrix with a vector for each kind of product, between two layers."""

    def __init__(self, product: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(6, 8)
        self.hidden, self.out = nn.Linear(6, 16), nn.Linear(16, 3)
        self.table = nn.Parameter(torch.randn(6, 8))
        self.product = product

    def forward(self, x: Tensor) -> Tensor:
        y = self.product(self.table, self.first(x)[0, 0])
        out: Tensor = self.out(self.hidden(x[0, :1] + y).relu())
        return out


def test_an_lstm_by_hand() -> None:
    """5 tokens: 6*8 + 4*24*(8+24) each, then 24*40 + 40*3."""
    network = recurrent(nn.LSTM).eval()
    x = torch.randn(2, 5, 6)
    macs = 5 * (6 * 8 + 4 * 24 * (8 + 24)) + 24 * 40 + 40 * 3
    cost = trace(network, x).cost({})
    assert (cost.macs, cost.uncounted) == (macs, ())
    assert count_macs(network, x[:1]).macs == macs


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "lstm": lambda: recurrent(nn.LSTM),
    "lstm both ways": lambda: recurrent(nn.LSTM, bidirectional=True),
    "lstm without bias": lambda: recurrent(nn.LSTM, bias=False),
    "gru": lambda: recurrent(nn.GRU),
    "rnn": lambda: recurrent(nn.RNN),
    "mv": lambda: Product(torch.mv),
    "addmv": lambda: Product(lambda a, b: torch.addmv(a[:, 0], a, b)),
    "dot": lambda: Product(lambda a, b: torch.dot(a[0], b) + a[:, 0]),
    "addbmm": lambda: Product(lambda a, b: torch.addbmm(a[:, :1], a[None], b[None, :, None])[:, 0]),
    "addmm_": lambda: Product(lambda a, b: a[:, :1].clone().addmm_(a, b[:, None])[:, 0]),
    "baddbmm_": lambda: Product(
        lambda a, b: a[None, :, :1].clone().baddbmm_(a[None], b[None, :, None])[0, :, 0]
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_trace_and_meter_agree_on_the_network_and_its_cuts(name: str) -> None:
    network = NETWORKS[name]().eval()
    x = torch.randn(2, 5, 6)
    found = trace(network, x)
    assert found.cuttable
    for seed in range(4):
        choice = random_choice(found, seed, share=0.5) if seed else {}
        smaller = cut(network, found.plan(choice))
        assert found.macs(choice) == count_macs(smaller, x[:1]).macs, (name, seed)
