"""What a trace takes and refuses, what it leaves as it was, and what its probe finds."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from prunus.errors import GraphError, InputError
from prunus.graph import certify, cut, trace
from prunus.zoo import build
from tests.helpers import (
    FusedAttention,
    Wired,
    axes_of,
    chain,
    enliven_,
    images,
)

IMAGES = images(2, 3, 8, 8)
TOKENS = images(2, 5, 6)


def test_ignore_keeps_what_the_patterns_match() -> None:
    network, x = build("digits_cnn"), images(2, 1, 8, 8)
    found = trace(network, x, ignore=["conv2", "conv4.*"])
    assert [g.name for g in found.cuttable] == ["conv1"]
    assert {g.refused for g in found.groups if g.name in ("conv2", "conv4")} == {
        "left out by ignore"
    }
    # conv3 is coupled to conv1 through the residual: leaving it out leaves both out.
    assert "conv1" not in [g.name for g in trace(network, x, ignore=["conv3"]).cuttable]


def test_ignore_that_matches_nothing_is_an_error() -> None:
    with pytest.raises(InputError, match="'convx' matches no module or parameter"):
        trace(chain(), IMAGES, ignore=["convx"])


def test_ignoring_a_container_ignores_its_layers() -> None:
    found = trace(build("resnet20"), images(2, 3, 32, 32), ignore=["layer1"], verify=False)
    assert not [g.name for g in found.cuttable if g.name.startswith("layer1.")]


@pytest.mark.parametrize("setting", ["min_units", "round_to"])
def test_settings_below_one_are_refused(setting: str) -> None:
    options: Any = {setting: 0}
    with pytest.raises(InputError, match=f"{setting} is 0"):
        trace(chain(), IMAGES, **options)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"network": chain},
            r"network is the function chain; give the network it makes: chain\(\)",
        ),
        ({"network": nn.Flatten}, r"network is the class Flatten; give an instance: Flatten\(\)"),
        ({"network": {}}, r"network is a dict; give a torch\.nn\.Module"),
        ({"ignore": "0"}, r"ignore is the text '0'; give a list of patterns: \['0'\]"),
        ({"min_units": 1.5}, "min_units is 1.5; give a whole number"),
        ({"round_to": "8"}, "round_to is '8'; give a whole number"),
    ],
)
def test_wrong_objects_are_refused_with_the_remedy(change: dict[str, Any], said: str) -> None:
    given: dict[str, Any] = {"network": chain(), "example_inputs": IMAGES, **change}
    with pytest.raises(InputError, match=said):
        trace(**given)


def test_settings_reach_every_group() -> None:
    found = trace(chain(), IMAGES, min_units=2, round_to=2)
    assert {(g.min_units, g.round_to) for g in found.groups} == {(2, 2)}
    with pytest.raises(InputError, match="'0' must keep 2 units, not 1"):
        found.plan({"0": np.array([True, False, False, False])})


def test_choice_off_the_multiple_is_refused() -> None:
    found = trace(chain(), IMAGES, round_to=2)
    with pytest.raises(InputError):
        found.plan({"0": np.array([True, True, True, False])})


def test_choices_that_cannot_be_cut_are_refused() -> None:
    found = trace(chain(), IMAGES)
    with pytest.raises(InputError, match="no group 'x'; groups are 0, 3, 6"):
        found.check({"x": np.ones(4, bool)})
    with pytest.raises(InputError, match="'0' has 4 units, the choice 3"):
        found.check({"0": np.ones(3, bool)})
    with pytest.raises(InputError, match="'6' cannot be cut: it is an output"):
        found.check({"6": np.array([True, False])})
    with pytest.raises(InputError, match="must keep 1 units, not 0"):
        found.check({"0": np.zeros(4, bool)})


@pytest.mark.parametrize("inputs", [None, 3, {}, (), {"x": 3}])
def test_inputs_without_a_tensor_are_refused(inputs: Any) -> None:
    with pytest.raises(InputError, match="example_inputs"):
        trace(chain(), inputs)


def test_network_that_does_not_run_says_why() -> None:
    with pytest.raises(GraphError, match="does not run on example_inputs.*channels"):
        trace(chain(), images(2, 5, 8, 8))


def test_network_without_a_tensor_output_is_a_graph_error() -> None:
    with pytest.raises(GraphError):
        trace(Wired(lambda n, x: float(n.a(x).sum()), a=nn.Linear(6, 4)), TOKENS)


def test_inputs_by_position_and_by_name_trace_alike() -> None:
    layers: dict[str, nn.Module] = {"a": nn.Linear(6, 4), "b": nn.Linear(4, 2)}

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = layers["a"], layers["b"]

        def forward(self, x: Tensor, scale: Tensor) -> Tensor:
            out: Tensor = self.b(self.a(x).relu() * scale)
            return out

    one = torch.ones(2, 1, 1)
    by_name = trace(Named(), {"x": TOKENS, "scale": one})
    by_position = trace(Named(), (TOKENS, one))
    assert axes_of(by_name, "a") == axes_of(by_position, "a")


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "resnet20": (lambda: build("resnet20"), images(2, 3, 32, 32)),
    "mobilenet_v2": (lambda: build("mobilenet_v2", width=0.25), images(2, 3, 32, 32)),
    "attention": (lambda: FusedAttention(4), TOKENS),
}


def attributes(network: nn.Module) -> dict[str, dict[str, str]]:
    """All of every module, as text: types (an int must stay an int) and values."""
    found = {}
    for path, module in network.named_modules():
        plain = {k: v for k, v in vars(module).items() if k not in ("_modules", "_parameters")}
        found[path] = {k: f"{type(v)} {v}" for k, v in plain.items() if k != "_buffers"}
    return found


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("training", [True, False])
def test_traced_network_and_random_state_stay_as_they_were(name: str, training: bool) -> None:
    make, x = NETWORKS[name]
    network = make().train(training)
    before, listed = copy.deepcopy(network.state_dict()), attributes(network)
    held = [id(p) for p in network.parameters()]
    given, state = x.clone(), torch.get_rng_state()
    trace(network, x)
    after = network.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert [id(p) for p in network.parameters()] == held
    assert attributes(network) == listed
    assert torch.equal(x, given)
    assert torch.equal(torch.get_rng_state(), state)


def test_network_that_works_in_place_leaves_the_example_alone() -> None:
    network = Wired(lambda n, x: n.b(n.a(x.mul_(2)).relu()), a=nn.Linear(6, 4), b=nn.Linear(4, 2))
    x = TOKENS.clone()
    found = trace(network, x, verify=False)
    assert len(found.cuttable) == 1
    assert torch.equal(x, TOKENS)


def test_network_that_works_in_place_can_be_cut() -> None:
    network = Wired(lambda n, x: n.b(n.a(x.mul_(2)).relu()), a=nn.Linear(6, 4), b=nn.Linear(4, 2))
    assert len(trace(network, TOKENS.clone()).cuttable) == 1


def test_addbmm_is_followed_or_refused() -> None:
    def summed(n: Any, x: Tensor) -> Tensor:
        y = torch.addbmm(torch.zeros(6, 4), x.transpose(1, 2), n.a(x))
        out: Tensor = n.b(y)
        return out

    trace(Wired(summed, a=nn.Linear(6, 4), b=nn.Linear(4, 2)), TOKENS)


class ScaledByView(nn.Module):
    """A scale a channel, viewed by a shape that is kept on the module, its width left open."""

    def __init__(self, width: int, shape: Any) -> None:
        super().__init__()
        self.shape = shape
        self.scale = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        shape = self.shape if isinstance(self.shape, tuple) else (1, self.shape, 1, 1)
        return x * self.scale.view(shape)


@pytest.mark.parametrize("shape", [(1, -1, 1, 1), -1], ids=["tuple", "number"])
def test_size_that_a_module_leaves_open_stays_open(shape: Any) -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        ScaledByView(8, shape),
        nn.Conv2d(8, 2, 3),
        nn.Flatten(),
        nn.Linear(32, 2),
    ).eval()
    x = torch.randn(2, 3, 8, 8)
    found = trace(network, x)
    plan = found.plan({"0": np.arange(8) % 2 == 0})
    small: Any = cut(network, plan)
    assert certify(network, found, plan, x).passed
    assert small[1].scale.shape == (4,)
    assert small[1].shape == shape


def test_probe_refuses_what_depends_on_a_hidden_number() -> None:
    """The width is kept in a closure, where no trace can see it."""
    width = 4
    network = Wired(
        lambda n, x: n.b(n.a(x).view(x.shape[0], -1, width)), a=nn.Linear(6, 4), b=nn.Linear(4, 2)
    )
    assert [g.name for g in trace(network, TOKENS, verify=False).cuttable] == ["a"]
    found = trace(network, TOKENS)
    assert found.cuttable == ()
    assert found.by_name["a"].refused.startswith("probe failed: ")


def test_probe_refuses_only_the_group_at_fault() -> None:
    width = 4
    network = Wired(
        lambda n, x: n.c(n.b(n.a(x)).view(x.shape[0], -1, width)),
        a=nn.Linear(6, 5),
        b=nn.Linear(5, 4),
        c=nn.Linear(4, 2),
    )
    assert [g.name for g in trace(network, TOKENS).cuttable] == ["a"]


def test_enlivened_networks_differ_from_fresh_ones() -> None:
    """The helper does what the certificate tests rely on: norms that shift and scale."""
    network = enliven_(chain())
    assert float(network.get_buffer("1.running_mean").abs().min()) > 0
