"""Rates of dropout are zero where train modes are compared; whatever else has such a name stays."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunus.errors import CertificateError
from prunus.graph import certify, trace
from prunus.graph.dropout import without_dropout
from tests.helpers import Wired, all_but, images

TOKENS = images(4, 5, 6)


def dropped(network: Any, x: Tensor) -> Tensor:
    """Dropout by a number on the module and by one in its settings, and a scale of such a name."""
    y = F.dropout(network.a(x).relu(), network.drop_rate, network.training)
    y = F.dropout(y, network.config.attn_pdrop, network.training)
    return network.b(y) * network.dropoff  # type: ignore[no-any-return]


def make(wiring: Any = dropped, **numbers: Any) -> nn.Module:
    layers = {"a": nn.Linear(6, 4), "b": nn.Linear(4, 2), "drop": nn.Dropout(0.5)}
    return Wired(wiring, **layers, **numbers).eval()


def test_rates_are_what_evaluation_does_not_read() -> None:
    network = make(
        drop_rate=0.5, dropoff=0.5, drop_after=7.5, config=SimpleNamespace(attn_pdrop=0.5, width=4)
    )
    quiet: Any = without_dropout(network, TOKENS)
    assert (quiet.drop_rate, quiet.config.attn_pdrop, quiet.drop.p) == (0.0, 0.0, 0.0)
    assert (quiet.dropoff, quiet.drop_after, quiet.config.width) == (0.5, 7.5, 4)
    given: Any = network
    assert (given.drop_rate, given.config.attn_pdrop, given.drop.p) == (0.5, 0.5, 0.5)
    found = trace(network, TOKENS)
    certificate = certify(network, found, found.plan({"a": all_but(4, 0)}))
    assert certificate.train_difference is not None


@pytest.mark.parametrize("name", ["dropoff", "drop_by"])
@pytest.mark.parametrize("invert", [False, True])
def test_a_wrong_cut_behind_a_number_of_such_a_name_is_caught(name: str, invert: bool) -> None:
    """``invert``: the network cannot do with zero for it."""

    def wiring(n: Any, x: Tensor) -> Tensor:
        factor = 1 / getattr(n, name) if invert else getattr(n, name)
        wide = n.a(x)
        return n.b(x[..., :4]) + factor * wide.mean(-1, keepdim=True) * np.sqrt(wide.shape[-1])  # type: ignore[no-any-return]

    network = make(wiring, **{name: 0.5})
    assert trace(network, TOKENS).by_name["a"].refused.startswith("probe failed")
    found = trace(network, TOKENS, verify=False)
    plan = found.plan({"a": all_but(4, 0)})
    with pytest.raises(CertificateError):
        certify(network, found, plan)


def test_dropout_that_goes_on_in_evaluation_is_zero_there_too() -> None:
    network = make(lambda n, x: n.b(F.dropout(n.a(x).relu(), n.dropout)), dropout=0.5)
    found = trace(network, TOKENS)
    assert found.by_name["a"].refused == ""
    torch.manual_seed(0)
    assert certify(network, found, found.plan({"a": all_but(4, 0)})).eval_difference <= 1e-5
