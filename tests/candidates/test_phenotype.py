"""Two plans have one hash where they make one network, and two where they do not."""

import itertools
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from prunus.candidates.phenotype import phenotype
from prunus.graph import Trace, cut, trace
from prunus.plan import Axis, Bits, KeepChannels, Plan, ZeroConnections
from prunus.zoo import build
from tests.candidates.subjects import flags, random_plan, zero
from tests.helpers import all_but, chain, enliven_, images, random_choice

Subject = tuple[nn.Module, Trace, dict[str, Tensor]]


def tensors_of(network: nn.Module) -> dict[str, Tensor]:
    return dict([*network.named_parameters(), *network.named_buffers()])


@cache
def subject() -> Subject:
    network = enliven_(chain())
    with torch.no_grad():
        network.get_parameter("3.weight")[2] = 0.0  # its bias lives: zeroing it makes no difference
        network.get_parameter("0.weight")[1, 2] = 0.0
    return network, trace(network, images(2, 3, 8, 8)), tensors_of(network)


def made(network: nn.Module, plan: Plan) -> list[tuple[str, tuple[int, ...], bytes]]:
    """The very tensors of the cut network (masks of held connections are no part of its outputs)."""
    return [
        (name, tuple(t.shape), (t.detach() + 0.0).numpy().tobytes())  # -0.0 is 0.0
        for name, t in cut(network, plan).state_dict().items()
    ]


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Few choices, so that equal networks turn up."""
    _, found, _ = subject()
    choice = {}
    for group in found.cuttable:
        removed: set[int] = draw(st.sets(st.integers(0, 2), max_size=2))
        said: bool = draw(st.booleans())
        if removed or said:
            choice[group.name] = all_but(group.units, *removed)
    connections = []
    if draw(st.booleans()):
        keep = np.ones((4, 3), dtype=bool)
        for at in draw(st.sets(st.tuples(st.integers(0, 2), st.integers(1, 2)), max_size=2)):
            keep[at] = False
        connections.append(zero("0.weight", keep))
    if draw(st.booleans()):
        keep = np.ones((5, 4), dtype=bool)
        keep[2, draw(st.integers(0, 3))] = False
        if draw(st.booleans()):
            keep[draw(st.integers(0, 2)), 1] = False
        connections.append(zero("3.weight", keep))
    return found.plan(choice, connections)


@settings(max_examples=25)
@given(a=plans(), b=plans())
def test_equal_where_the_cut_networks_are_equal_and_nowhere_else(a: Plan, b: Plan) -> None:
    network, _, tensors = subject()
    assert (phenotype(a, tensors) == phenotype(b, tensors)) == (
        made(network, a) == made(network, b)
    )


def test_all_small_plans_against_their_networks() -> None:
    network, found, tensors = subject()
    some = []
    for removed, zeroed in itertools.product(
        [None, (), (0,), (1,)], [None, (), (0,), (1,), (0, 1)]
    ):
        choice = {} if removed is None else {"0": all_but(4, *removed)}
        keep = np.ones((4, 3), dtype=bool)
        for row in zeroed or ():
            keep[row, 2] = False
        some.append(found.plan(choice, [] if zeroed is None else [zero("0.weight", keep)]))
    by_hash: dict[str, set[bytes]] = {}
    for plan in some:
        by_hash.setdefault(phenotype(plan, tensors), set()).add(repr(made(network, plan)).encode())
    assert all(len(networks) == 1 for networks in by_hash.values())
    assert len(set().union(*by_hash.values())) == len(by_hash)


@pytest.mark.parametrize("model", ["digits_cnn", "mobilenet_v2", "resnet20"])
def test_random_plans_differ_and_order_of_edits_does_not_matter(model: str) -> None:
    x = images(2, 1, 8, 8) if model == "digits_cnn" else images(2, 3, 8, 8)
    network = enliven_(build(model, **({} if model == "digits_cnn" else {"width": 0.1})))
    found, tensors = trace(network, x, verify=False), tensors_of(network)
    some = [random_plan(found, seed) for seed in range(20)]
    hashes = [phenotype(plan, tensors) for plan in some]
    assert len(set(hashes)) == len({repr(p.channels) for p in some})
    for plan, value in zip(some, hashes, strict=True):
        turned = plan.model_copy(update={"edits": plan.edits[::-1]})
        assert phenotype(turned, tensors) == value
        assert len(value) == 64 and int(value, 16) >= 0


def test_everything_kept_is_the_dense_network() -> None:
    _, found, tensors = subject()
    dense = phenotype(found.plan({}), tensors)
    whole = {group.name: np.ones(group.units, dtype=bool) for group in found.cuttable}
    assert phenotype(found.plan(whole), tensors) == dense
    keep = np.ones((4, 3), dtype=bool)
    assert phenotype(found.plan(whole, [zero("0.weight", keep)]), tensors) == dense
    # A plan from elsewhere may say so in so many words.
    axis = Axis(tensor="0.weight", dim=0, keep=Bits.pack(np.ones(4, dtype=bool)))
    edit = KeepChannels(group="0", keep=Bits.pack(np.ones(4, dtype=bool)), axes=(axis,))
    said = found.plan({}).model_copy(update={"edits": (edit,)})
    assert phenotype(said, tensors) == dense


def test_connections_of_kernels_and_of_their_weights_are_one() -> None:
    _, found, tensors = subject()
    kernels = flags(4, 3)
    weights = np.broadcast_to(kernels[:, :, None, None], (4, 3, 3, 3)).copy()
    a = found.plan({}, [zero("0.weight", kernels)])
    b = found.plan({}, [zero("0.weight", weights, "weight")])
    assert phenotype(a, tensors) == phenotype(b, tensors)


def test_two_connections_of_one_weight_are_their_union() -> None:
    _, found, tensors = subject()
    one, two = all_but(12, 3).reshape(4, 3), all_but(12, 7).reshape(4, 3)
    plan = found.plan({}, [zero("0.weight", one & two)])

    def edit(keep: np.ndarray) -> ZeroConnections:
        return zero("0.weight", keep)

    both = plan.model_copy(update={"edits": (edit(one), edit(two))})
    assert phenotype(both, tensors) == phenotype(plan, tensors)


def test_weights_that_are_no_number_count_as_weights() -> None:
    network = enliven_(chain())
    with torch.no_grad():
        network.get_parameter("6.weight")[0, 0] = torch.nan
    found, tensors = trace(network, images(2, 3, 8, 8), verify=False), tensors_of(network)
    keep = np.ones((2, 5), dtype=bool)
    keep[0, 0] = False
    zeroed = found.plan({}, [zero("6.weight", keep, "weight")])
    assert phenotype(zeroed, tensors) != phenotype(found.plan({}), tensors)


def test_network_in_half_precision() -> None:
    network = enliven_(chain())
    found = trace(network, images(2, 3, 8, 8))
    plan = found.plan({"0": all_but(4, 1)}, [zero("0.weight", flags(4, 3))])
    half = tensors_of(enliven_(chain()).bfloat16())
    assert phenotype(plan, half) == phenotype(plan, tensors_of(network))


def test_same_choice_from_two_traces_is_one() -> None:
    network, found, tensors = subject()
    again = trace(network, images(3, 3, 9, 9))
    choice = random_choice(found, 4)
    assert phenotype(again.plan(choice), tensors) == phenotype(found.plan(choice), tensors)
