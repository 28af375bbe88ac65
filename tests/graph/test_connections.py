"""Connections held at zero stay zero, whatever trains the network, and go along with its cuts."""

import copy
import pickle
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus.errors import GraphError, InputError
from prunus.graph import (
    certify,
    cut,
    held_connections,
    hold_connections_,
    network_shape,
    trace,
)
from prunus.plan import Bits, BoolArray, Plan, ZeroConnections
from prunus.zoo import build
from tests.helpers import Wired, all_but, chain, enliven_, images

IMAGES = images(4, 3, 8, 8)
Level = Literal["kernel", "weight"]


def flags(*shape: int, seed: int = 0) -> BoolArray:
    """About half kept, and something of every row and column: no unit is left unread."""
    keep = np.random.default_rng(seed).random(shape) < 0.5
    rows, columns = shape[:2]
    for k in range(max(rows, columns)):
        keep[k % rows, k % columns] = True
    return keep


def zero(tensor: str, keep: BoolArray, level: Level = "kernel") -> ZeroConnections:
    return ZeroConnections(tensor=tensor, level=level, shape=keep.shape, keep=Bits.pack(keep))


KEEPS: dict[Level, tuple[str, BoolArray]] = {
    "kernel": ("0.weight", flags(4, 3)),
    "weight": ("6.weight", flags(2, 5)),
}


@pytest.mark.parametrize("level", KEEPS)
def test_zeroed_connections_are_exactly_the_chosen_ones(level: Level) -> None:
    network = enliven_(chain())
    tensor, keep = KEEPS[level]
    plan = trace(network, IMAGES).plan({}, [zero(tensor, keep, level)])
    small = cut(network, plan)
    before, after = network.get_parameter(tensor), small.get_parameter(tensor)
    mask = torch.from_numpy(keep).reshape(keep.shape + (1,) * (before.dim() - 2))
    assert torch.equal(after, before * mask)
    assert float(before.detach().abs().min()) > 0
    assert torch.equal(held_connections(small)[tensor], mask.expand_as(before))
    assert held_connections(network) == {}
    assert network_shape(small) == network_shape(network)
    assert list(small.state_dict()) == list(network.state_dict())


def test_single_weights_of_a_convolution() -> None:
    network = enliven_(chain())
    keep = flags(4, 3, 3, 3)
    small = cut(network, trace(network, IMAGES).plan({}, [zero("0.weight", keep, "weight")]))
    assert torch.equal(small.get_parameter("0.weight") == 0, torch.from_numpy(~keep))


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.01),
}


def train(network: nn.Module, x: Tensor, optimizer: str = "sgd", steps: int = 20) -> None:
    network.train()
    stepper = OPTIMIZERS[optimizer](network.parameters())
    for _ in range(steps):
        stepper.zero_grad()
        (network(x) - 1).square().mean().backward()
        stepper.step()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(
    "copied",
    [None, copy.deepcopy, lambda network: pickle.loads(pickle.dumps(network))],
    ids=["itself", "copied", "pickled"],
)
def test_training_moves_the_kept_and_leaves_the_zeroed(
    optimizer: str, copied: Callable[[nn.Module], nn.Module] | None
) -> None:
    network = enliven_(chain())
    keep = flags(4, 3)
    small = cut(network, trace(network, IMAGES).plan({}, [zero("0.weight", keep)]))
    if copied is not None:
        small = copied(small)
        prunus.hold_connections_(small)
    before = small.get_parameter("0.weight").detach().clone()
    train(small, IMAGES, optimizer)
    after = small.get_parameter("0.weight").detach()
    kept = torch.from_numpy(keep)
    assert bool((after[~kept] == 0).all())
    assert bool((after[kept] != before[kept]).all())


def test_holding_zeroes_what_has_been_loaded() -> None:
    network = enliven_(chain())
    keep = flags(4, 3)
    small = cut(network, trace(network, IMAGES).plan({}, [zero("0.weight", keep)]))
    small.load_state_dict(network.state_dict())
    hold_connections_(small)
    assert bool((small.get_parameter("0.weight")[torch.from_numpy(~keep)] == 0).all())


def test_holding_twice_is_holding_once() -> None:
    """A second hook would do no harm but must not be added at every epoch."""
    network = enliven_(chain())
    small = cut(network, trace(network, IMAGES).plan({}, [zero("0.weight", flags(4, 3))]))
    weight = small.get_parameter("0.weight")
    hooks = len(weight._backward_hooks or {})
    hold_connections_(small)
    assert len(weight._backward_hooks or {}) == hooks == 1


@pytest.mark.parametrize("model", ["digits_cnn", "resnet20"])
def test_connections_alone_are_certified(model: str) -> None:
    network = enliven_(build(model))
    x = images(4, 1, 8, 8) if model == "digits_cnn" else images(4, 3, 32, 32)
    found = trace(network, x, verify=False)
    edits = [
        zero(name, flags(*p.shape[:2], seed=k))
        for k, (name, p) in enumerate(network.named_parameters())
        if p.dim() == 4
    ]
    certificate = certify(network, found, found.plan({}, edits))
    assert certificate.passed
    assert certificate.train_difference is not None


def both(network: nn.Module) -> tuple[Any, BoolArray, Plan]:
    found = trace(network, IMAGES)
    keep = flags(5, 4)
    return (
        found,
        keep,
        found.plan({"0": all_but(4, 1), "3": all_but(5, 4)}, [zero("3.weight", keep)]),
    )


def test_channels_and_connections_together_are_certified() -> None:
    network = enliven_(chain())
    found, _, plan = both(network)
    assert certify(network, found, plan).passed


def test_mask_is_sliced_with_its_weight() -> None:
    network = enliven_(chain())
    _, keep, plan = both(network)
    small = cut(network, plan)
    expected = torch.from_numpy(keep[:4][:, [0, 2, 3]])
    assert torch.equal(held_connections(small)["3.weight"][..., 0, 0], expected)
    train(small, IMAGES)
    assert torch.equal(small.get_parameter("3.weight")[..., 0, 0] != 0, expected)


def test_network_with_held_connections_can_be_traced_and_cut_again() -> None:
    network = enliven_(chain())
    keep = flags(5, 4)
    held = cut(network, trace(network, IMAGES).plan({}, [zero("3.weight", keep)]))
    found = trace(held, IMAGES)
    assert [g.name for g in found.cuttable] == ["0", "3"]
    small = cut(held, found.plan({"0": all_but(4, 1)}))
    expected = torch.from_numpy(keep[:, [0, 2, 3]])
    assert torch.equal(held_connections(small)["3.weight"][..., 0, 0], expected)


def test_unit_that_nothing_reads_is_cut_and_changes_nothing() -> None:
    """Kernels that read unit 1 of the first layer are zero: the unit goes, no output changes."""
    network = enliven_(chain())
    keep = np.ones((5, 4), dtype=bool)
    keep[:, 1] = False
    keep[2, 3] = False
    plan = trace(network, IMAGES).plan({}, [zero("3.weight", keep)])
    assert {n: k.tolist() for n, k in plan.channels.items()} == {"0": [True, False, True, True]}
    small = cut(network, plan)
    with torch.no_grad():
        network.get_parameter("3.weight").mul_(torch.from_numpy(keep)[..., None, None])
        assert torch.allclose(small(IMAGES), network(IMAGES), rtol=1e-5, atol=1e-6)
    assert certify(network, trace(network, IMAGES), plan).passed


def test_what_only_an_unread_unit_reads_is_unread_itself() -> None:
    """Unit 2 of the second layer alone reads unit 1 of the first, and nothing reads unit 2."""
    network = enliven_(chain())
    kernels, weights = np.ones((5, 4), dtype=bool), np.ones((2, 5), dtype=bool)
    kernels[[0, 1, 3, 4], 1] = False
    weights[:, 2] = False
    found = trace(network, IMAGES)
    edits = [zero("3.weight", kernels), zero("6.weight", weights, "weight")]
    plan = found.plan({}, edits)
    wanted = {"0": all_but(4, 1).tolist(), "3": all_but(5, 2).tolist()}
    assert {n: k.tolist() for n, k in plan.channels.items()} == wanted
    assert certify(network, found, plan).passed


def test_unread_unit_under_a_norm_over_channels_stays() -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    keep = np.ones((2, 4), dtype=bool)
    keep[:, 1] = False
    plan = trace(network, images(2, 5, 3)).plan({}, [zero("2.weight", keep, "weight")])
    assert plan.channels == {}


def test_last_units_stay_even_unread() -> None:
    network = enliven_(chain())
    none = np.zeros((5, 4), dtype=bool)
    found = trace(network, IMAGES)
    assert certify(network, found, found.plan({}, [zero("3.weight", none)])).passed


def test_unit_read_by_a_product_without_weights_stays() -> None:
    """The Gram matrix reads every channel, though the only weight that reads unit 1 is zero."""

    def gram(n: Any, x: Tensor) -> Tensor:
        hidden = n.a(x).relu()
        out: Tensor = n.b(hidden).mean((1, 2)) + (hidden @ hidden.transpose(1, 2)).mean((1, 2))
        return out

    network = Wired(gram, a=nn.Linear(3, 4), b=nn.Linear(4, 2))
    x = images(2, 5, 3)
    keep = np.ones((2, 4), dtype=bool)
    keep[:, 1] = False
    small = cut(network, trace(network, x).plan({}, [zero("b.weight", keep, "weight")]))
    with torch.no_grad():
        network.get_parameter("b.weight").mul_(torch.from_numpy(keep))
        assert torch.allclose(small(x), network(x), rtol=1e-5, atol=1e-6)


def test_unread_units_go_in_multiples() -> None:
    network = enliven_(chain())
    keep = np.ones((5, 4), dtype=bool)
    keep[:, 1] = False
    plan = trace(network, IMAGES, round_to=2).plan({}, [zero("3.weight", keep)])
    assert all(k.sum() % 2 == 0 or k.all() for k in plan.channels.values())


def test_zeroing_again_holds_the_old_zeros_too() -> None:
    network = enliven_(chain())
    first, second = flags(4, 3, seed=1), flags(4, 3, seed=2)
    found = trace(network, IMAGES)
    once = cut(network, found.plan({}, [zero("0.weight", first)]))
    twice = cut(once, found.plan({}, [zero("0.weight", second)]))
    train(twice, IMAGES, steps=3)
    gone = torch.from_numpy(~(first & second))
    assert bool((twice.get_parameter("0.weight")[gone] == 0).all())


def test_two_edits_on_one_tensor_both_count() -> None:
    network = enliven_(chain())
    first, second = flags(4, 3, seed=1), flags(4, 3, seed=2)
    found = trace(network, IMAGES)
    plan = found.plan({}, [zero("0.weight", first), zero("0.weight", second)])
    small = cut(network, plan)
    gone = torch.from_numpy(~(first & second))
    assert bool((small.get_parameter("0.weight")[gone] == 0).all())


def test_frozen_weight_can_be_held() -> None:
    network = enliven_(chain()).requires_grad_(False)
    small = cut(network, trace(network, IMAGES).plan({}, [zero("0.weight", flags(4, 3))]))
    assert set(held_connections(small)) == {"0.weight"}


@pytest.mark.parametrize(
    ("tensor", "shape"),
    [("9.weight", (4, 3)), ("0.nothing", (4, 3)), ("0.weight", (3, 4)), ("0.weight", (1, 3))],
)
def test_connections_that_do_not_fit_are_refused(tensor: str, shape: tuple[int, int]) -> None:
    network = chain()
    with pytest.raises((InputError, GraphError)):
        cut(network, trace(network, IMAGES).plan({}, [zero(tensor, flags(*shape))]))
