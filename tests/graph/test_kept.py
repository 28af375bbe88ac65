"""What modules keep between passes in evaluation is of one network, and no copy's."""

import copy
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import nn

from prunus.candidates.skeleton import Skeleton
from prunus.graph import certify, cut, plan_of, trace
from prunus.graph.certify_rebuild import _difference, _factor_names
from prunus.graph.difference import FINE
from prunus.graph.kept import may_keep, refresh_
from prunus.plan import Factorize
from tests.helpers import Biased

X = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def used() -> nn.Module:
    """A network that has answered, and keeps its bias."""
    torch.manual_seed(0)
    network = nn.Sequential(Biased(), nn.Linear(3, 2)).eval()
    with torch.no_grad():
        network(X)
    return network


def test_a_network_that_has_run_is_traced_and_cut_as_a_new_one(used: nn.Module) -> None:
    kept: Any = used[0]  # type: ignore[index]
    bias = kept.cache["cpu"]
    found = trace(used, X)
    assert [(g.name, g.units) for g in found.cuttable] == [("0.qkv", 4), ("0.out", 3)]
    plan = found.plan({"0.qkv": np.array([False, True, True, False])})
    assert certify(used, found, plan).passed
    assert certify(used.double(), found, plan, X.double()).passed  # what is kept is float32
    used.float()
    small: Any = cut(used, plan)
    assert small[0].cache == {} and not small.training
    # The removed heads' share of the output is left out, and no other.
    dense = copy.deepcopy(used)
    with torch.no_grad():
        columns = dense.get_parameter("0.out.weight").view(3, 4, 3)
        columns[:, [0, 3]] = 0
        assert torch.allclose(small(X), dense(X), atol=1e-6)
    assert kept.cache["cpu"] is bias  # the network that was given is as it was


def test_candidates_keep_nothing_of_each_other(used: nn.Module) -> None:
    """Two of the same shape: the second read the bias of the first one's heads."""
    found = trace(used, X)
    skeleton = Skeleton(used)
    for keep in ([True, True, False, False], [False, False, True, True]):
        plan = found.plan({"0.qkv": np.array(keep)})
        skeleton.load(plan)
        with torch.no_grad():
            assert torch.equal(skeleton.module(X), cut(used, plan)(X))
    skeleton.reset()
    with torch.no_grad():
        assert torch.equal(skeleton.module(X), used(X))


class Eager(Biased):
    """As LeViT's first code: the bias is made when evaluation begins, and is gone in training."""

    @torch.no_grad()
    def train(self, mode: bool) -> "Eager":  # type: ignore[override]  # without a default, as some write it
        nn.Module.train(self, mode)
        if mode:
            vars(self).pop("made", None)
        else:
            self.made = self.biases[:, self.get_buffer("distance")] / 3
        return self

    def bias(self) -> torch.Tensor:
        return self.biases[:, self.get_buffer("distance")] / 3 if self.training else self.made


def test_what_is_made_when_evaluation_begins_is_made_of_the_cut_network() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(Eager(), nn.Linear(3, 2))
    network.train(False)
    found = trace(network, X)
    assert [(g.name, g.units) for g in found.cuttable] == [("0.qkv", 4), ("0.out", 3)]
    skeleton = Skeleton(network)
    for keep in ([True, True, False, False], [False, False, True, True]):
        plan = found.plan({"0.qkv": np.array(keep)})
        assert certify(network, found, plan).passed
        small: Any = cut(network, plan)
        assert torch.equal(small[0].made, cast(Any, network[0]).made[keep])
        skeleton.load(plan)
        with torch.no_grad():
            assert torch.equal(skeleton.module(X), small(X))
    training = cut(network.train(True), plan)
    assert training.training and not hasattr(training[0], "made")  # type: ignore[index]


def test_rebuilt_networks_are_compared_with_what_is_made_now(used: nn.Module) -> None:
    """In float64: what the dense network keeps was computed in float32."""
    edit = Factorize(module="1", form="linear", ranks=(1,))
    plan = plan_of(used, [edit])
    names = _factor_names(edit, plan)
    factors = {name: torch.randn(plan.result.tensors[name]) for name in names}
    found, _ = _difference(used, plan, factors, {"1": names}, X, torch.float64, FINE)
    assert found < 1e-13


def test_modes_stay_and_nothing_is_touched_that_keeps_nothing() -> None:
    network = nn.Sequential(Biased(), Biased(), nn.BatchNorm1d(5)).eval()
    network[2].train()
    told: list[str] = []

    class Telling(nn.Linear):
        def train(self, mode: bool = True) -> "Telling":
            told.append("asked")
            super().train(mode)
            return self

    network.append(Telling(3, 3))
    assert may_keep(network) == [network[0], network[1], network[3]]
    first: Any = network[0]
    first.cache["cpu"] = torch.ones(1)
    network[1].get_submodule("out").train()
    refresh_(may_keep(network))
    assert first.cache == {} and told == []
    modes = [module.training for module in network.modules()]
    assert modes == [False, False, False, False, False, False, True, True, True]
