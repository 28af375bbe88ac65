"""The certificate passes right cuts, catches wrong ones, and its masked side has an outside witness."""

import random
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from prunus.errors import CertificateError, GraphError, PlanMismatchError
from prunus.graph import certify, cut, masked_outputs, relative_difference, trace
from prunus.plan import BoolArray, Edit, KeepChannels, Plan, ReindexBuffer, SetAttribute
from prunus.seeding import host_states, seed_globally_
from prunus.zoo import PadShortcut, build
from tests.helpers import (
    FusedAttention,
    GroupedQueries,
    Wired,
    all_but,
    chain,
    enliven_,
    images,
    pooled,
    random_choice,
    rolled_axis,
    with_edits,
)

IMAGES = images(4, 3, 8, 8)
TOKENS = images(4, 5, 6)
CIFAR = images(4, 3, 32, 32)


def zoo(model: str, **arguments: Any) -> tuple[nn.Module, Tensor]:
    x = images(4, 1, 8, 8) if model == "digits_cnn" else CIFAR
    return enliven_(build(model, **arguments)), x


ZOO: dict[str, tuple[dict[str, Any], int]] = {
    "digits_cnn": ({}, 8),
    "resnet20": ({}, 3),
    "mobilenet_v2": ({"width": 0.25}, 2),
    "vgg16_bn": ({"width": 0.125}, 3),
    "resnet18": ({"width": 0.25}, 3),
    "resnet50": ({"width": 0.125}, 1),
}


@pytest.mark.parametrize("model", ZOO)
def test_random_choices_on_the_zoo_are_certified(model: str) -> None:
    arguments, choices = ZOO[model]
    network, x = zoo(model, **arguments)
    found = trace(network, x, verify=False)
    for seed in range(choices):
        plan = found.plan(random_choice(found, seed, share=(0.3, 0.6, 0.9)[seed % 3]))
        certificate = certify(network, found, plan)
        assert certificate.passed
        assert certificate.samples == 4
        assert certificate.train_difference is not None
        singles = (certificate.eval_difference, certificate.train_difference)
        if max(singles) > 1e-5:
            doubles = certificate.eval_difference_float64, certificate.train_difference_float64
            assert all(d is not None and d <= 1e-10 for d in doubles)


@pytest.mark.parametrize("model", ["digits_cnn", "resnet20"])
@pytest.mark.parametrize("training", [False, True])
def test_masked_equals_cut_in_double_precision(model: str, training: bool) -> None:
    network, x = zoo(model)
    network, x = network.double().train(training), x.double()
    found = trace(network, x, verify=False)
    for seed in range(3):
        plan = found.plan(random_choice(found, seed))
        with torch.no_grad():
            ours = cut(network, plan)(x)
        assert relative_difference(masked_outputs(network, found, plan, x), ours) <= 1e-10


SMALL: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "fused attention": (lambda: FusedAttention(4), TOKENS),
    "grouped queries": (GroupedQueries, TOKENS),
    "layer norm": (
        lambda: nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 3)),
        TOKENS,
    ),
    "RMS norm": (lambda: nn.Sequential(nn.Linear(6, 8), nn.RMSNorm(8), nn.Linear(8, 3)), TOKENS),
    "group norm": (
        lambda: pooled(
            nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(4, 8), nn.SiLU(), nn.Conv2d(8, 2, 1))
        ),
        IMAGES,
    ),
    "one group": (
        lambda: pooled(nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(1, 8), nn.Conv2d(8, 2, 1))),
        IMAGES,
    ),
    "sigmoid leaks no constant": (
        lambda: nn.Sequential(nn.Linear(6, 8), nn.Sigmoid(), nn.Linear(8, 3)),
        TOKENS,
    ),
    "softmax over channels": (
        lambda: nn.Sequential(nn.Linear(6, 8), nn.Softmax(-1), nn.Linear(8, 3)),
        TOKENS,
    ),
    "reductions over channels": (
        lambda: Wired(
            lambda n, x: n.b(
                torch.stack(
                    [n.a(x).mean(-1), n.a(x).amax(-1), n.a(x).std(-1), n.a(x).norm(dim=-1)], -1
                )
            ),
            a=nn.Linear(6, 8),
            b=nn.Linear(4, 3),
        ),
        TOKENS,
    ),
    "dropout": (
        lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3)),
        TOKENS,
    ),
    "depthwise": (
        lambda: pooled(
            nn.Sequential(
                nn.Conv2d(3, 6, 1),
                nn.BatchNorm2d(6),
                nn.Conv2d(6, 12, 3, groups=6),
                nn.BatchNorm2d(12),
                nn.Conv2d(12, 2, 1),
            )
        ),
        IMAGES,
    ),
    "grouped": (
        lambda: pooled(
            nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=2), nn.Conv2d(8, 2, 1))
        ),
        IMAGES,
    ),
    "shared": (
        lambda: Wired(
            lambda n, x: n.b(n.t(n.t(n.a(x)).relu())).mean((2, 3)),
            a=nn.Conv2d(3, 8, 1),
            t=nn.Conv2d(8, 8, 1),
            b=nn.Conv2d(8, 2, 1),
        ),
        IMAGES,
    ),
    "index shortcut": (
        lambda: Wired(
            lambda n, x: n.c((n.short(n.a(x)) + n.b(x)).relu()).mean((2, 3)),
            a=nn.Conv2d(3, 4, 1),
            short=PadShortcut(4, 8),
            b=nn.Conv2d(3, 8, 3, stride=2, padding=1),
            c=nn.Conv2d(8, 2, 1),
        ),
        IMAGES,
    ),
    "flatten": (
        lambda: nn.Sequential(nn.Conv2d(3, 6, 5), nn.ReLU(), nn.Flatten(), nn.Linear(96, 2)),
        IMAGES,
    ),
    "transposed": (
        lambda: pooled(
            nn.Sequential(
                nn.Conv2d(3, 4, 1),
                nn.ConvTranspose2d(4, 6, 3),
                nn.BatchNorm2d(6),
                nn.Conv2d(6, 2, 1),
            )
        ),
        IMAGES,
    ),
}


@pytest.mark.parametrize("name", SMALL)
def test_random_choices_on_small_networks_are_certified(name: str) -> None:
    make, x = SMALL[name]
    network = enliven_(make())
    found = trace(network, x)
    assert found.cuttable
    for seed in range(6):
        certificate = certify(network, found, found.plan(random_choice(found, seed)))
        assert certificate.passed
        assert certificate.train_difference is not None


# -- an outside witness of the masked side ------------------------------------------------------


def hooked_outputs(network: nn.Module, plan: Plan, x: Tensor) -> Any:
    """The dense network with channels zeroed by hooks where a weight's input side loses them.

    Right for convolutions, linear layers, batch norm and pointwise work; knows nothing of labels.
    """
    keep: dict[str, BoolArray] = {}
    for edit in plan.edits:
        if isinstance(edit, KeepChannels):
            for axis in edit.axes:
                if axis.dim == 1 and axis.tensor.endswith(".weight"):
                    mine = axis.keep.unpack()
                    keep[axis.tensor] = keep.get(axis.tensor, np.ones_like(mine)) & mine

    def hook(stays: BoolArray) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor]]:
        def zeroed(_: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor]:
            shape = [1, -1] + [1] * (given[0].dim() - 2)
            return (given[0] * torch.from_numpy(stays).reshape(shape).to(given[0]),)

        return zeroed

    handles = [
        network.get_submodule(name.removesuffix(".weight")).register_forward_pre_hook(hook(stays))
        for name, stays in keep.items()
    ]
    with torch.no_grad():
        out = network(x)
    for handle in handles:
        handle.remove()
    assert handles
    return out


@pytest.mark.parametrize(
    "model", ["digits_cnn", "resnet20", "vgg16_bn", "mobilenet_v2", "resnet18"]
)
def test_masked_run_equals_hooks_at_every_consumer(model: str) -> None:
    network, x = zoo(model, **ZOO[model][0])
    network, x = network.double(), x.double()
    found = trace(network, x, verify=False)
    for seed in range(2):
        plan = found.plan(random_choice(found, seed))
        masked = masked_outputs(network, found, plan, x)
        witness = hooked_outputs(network, plan, x)
        assert relative_difference(witness, masked) <= 1e-12
        assert relative_difference(network(x).detach(), masked) > 1e-3  # the mask does something


def test_masked_run_by_hand() -> None:
    """Linear, ReLU, linear: the masked output is the sum over kept units."""
    network = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    x = TOKENS.double()
    found = trace(network, x)
    keep = np.array([True, False, True, False])
    masked = masked_outputs(network, found, found.plan({"0": keep}), x)
    w0, b0, w2, b2 = (p.detach() for p in network.parameters())
    hidden = (x @ w0.T + b0).clamp(min=0)
    expected = hidden[..., 0:1] * w2[:, 0] + hidden[..., 2:3] * w2[:, 2] + b2
    assert torch.allclose(masked, expected, rtol=1e-12, atol=1e-12)


# -- wrong cuts are caught ----------------------------------------------------------------------


def chain_plan(*removed: int) -> tuple[nn.Module, Any, Plan]:
    network = enliven_(chain())
    found = trace(network, IMAGES)
    return network, found, found.plan({"0": all_but(4, *removed)})


@pytest.mark.parametrize(
    ("tensor", "dim"),
    [
        ("3.weight", 1),
        ("0.weight", 0),
        ("0.bias", 0),
        ("1.weight", 0),
        ("1.bias", 0),
        ("1.running_mean", 0),
        ("1.running_var", 0),
    ],
)
def test_wrong_positions_on_one_axis_are_caught(tensor: str, dim: int) -> None:
    network, found, plan = chain_plan(0, 1)
    assert certify(network, found, plan).passed
    with pytest.raises(CertificateError, match="disagree.*for cuts of 0"):
        certify(network, found, rolled_axis(plan, tensor, dim))


@pytest.mark.parametrize("tensor", ["1.weight", "1.running_mean", "3.weight"])
def test_one_position_among_many_is_enough(tensor: str) -> None:
    """One unit of 16 goes; one consumer drops its neighbor instead."""
    network = enliven_(
        pooled(
            nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 1))
        )
    )
    found = trace(network, IMAGES)
    plan = found.plan({"0.0": all_but(16, 7)})
    with pytest.raises(CertificateError):
        certify(network, found, rolled_axis(plan, f"0.{tensor}", int(tensor == "3.weight")))


def test_forgotten_axis_is_caught() -> None:
    network, found, plan = chain_plan(0)

    def forget(edit: Edit) -> Edit:
        assert isinstance(edit, KeepChannels)
        return edit.model_copy(
            update={"axes": tuple(a for a in edit.axes if a.tensor != "3.weight")}
        )

    with pytest.raises(GraphError, match="'3.weight'"):
        certify(network, found, with_edits(plan, forget))


@pytest.mark.parametrize("name", ["depthwise", "fused attention"])
def test_forgotten_attribute_is_caught(name: str) -> None:
    make, x = SMALL[name]
    network = enliven_(make())
    found = trace(network, x)
    plan = found.plan({found.cuttable[0].name: all_but(found.cuttable[0].units, 0)})
    assert any(isinstance(e, SetAttribute) for e in plan.edits)
    broken = with_edits(plan, lambda e: None if isinstance(e, SetAttribute) else e)
    with pytest.raises(CertificateError, match="does not run"):
        certify(network, found, broken)


def test_forgotten_renumbering_is_caught() -> None:
    make, x = SMALL["index shortcut"]
    network = enliven_(make())
    found = trace(network, x)
    plan = found.plan({"a": all_but(4, 0)})
    broken = with_edits(plan, lambda e: None if isinstance(e, ReindexBuffer) else e)
    with pytest.raises(CertificateError):
        certify(network, found, broken)


def test_cut_that_is_wrong_in_train_mode_alone_is_caught() -> None:
    """In train mode alone the network multiplies by its width, which the cut changes."""
    network = Wired(
        lambda n, x: n.b(n.a(x).relu() * (n.a(x).shape[-1] if n.training else 1)),
        a=nn.Linear(6, 4),
        b=nn.Linear(4, 2),
    ).eval()
    assert trace(network, TOKENS).by_name["a"].refused.startswith("probe failed")
    found = trace(network, TOKENS, verify=False)
    plan = found.plan({"a": all_but(4, 0)})
    assert certify(network, found, plan, train=False).passed
    with pytest.raises(CertificateError):
        certify(network, found, plan)


def test_train_mode_that_draws_random_numbers_is_left_out() -> None:
    network = Wired(
        lambda n, x: n.b(n.a(x) + torch.randn_like(n.a(x)) if n.training else n.a(x)),
        a=nn.Linear(6, 4),
        b=nn.Linear(4, 2),
    ).eval()
    found = trace(network, TOKENS)
    with torch.random.fork_rng(devices=[]):
        certificate = certify(network, found, found.plan({"a": all_but(4, 0)}))
    assert certificate.passed
    assert certificate.train_difference is None


def test_train_mode_that_does_not_run_is_left_out() -> None:
    network = enliven_(nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)))
    found = trace(network, images(1, 6))
    certificate = certify(network, found, found.plan({"0": all_but(4, 0)}))
    assert certificate.passed
    assert (certificate.train_difference, certificate.samples) == (None, 1)


def test_certificate_on_other_inputs_than_the_example() -> None:
    network, found, plan = chain_plan(2)
    certificate = certify(network, found, plan, images(7, 3, 10, 10, seed=5))
    assert certificate.passed
    assert certificate.samples == 7


def test_plan_of_another_network_is_refused() -> None:
    network, _, plan = chain_plan(2)
    small = cut(network, plan)
    with pytest.raises(PlanMismatchError):
        certify(small, trace(small, IMAGES), plan)


@pytest.mark.parametrize("training", [False, True])
def test_certifying_changes_neither_network_nor_random_state(training: bool) -> None:
    network = nn.Sequential(
        nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2)
    ).train(training)
    x = images(4, 6)
    found = trace(network, x)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state, modes = torch.get_rng_state(), [m.training for m in network.modules()]
    certify(network, found, found.plan({"0": all_but(4, 0)}))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert [m.training for m in network.modules()] == modes
    assert network[2].p == 0.5
    assert torch.equal(torch.get_rng_state(), state)


def test_random_train_mode_leaves_the_random_state_alone() -> None:
    network = Wired(
        lambda n, x: n.b(n.a(x) + torch.randn_like(n.a(x)) if n.training else n.a(x)),
        a=nn.Linear(6, 4),
        b=nn.Linear(4, 2),
    ).eval()
    found = trace(network, TOKENS)
    state = torch.get_rng_state()
    certify(network, found, found.plan({"a": all_but(4, 0)}))
    assert torch.equal(torch.get_rng_state(), state)


# -- numbers drawn by other generators -----------------------------------------------------------


def skipped(network: Any, x: Tensor) -> Tensor:
    """Stochastic depth, by Python's numbers and NumPy's."""
    y = network.a(x)
    for layer in network.layers:
        chance = random.random() + np.random.random()  # noqa: NPY002 (a user's code does)
        y = y if network.training and chance > 1 else y + layer(y).relu()
    return network.b(y)  # type: ignore[no-any-return]


def test_states_of_all_generators_are_kept_and_decide_nothing() -> None:
    layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
    network = Wired(skipped, layers=layers, a=nn.Linear(6, 4), b=nn.Linear(4, 2)).eval()
    for seed in range(6):
        seed_globally_(seed)
        before = host_states()
        found = trace(network, TOKENS)
        assert found.by_name["a"].refused == ""
        certify(network, found, found.plan({"a": all_but(4, 0)}))
        assert host_states() == before


def test_every_group_is_probed_with_every_unit() -> None:
    """Each single unit of the index shortcut's network, one at a time."""
    make, x = SMALL["index shortcut"]
    network = enliven_(make())
    found = trace(network, x)
    tried: dict[str, int] = defaultdict(int)
    for group in found.cuttable:
        for unit in range(group.units):
            plan = found.plan({group.name: all_but(group.units, unit)})
            assert certify(network, found, plan, train=False).passed
            tried[group.name] += 1
    assert tried == {"a": 4, "b": 4}


def test_a_network_deaf_to_its_inputs_is_said_to_prove_little() -> None:
    network = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2))
    found = trace(network, TOKENS)
    plan = found.plan({"0": all_but(4, 0)})
    assert certify(network, found, plan).reason == ""
    with torch.no_grad():
        network.get_parameter("2.weight").zero_()
    assert "same for all samples" in certify(network, found, plan).reason
