"""Recurrent layers: a unit is its row of every gate, its column of the recurrent weights, its state."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from prunus.graph import certify, cut, trace
from prunus.meter import count_macs
from prunus.zoo import build
from tests.helpers import Wired, all_but, images, random_choice

FLAT = images(4, 6)
STEPS = images(2, 5, 6)
LAYERS: list[type[nn.RNNBase]] = [nn.LSTM, nn.GRU, nn.RNN]
CELLS: list[type[nn.RNNCellBase]] = [nn.LSTMCell, nn.GRUCell, nn.RNNCell]
Wiring = Callable[[Any, Tensor], Any]


def around(layer: nn.Module, wiring: Wiring, read: int = 10, **more: Any) -> Any:
    """6 features to 8, the recurrent layer, ``read`` features to 3."""
    return Wired(wiring, a=nn.Linear(6, 8), r=layer, o=nn.Linear(read, 3), **more).eval()


def last_step(n: Any, x: Tensor) -> Any:
    return n.o(n.r(n.a(x))[0][:, -1])


def refusals(network: nn.Module, x: Tensor = STEPS) -> dict[str, str]:
    return {group.name: group.refused for group in trace(network, x).groups}


@pytest.mark.parametrize("kind", LAYERS)
def test_a_unit_that_nothing_reads_goes_without_a_trace(kind: Callable[..., nn.Module]) -> None:
    """Its outgoing weights are zero, so that the dense network gives the cut one's answers."""
    network = around(kind(8, 10, batch_first=True), last_step)
    gone = [0, 3, 9]
    with torch.no_grad():
        network.r.weight_hh_l0[:, gone] = 0
        network.o.weight[:, gone] = 0
    keep = all_but(10, *gone)
    found = trace(network, STEPS)
    small: Any = cut(network, found.plan({"r": keep}))
    assert torch.allclose(small(STEPS), network(STEPS), atol=1e-6)
    assert small.r.hidden_size == 7
    gates = network.r.weight_hh_l0.unflatten(0, (-1, 10))  # one block of rows after the other
    assert torch.equal(small.r.weight_hh_l0, gates[:, keep][:, :, keep].flatten(0, 1))


SHAPES: dict[str, dict[str, Any]] = {
    "one layer": {},
    "without bias": {"bias": False},
    "two layers": {"num_layers": 2},
    "both ways": {"bidirectional": True},
    "two layers both ways": {"num_layers": 2, "bidirectional": True, "dropout": 0.1},
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", LAYERS)
def test_units_and_features_are_cut_certified_and_counted(
    kind: Callable[..., nn.Module], shape: str
) -> None:
    ways = 2 if SHAPES[shape].get("bidirectional") else 1
    network = around(kind(8, 10, batch_first=True, **SHAPES[shape]), last_step, 10 * ways)
    found = trace(network, STEPS)
    assert [group.name for group in found.cuttable] == ["a", "r"]
    roles = {axis.tensor: axis.role for axis in found.by_name["r"].axes if axis.dim == 1}
    assert roles == {
        **{name: "in" for name, _ in network.named_parameters() if "weight_hh" in name},
        **{name: "in" for name, _ in network.named_parameters() if "weight_ih_l1" in name},
        "o.weight": "in",
    }
    for seed in range(3):
        choice = random_choice(found, seed, share=0.5)
        plan = found.plan(choice)
        certificate = certify(network, found, plan, train="dropout" not in SHAPES[shape])
        assert certificate.passed
        assert certificate.eval_difference < 1e-5  # in float32 as well: by another library's layer
        assert found.macs(choice) == count_macs(cut(network, plan), STEPS[:1]).macs


def test_what_two_layers_both_ways_of_an_lstm_cost_by_hand() -> None:
    lstm = nn.LSTM(8, 5, num_layers=2, batch_first=True, bidirectional=True)
    network = around(lstm, lambda n, x: n.o(n.r(n.a(x))[0]), 10)
    found = trace(network, images(2, 4, 6))
    # 4 steps: 6 to 5 features; 2 directions of 4 gates of 3 units over 5 + 3, then over 6 + 3; 6 to 3.
    keep = {"a": np.arange(8) % 3 > 0, "r": np.arange(5) < 3}
    assert found.macs(keep) == 4 * (6 * 5 + 2 * 12 * (5 + 3) + 2 * 12 * (6 + 3) + 6 * 3)
    assert certify(network, found, found.plan(keep)).passed


@pytest.mark.parametrize("kind", CELLS)
def test_cells_know_their_state_after_a_cut(kind: Callable[[int, int], nn.Module]) -> None:
    def wiring(n: Any, x: Tensor) -> Tensor:
        state = n.i(x)
        made = (state, state) if isinstance(n.c, nn.LSTMCell) else state
        for _ in range(2):  # what it makes is what it reads: of one size
            made = n.c(x, made)
        out: Tensor = n.o(made[0] if isinstance(made, tuple) else made)
        return out

    network = Wired(wiring, i=nn.Linear(6, 8), c=kind(6, 8), o=nn.Linear(8, 3)).eval()
    found = trace(network, FLAT)
    assert "c" in {axis.tensor[0] for group in found.cuttable for axis in group.axes}
    for group in found.cuttable:
        small = cut(network, found.plan({group.name: np.arange(group.units) < group.units // 2}))
        cell: Any = small.get_submodule("c")
        assert cell.hidden_size == cell.weight_hh.shape[1]
        assert cell(FLAT) is not None  # with the state that it makes itself


def own_states(n: Any, x: Tensor) -> Any:
    state = torch.zeros(2, x.shape[0], n.hidden)
    return n.o(n.r(n.a(x), (state, state.clone()))[0][:, -1])


def own_loop(n: Any, x: Tensor) -> Any:
    state = x.new_zeros(x.shape[0], n.hidden)
    for step in n.a(x).unbind(1):
        state = n.r(step, state)
    return n.o(state)


def handed_on(n: Any, x: Tensor) -> Any:
    features = n.a(x)
    _, states = n.r(features)
    return n.o(n.decoder(features, states)[0])


def learned(n: Any, x: Tensor) -> Any:
    state = n.state.expand(1, x.shape[0], -1).contiguous()
    return n.o(n.r(n.a(x), (state, state))[0][:, -1])


def packed(n: Any, x: Tensor) -> Any:
    lengths = torch.tensor([5, 3][: x.shape[0]])
    rows = pack_padded_sequence(n.a(x), lengths, batch_first=True, enforce_sorted=False)
    _, (states, _) = n.r(rows)
    return n.o(torch.cat([states[-2], states[-1]], dim=1))


def packed_and_padded(n: Any, x: Tensor) -> Any:
    rows = pack_padded_sequence(n.a(x), torch.tensor([5, 3][: x.shape[0]]), batch_first=True)
    outputs, _ = pad_packed_sequence(n.r(rows)[0], batch_first=True)
    return n.o(outputs.amax(dim=1))


def lstm(**options: Any) -> nn.LSTM:
    return nn.LSTM(8, 10, batch_first=True, **options)


CUT: dict[str, Callable[[], nn.Module]] = {
    "zeros of the network's own": lambda: around(lstm(num_layers=2), own_states, hidden=10),
    "zeros for a cell": lambda: around(nn.GRUCell(8, 10), own_loop, hidden=10),
    "states of another layer": lambda: around(lstm(), handed_on, decoder=lstm()),
    "learned states": lambda: around(lstm(), learned, state=nn.Parameter(torch.randn(1, 1, 10))),
    "packed samples": lambda: around(lstm(bidirectional=True), packed, 20),
    "packed and padded samples": lambda: around(lstm(), packed_and_padded),
    "float64": lambda: around(lstm(), last_step).double(),
}


@pytest.mark.parametrize("name", CUT)
def test_units_follow_the_states_they_begin_with(name: str) -> None:
    network: Any = CUT[name]()
    x = STEPS.to(network.o.weight.dtype)
    found = trace(network, x)
    keep = {"r": np.arange(10) % 3 > 0}  # 6 of 10
    plan = found.plan(keep)
    assert certify(network, found, plan).passed
    small: Any = cut(network, plan)
    assert (small.r.hidden_size, getattr(small, "hidden", 6)) == (6, 6)
    assert found.macs(keep) == count_macs(small, x[:1]).macs


WHOLE: dict[str, Wiring] = {
    "zeros of a size in code": lambda n, x: n.o(n.r(n.a(x), (torch.zeros(1, len(x), 10),) * 2)[0]),
    "random states": lambda n, x: n.o(n.r(n.a(x), (torch.rand(1, len(x), n.hidden),) * 2)[0]),
    "units in a formula": lambda n, x: n.o(n.r(n.a(x))[0] / n.r.hidden_size),
    "steps in a layer": lambda n, x: n.o(n.r(n.a(x).transpose(1, 2).reshape(len(x), 5, 8))[0]),
}


@pytest.mark.parametrize("name", WHOLE)
def test_units_stay_where_their_states_cannot_follow(name: str) -> None:
    network = around(lstm(), WHOLE[name], hidden=10)
    if name == "steps in a layer":
        assert refusals(network)["a"]
        return
    assert refusals(network)["r"]
    assert not refusals(network)["a"]


def test_projected_states_are_cut_and_the_wider_units_stay() -> None:
    """Torch tells the two apart by their sizes: they must not become equal."""
    network = around(lstm(proj_size=4), last_step, 4)
    told = refusals(network)
    assert told["r"]
    assert not told["r#2"]
    found = trace(network, STEPS)
    small: Any = cut(network, found.plan({"r#2": all_but(4, 1)}))
    assert (small.r.hidden_size, small.r.proj_size) == (10, 3)
    assert small(STEPS).shape == (2, 3)


def test_the_lstm_of_the_zoo_is_cut_in_all_its_widths() -> None:
    network = build("bilstm", vocab_size=50, num_classes=2, embedding=8, hidden=12).eval()
    ids = torch.randint(5, 50, (2, 7))
    ids[1, 4:] = 0
    inputs = {"input_ids": ids, "attention_mask": (ids > 0).long()}
    found = trace(network, inputs)
    sizes = {group.name: group.units for group in found.cuttable}
    assert sizes == {
        "embedding": 8,
        "layers.0.ahead": 12,
        "layers.0.back": 12,
    }
    assert certify(network, found, found.plan(random_choice(found, 0, share=0.5))).passed
