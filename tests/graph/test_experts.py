"""Mixtures of experts whose layers are one parameter, as ``grouped_mm`` takes them."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import prunus
from prunus.errors import InputError
from prunus.graph import certify, cut, trace
from prunus.meter import count_macs, count_params

EXPERTS, WIDTH, HIDDEN = 3, 16, 24
X = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))

pytestmark = pytest.mark.skipif(
    not hasattr(functional, "grouped_mm"), reason="this torch has no grouped_mm"
)


class Experts(nn.Module):
    """Every row goes to one expert: two layers of its own, weighted by the gate."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.gate = nn.Linear(64, WIDTH), nn.Linear(WIDTH, EXPERTS)
        self.up = nn.Parameter(torch.randn(EXPERTS, HIDDEN, WIDTH) / 4)
        self.down = nn.Parameter(torch.randn(EXPERTS, WIDTH, HIDDEN) / 5)
        self.head = nn.Linear(WIDTH, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x.flatten(1)).relu()
        share, expert = self.gate(x).softmax(-1).max(-1)
        order = expert.argsort()
        rows = torch.histc(expert.float(), bins=EXPERTS, min=0, max=EXPERTS - 1)
        ends = rows.cumsum(0, dtype=torch.int32)
        h = functional.grouped_mm(x[order], self.up.transpose(-2, -1), offs=ends).relu()
        y = functional.grouped_mm(h, self.down.transpose(-2, -1), offs=ends)
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order))
        out: Tensor = self.head(x + y[back] * share[:, None])
        return out


def one_by_one(network: Experts, x: Tensor, keep: Tensor, hidden: Tensor) -> Tensor:
    """The same, row by row, with channels set to zero where they are made."""
    x = network.stem(x).relu() * keep
    share, expert = network.gate(x).softmax(-1).max(-1)
    rows = [
        row + part * ((network.up[e] @ row).relu() * hidden @ network.down[e].T * keep)
        for row, part, e in zip(x, share, expert, strict=True)
    ]
    return torch.as_tensor(network.head(torch.stack(rows)))


@pytest.fixture
def network() -> Experts:
    torch.manual_seed(0)
    return Experts().eval()


def test_width_and_hidden_channels_are_cut_for_all_experts(network: Experts) -> None:
    found = trace(network, X)
    assert {g.name: g.units for g in found.cuttable} == {"stem": WIDTH, "up#2": HIDDEN}
    draw = np.random.default_rng(0)
    for kept, left in ((8, 16), (16, 8), (8, 8)):
        keep = {
            "stem": np.isin(np.arange(WIDTH), draw.permutation(WIDTH)[:kept]),
            "up#2": np.isin(np.arange(HIDDEN), draw.permutation(HIDDEN)[:left]),
        }
        plan = found.plan(keep)
        certificate = certify(network, found, plan)
        assert certificate.passed and certificate.train_difference is not None
        small: Any = cut(network, plan)
        assert small.up.shape == (EXPERTS, left, kept) and small.down.shape == (EXPERTS, kept, left)
        masks = (torch.from_numpy(keep[name]).float() for name in ("stem", "up#2"))
        with torch.no_grad():
            assert torch.allclose(small(X), one_by_one(network, X, *masks), atol=1e-5)
        # Each row meets one expert: two products of width x hidden, beside stem, gate and head.
        macs = kept * (64 + EXPERTS + 10) + 2 * kept * left
        assert count_macs(small, X[:1]).macs == found.macs(plan.channels) == macs
        assert count_params(small) == found.params(plan.channels)


def test_experts_and_the_gate_stay(network: Experts) -> None:
    refused = {g.name: g.refused for g in trace(network, X).groups if g.refused}
    assert refused["gate"] == "positions on it are told by number"
    assert refused["up"].endswith("as many experts as are told")
    assert refused["down"].endswith("as many experts as are told")


@pytest.mark.parametrize("form", ["as bmm", "columns in runs", "sums in runs"])
def test_other_forms_stay_whole_and_are_counted(form: str) -> None:
    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 16), nn.Linear(8, 16)
            self.free, self.out = nn.Linear(8, 24), nn.Linear(24, 3)

        def forward(self, x: Tensor) -> Tensor:
            a, b = self.a(x)[0], self.b(x)[0]  # [8, 16] each
            ends = torch.tensor([4, 16], dtype=torch.int32)
            two = torch.stack([a, a])
            if form == "as bmm":
                made = functional.grouped_mm(two, torch.stack([b.t(), b.t()]))
            elif form == "columns in runs":
                made = functional.grouped_mm(two.transpose(-2, -1).contiguous(), b, offs=ends)
            else:
                made = functional.grouped_mm(a, b.t(), offs=ends)
            out: Tensor = self.out(self.free(x)).mean((1, 2)) + made.mean()
            return out

    torch.manual_seed(0)
    network, x = Other().eval(), torch.randn(2, 8, 8)
    found = trace(network, x)
    assert [g.name for g in found.cuttable] == ["free", "out"]  # and neither ``a`` nor ``b``
    plan = found.plan({"free": np.arange(24) < 9})
    counted = count_macs(cut(network, plan), x[:1])
    assert counted.macs == found.macs(plan.channels) and counted.uncounted == ()


def test_kept_channels_are_what_the_kernel_takes(network: Experts) -> None:
    found = trace(network, X)
    assert [g.width(1) for g in found.cuttable] == [8, 8]
    with pytest.raises(InputError, match=r"multiples of 8 units \(kernels take multiples of 8"):
        found.plan({"up#2": np.arange(HIDDEN) < 12})
    coarse = trace(network, X, round_to=12)
    assert [g.width(1) for g in coarse.cuttable] == [16, 24]
    said = r"of 24 units \(round_to=12, kernels take multiples of 8 channels\)"
    with pytest.raises(InputError, match=said):
        coarse.plan({"up#2": np.arange(HIDDEN) < 12})


@pytest.mark.parametrize("method", ["l2", "taylor"])
def test_a_recipe_cuts_them(network: Experts, method: str) -> None:
    data = prunus.load_data("digits")
    steps = [prunus.Prune(method=method, target="macs=0.6")]
    result = prunus.compress(network, steps, data, latency=None)
    after: Any = result.network
    assert after.up.shape[1] % 8 == 0 and after.up.shape[2] % 8 == 0
    assert after.up.numel() < network.up.numel()
