"""What a certificate compares: small outputs beside large ones, empty, sparse and nested ones, NaN."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from prunus.errors import CertificateError
from prunus.graph import certify, cut, masked_outputs, trace
from tests.helpers import Wired, all_but, images, rolled_axis

TOKENS = images(4, 5, 6)


def test_wrong_small_output_beside_a_large_one_is_caught() -> None:
    network = Wired(
        lambda n, x: (1e8 * n.large(x), n.b(n.a(x).relu())),
        a=nn.Linear(6, 4),
        b=nn.Linear(4, 2),
        large=nn.Linear(6, 2),
    )
    found = trace(network, TOKENS)
    plan = found.plan({"a": np.array([True, True, False, False])})
    with pytest.raises(CertificateError):
        certify(network, found, rolled_axis(plan, "b.weight", 1))


def test_network_that_returns_only_nan_certifies_nothing() -> None:
    network = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2))
    found = trace(network, TOKENS)
    plan = found.plan({"0": np.array([True, True, False, False])})
    with torch.no_grad():
        network.get_parameter("0.weight").fill_(float("nan"))
    with pytest.raises(CertificateError):
        certify(network, found, rolled_axis(plan, "2.weight", 1))


# -- small values beside large ones --------------------------------------------------------------


class WrittenScale(nn.Module):
    """Attention divided by a width in NumPy's hands, so that a cut of ``q`` changes what it answers."""

    def __init__(self, finish: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.q, self.k, self.o = nn.Linear(6, 16), nn.Linear(6, 16), nn.Linear(6, 4)
        self.box, self.finish = nn.Linear(6, 4), finish

    def forward(self, x: Tensor) -> Tensor:
        q, k = self.q(x), self.k(x)
        mixed = (q @ k.transpose(1, 2) / np.sqrt(q.shape[-1])).softmax(-1) @ x
        return self.finish(self.o(mixed.mean(1)), self.box(x.mean(1)))


ILLEGAL = torch.ones(4, 4).triu(1)  # no action in all samples


@pytest.mark.parametrize(
    "finish",
    [
        lambda y, _: y.masked_fill(torch.arange(4) == 0, -1e9),
        lambda y, _: y.masked_fill(torch.arange(4) == 0, torch.finfo(y.dtype).min),
        lambda y, _: y.masked_fill(ILLEGAL > 0, -1e4),
        lambda y, _: y - 1e4 * ILLEGAL,
        lambda y, _: y - 1e9 * ILLEGAL,
        lambda y, box: torch.cat([box.sigmoid() * 640, y.sigmoid() / 100], 1),
        lambda y, box: torch.stack([box.sigmoid() * 640, y.sigmoid() / 100], 1),
    ],
    ids=["-1e9", "least", "-1e4 here and there", "added", "much added", "boxes", "along dim 1"],
)
def test_large_values_beside_small_ones_hide_no_wrong_cut(
    finish: Callable[[Tensor, Tensor], Tensor],
) -> None:
    torch.manual_seed(0)
    network = WrittenScale(finish).eval()
    assert trace(network, TOKENS).by_name["q"].refused.startswith("probe failed")
    found = trace(network, TOKENS, verify=False)
    plan = found.plan({"q": np.arange(16) < 4})
    with pytest.raises(CertificateError, match="disagree"):
        certify(network, found, plan)


def cancelled(network: Any, x: Tensor) -> Tensor:
    """Two columns that are nearly alike, what is left of them, and zero."""
    y = network.b(network.a(x).relu())
    return torch.cat([y, y[..., :1] - y[..., 1:], y[..., :1] * 0], -1)


def cancelling(wiring: Callable[..., Tensor]) -> nn.Module:
    torch.manual_seed(0)
    network = Wired(wiring, a=nn.Linear(6, 256), b=nn.Linear(256, 2)).eval()
    with torch.no_grad():
        weight = network.get_parameter("b.weight")
        weight[1] = weight[0] + 1e-4 * weight[1]
        network.get_parameter("b.bias").zero_()
    return network


def in_float32(network: Any, x: Tensor) -> Tensor:
    if x.dtype != torch.float32:
        raise TypeError("float32 alone")
    return cancelled(network, x)


def test_small_values_in_which_float32_rounds_are_decided_on_in_float64() -> None:
    network = cancelling(cancelled)
    found = trace(network, TOKENS)
    certificate = certify(network, found, found.plan({"a": np.arange(256) % 2 == 0}))
    assert certificate.passed
    assert certificate.eval_difference > 1e-5
    assert certificate.eval_difference_float64 is not None


def test_where_float64_does_not_run_small_values_are_told_of() -> None:
    network = cancelling(in_float32)
    found = trace(network, TOKENS)
    certificate = certify(network, found, found.plan({"a": np.arange(256) % 2 == 0}))
    assert certificate.passed
    assert certificate.eval_difference <= 1e-5
    assert "float32's rounding" in certificate.reason
    assert "float32 alone" in certificate.reason


# -- outputs of other kinds ----------------------------------------------------------------------


def nested(y: Tensor) -> Tensor:
    return torch.nested.nested_tensor(list(y), layout=torch.jagged)


@pytest.mark.parametrize(
    "beside",
    [lambda y: y.new_zeros(0, 3), Tensor.to_sparse, nested],
    ids=["empty", "sparse", "nested"],
)
def test_empty_sparse_and_nested_outputs_are_compared(beside: Callable[[Tensor], Tensor]) -> None:
    def both(n: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        return n.b(n.a(x).relu()), beside(n.b(n.a(x)))

    network = Wired(both, a=nn.Linear(6, 4), b=nn.Linear(4, 2)).eval()
    found = trace(network, TOKENS)
    assert found.by_name["a"].refused == ""
    plan = found.plan({"a": all_but(4, 0)})
    assert certify(network, found, plan).passed
    with pytest.raises(CertificateError):
        certify(network, found, rolled_axis(plan, "b.weight", 1))


def test_a_small_column_that_is_computed_apart_is_not_excused_by_a_large_one() -> None:
    """Scores that a cut moves by a tenth, beside numbers ten million times as large."""

    class Detector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.score, self.boxes = nn.Linear(8, 64), nn.Linear(64, 2), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x).relu()
            scores = self.score(h) + 0.6 / len(h[0])  # which forgets where the number is from
            return torch.cat([self.boxes(x) * 1e6, scores], 1)

    torch.manual_seed(0)
    network = Detector().eval()
    inputs = torch.randn(8, 8)
    found = trace(network, inputs, verify=False)
    plan = found.plan({"a": np.arange(64) < 32})
    apart = (masked_outputs(network, found, plan, inputs) - cut(network, plan)(inputs)).abs()
    assert apart[:, 2:].max() > 0.009
    assert apart[:, :2].max() == 0
    with pytest.raises(CertificateError, match="disagree"):
        certify(network, found, plan, inputs)
