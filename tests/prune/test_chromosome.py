"""Genes of neurons and connections: which there are, and which network they make."""

from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from prunus.graph import Trace, certify, cut, hold_connections_, trace
from prunus.meter import measure_cost
from prunus.plan import Bits, BoolArray, ZeroConnections
from prunus.prune.chromosome import Encoding, dropped_share
from tests.helpers import all_but, chain, enliven_, images
from tests.prune.genes import (
    CASES,
    IMAGES,
    SEEDS,
    drawn,
    every_network,
    subject,
    with_genes,
    zeroed,
)

# -- what is encoded ------------------------------------------------------------------------------


@every_network
def test_genes_are_those_counted_by_hand(case: str) -> None:
    _, _, encoding = subject(case)
    found = [
        (name, layer.neurons.size, {t: g.shape for t, g in layer.connections.items()})
        for name, layer in zip(encoding.names, encoding.full(), strict=True)
    ]
    assert found == CASES[case][1]
    assert len(encoding) == 3


@every_network
def test_all_genes_set_are_the_whole_network(case: str) -> None:
    _, found, encoding = subject(case)
    candidate = encoding.candidate(encoding.full())
    assert candidate.connections == ()
    assert {n: int(k.sum()) for n, k in candidate.choice.items()} == {
        g.name: g.units for g in found.cuttable
    }
    assert found.plan(candidate.choice, candidate.connections).is_empty
    assert dropped_share(encoding.full()) == 0


def test_share_of_dropped_connections_counts_all_weights() -> None:
    _, _, encoding = subject("chain")
    few = np.ones((4, 3), dtype=bool)
    few[0] = False
    chromosome = with_genes(encoding.full(), 0, all_but(4, 0), _0=few)
    assert dropped_share(chromosome) == pytest.approx(3 / (12 + 20 + 10))


def test_other_neurons_leave_all_other_genes() -> None:
    _, _, encoding = subject("chain")
    before = drawn(encoding, 3)
    after = encoding.with_neurons(before, {"3": all_but(5, 2), "6": np.zeros(2, dtype=bool)})
    assert [layer.neurons.tolist() for layer in after] == [
        before[0].neurons.tolist(),
        [True, True, False, True, True],
        [],  # an output of the network cannot be cut
    ]
    assert [x.connections for x in after] == [x.connections for x in before]


# -- which neurons are active ---------------------------------------------------------------------


def test_neuron_without_connections_is_inactive() -> None:
    _, _, encoding = subject("chain")
    genes = np.ones((5, 4), dtype=bool)
    genes[2] = False
    candidate = encoding.candidate(with_genes(encoding.full(), 1, _3=genes))
    assert candidate.choice["3"].tolist() == [True, True, False, True, True]
    assert candidate.choice["0"].all()
    assert candidate.connections == ()  # all that were dropped led into it


def test_neuron_led_to_by_inactive_ones_alone_is_inactive() -> None:
    """Unit 1 of the first layer goes for want of kernels, unit 2 of the second for want of it."""
    _, _, encoding = subject("chain")
    first, second = np.ones((4, 3), dtype=bool), np.ones((5, 4), dtype=bool)
    first[1] = False
    second[2] = [False, True, False, False]
    chromosome = with_genes(with_genes(encoding.full(), 0, _0=first), 1, _3=second)
    candidate = encoding.candidate(chromosome)
    assert candidate.choice["0"].tolist() == [True, False, True, True]
    assert candidate.choice["3"].tolist() == [True, True, False, True, True]


def test_one_kernel_is_enough_to_be_active() -> None:
    _, _, encoding = subject("chain")
    genes = np.ones((5, 4), dtype=bool)
    genes[2] = [False, True, False, False]
    candidate = encoding.candidate(with_genes(encoding.full(), 1, _3=genes))
    assert candidate.choice["3"].all()
    assert zeroed(candidate.connections)["3.weight"].tolist() == (~genes).tolist()


def test_unit_of_a_sum_is_active_while_either_term_leads_into_it() -> None:
    _, _, encoding = subject("residual")
    stem, inner = np.ones((4, 3), dtype=bool), np.ones((4, 6), dtype=bool)
    stem[0] = False
    alone = encoding.candidate(with_genes(encoding.full(), 0, a=stem))
    assert alone.choice["a"].all()
    inner[0] = False
    both = encoding.candidate(with_genes(encoding.full(), 0, a=stem, c=inner))
    assert both.choice["a"].tolist() == [False, True, True, True]
    assert both.connections == ()


def test_a_unit_that_a_layer_without_genes_leads_into_is_active() -> None:
    _, _, encoding = subject("grouped")
    genes = np.ones((4, 4), dtype=bool)
    genes[[0, 2]] = False  # unit 0 has channel 0 of either group
    candidate = encoding.candidate(with_genes(encoding.full(), 1, a=genes))
    assert all(keep.all() for keep in candidate.choice.values())
    assert zeroed(candidate.connections)["a.weight"].tolist() == (~genes).tolist()


class Told(nn.Module):
    """Two terms, the first with genes; what lies between makes no unit, and keeps none."""

    def __init__(self, second: nn.Module | None, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.a, self.second = nn.Linear(6, 4), second
        self.norm = norm or nn.Identity()
        self.scale, self.shift = nn.Parameter(torch.rand(4)), nn.Parameter(torch.rand(1, 4))
        self.fc = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        told = self.shift + self.scale * self.a(nn.functional.one_hot(x % 6, 6).float())
        if self.second is not None:
            told = told + self.second(x)
        out: torch.Tensor = self.fc(self.norm(told).relu().mean(1))
        return out


class Own(nn.Module):
    """A linear layer of a user's own."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.weight = nn.Embedding(9, 3), nn.Parameter(torch.randn(4, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(self.table(x), self.weight)


@pytest.mark.parametrize(
    ("second", "norm", "active"),
    [
        (nn.Embedding(9, 4), None, True),
        (Own(), None, True),
        (None, None, False),
        (None, nn.LayerNorm((5, 4)), False),
    ],
    ids=["embedding", "own layer", "bias", "norm over positions"],
)
def test_what_gives_a_unit_only_its_own_does_not_keep_it(
    second: nn.Module | None, norm: nn.Module | None, active: bool
) -> None:
    network = enliven_(Told(second, norm)).eval()
    found = trace(network, torch.arange(10).reshape(2, 5) % 9)
    encoding = Encoding(network, found)
    genes = np.ones((4, 6), dtype=bool)
    genes[0] = False
    locus = next(k for k, layer in enumerate(encoding.full()) if "a.weight" in layer.connections)
    candidate = encoding.candidate(with_genes(encoding.full(), locus, a=genes))
    (group,) = (g for g in found.cuttable if any(x.tensor == "a.weight" for x in g.axes))
    assert candidate.choice[group.name].tolist() == [active, True, True, True]


def test_unit_of_a_sum_led_to_by_a_unit_without_connections_is_inactive() -> None:
    _, _, encoding = subject("residual")
    stem, inner, middle = (np.ones(s, dtype=bool) for s in ((4, 3), (4, 6), (6, 4)))
    stem[0], inner[0, 1:], middle[0] = False, False, False
    chromosome = with_genes(with_genes(encoding.full(), 0, a=stem, c=inner), 1, b=middle)
    candidate = encoding.candidate(chromosome)
    assert not candidate.choice["b"][0]
    assert not candidate.choice["a"][0]


def test_a_weight_of_two_groups_has_one_set_of_genes() -> None:
    """Drawn for each group, a kernel would stay with the square of the share."""
    _, _, encoding = subject("shortcut")
    genes = np.ones((4, 3), dtype=bool)
    genes[0], genes[1, 0] = False, False  # its own unit 0 has nothing; one kernel of unit 0 of "a"
    candidate = encoding.candidate(with_genes(encoding.full(), 0, b=genes))
    assert candidate.choice["b"].tolist() == [False, True]
    assert candidate.choice["a"].all()
    assert [edit.tensor for edit in candidate.connections] == ["b.weight"]
    assert np.argwhere(zeroed(candidate.connections)["b.weight"]).tolist() == [[1, 0]]
    everything = sum(g.size for layer in encoding.full() for g in layer.connections.values())
    assert everything == 6 + 12 + 8


def test_zeros_of_earlier_rounds_add_up() -> None:
    """20 kernels of layer 3: one is held at zero since before, and one of two genes of 0 is its own."""
    network, found, _ = subject("chain")
    stays = np.ones((5, 4), dtype=bool)
    stays[0, 0] = False
    held = ZeroConnections(
        tensor="3.weight", level="kernel", shape=stays.shape, keep=Bits.pack(stays)
    )
    small = cut(network, found.plan({}, [held]))
    encoding = Encoding(small, trace(small, IMAGES))
    whole = encoding.full()
    total = sum(genes.size for layer in whole for genes in layer.connections.values())
    assert dropped_share(whole) == 0
    assert encoding.zero_share(whole) == pytest.approx(1 / total)
    genes = np.ones((5, 4), dtype=bool)
    genes[0, 0] = genes[1, 1] = False
    made = with_genes(whole, 1, _3=genes)
    assert dropped_share(made) == pytest.approx(2 / total)
    assert encoding.zero_share(made) == pytest.approx(2 / total)


@pytest.mark.parametrize("level", ["kernel", "weight"])
def test_connections_held_from_an_earlier_round_lead_nowhere(
    level: Literal["kernel", "weight"],
) -> None:
    """Unit 2 has its last live kernel zeroed now, the others were before; a reader of unit 1 likewise."""
    network, found, _ = subject("chain")
    stays = np.ones((5, 4), dtype=bool)
    stays[2, 1:] = False  # of what leads into unit 2 of "3", the kernel of unit 0 is left
    stays[:3, 1] = False  # of what reads unit 1 of "0", units 3 and 4 are left
    shape = (5, 4) if level == "kernel" else tuple(network.get_parameter("3.weight").shape)
    mask = np.broadcast_to(stays.reshape(5, 4, *[1] * (len(shape) - 2)), shape)
    edit = ZeroConnections(tensor="3.weight", level=level, shape=shape, keep=Bits.pack(mask))
    small = cut(network, found.plan({}, [edit]))
    encoding = Encoding(small, trace(small, IMAGES))
    genes = np.ones((5, 4), dtype=bool)
    genes[2, 0], genes[3:, 1] = False, False
    candidate = encoding.candidate(with_genes(encoding.full(), 1, _3=genes))
    assert candidate.choice["3"].tolist() == [True, True, False, True, True]
    assert candidate.choice["0"].tolist() == [True, False, True, True]


def test_an_output_layer_that_is_ignored_keeps_its_connections() -> None:
    """It is refused as an output as well."""
    network = enliven_(nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 4))).eval()
    rows = images(4, 6)

    def with_genes(found: Trace) -> set[str]:
        encoding = Encoding(network, found)
        return {name for layer in encoding.full() for name in layer.connections}

    assert with_genes(trace(network, rows)) == {"0.weight", "2.weight"}
    left_out = trace(network, rows, ignore=["2"])
    assert left_out.by_name["2"].ignored
    assert with_genes(left_out) == {"0.weight"}


def test_layers_that_are_ignored_keep_all_their_connections() -> None:
    network = enliven_(chain())
    encoding = Encoding(network, trace(network, IMAGES, ignore=["3"]))
    assert [t for layer in encoding.full() for t in layer.connections] == ["0.weight", "6.weight"]


def test_channel_without_kernels_takes_its_depthwise_filter_along() -> None:
    network, found, encoding = subject("depthwise")
    genes = np.ones((4, 3), dtype=bool)
    genes[3] = False
    candidate = encoding.candidate(with_genes(encoding.full(), 0, _0=genes))
    small = cut(network, found.plan(candidate.choice, candidate.connections))
    assert small.get_parameter("2.weight").shape == (3, 1, 3, 3)
    assert small.get_parameter("3.weight").shape == (5, 3, 1, 1)


def test_transposed_convolution_has_inputs_first() -> None:
    _, _, encoding = subject("transposed")
    genes = np.ones((4, 5), dtype=bool)
    genes[:, 1] = False
    genes[0, 2] = False
    candidate = encoding.candidate(with_genes(encoding.full(), 1, _2=genes))
    assert candidate.choice["2"].tolist() == [True, False, True, True, True]
    assert np.argwhere(zeroed(candidate.connections)["2.weight"]).tolist() == [[0, 2]]


@given(SEEDS, st.floats(0.0, 0.4), st.sampled_from(["chain", "residual", "flattened"]))
def test_few_connections_leave_a_legal_network(seed: int, share: float, case: str) -> None:
    """``min_units`` and ``round_to`` hold even where hardly a neuron has a connection."""
    _, found, encoding = subject(case, 2)
    candidate = encoding.candidate(drawn(encoding, seed, share, step=2))
    found.check(candidate.choice)
    assert all(int(k.sum()) % 2 == 0 or k.all() for k in candidate.choice.values())


# -- which connections are listed -----------------------------------------------------------------


@given(SEEDS, st.sampled_from(sorted(CASES)))
def test_connections_are_listed_between_active_neurons_only(seed: int, case: str) -> None:
    """Listed are the genes that are 0 where both ends are active, and no others."""
    network, found, encoding = subject(case)
    chromosome = drawn(encoding, seed)
    candidate = encoding.candidate(chromosome)
    plan, listed = found.plan(candidate.choice), zeroed(candidate.connections)
    stays: dict[tuple[str, int], BoolArray] = {}
    for edit in plan.edits:
        for axis in edit.axes if edit.kind == "channels" else ():
            keep = axis.keep.unpack()
            stays[axis.tensor, axis.dim] = keep & stays.get((axis.tensor, axis.dim), keep)
    for layer in chromosome:
        for tensor, genes in layer.connections.items():
            ends = [stays.get((tensor, d), np.ones(genes.shape[d], dtype=bool)) for d in (0, 1)]
            expected = ~genes & np.outer(*ends)
            assert (listed.get(tensor, np.zeros_like(genes)) == expected).all(), tensor
            assert (tensor in listed) == bool(expected.any())
    kinds = dict(network.named_modules())
    for edit in candidate.connections:
        linear = isinstance(kinds[edit.tensor.removesuffix(".weight")], nn.Linear)
        assert edit.level == ("weight" if linear else "kernel")


def test_features_of_a_cut_channel_take_their_weights_along() -> None:
    _, _, encoding = subject("flattened")
    genes = np.ones((4, 12), dtype=bool)
    genes[0, [3, 4, 7, 8]] = False  # channel 1 is features 4 to 7
    chromosome = with_genes(encoding.full(), 0, all_but(3, 1))
    candidate = encoding.candidate(with_genes(chromosome, 1, _2=genes))
    assert np.argwhere(zeroed(candidate.connections)["2.weight"]).tolist() == [[0, 3], [0, 8]]


def test_channel_that_no_kernel_reads_disappears() -> None:
    _, found, encoding = subject("chain")
    genes = np.ones((5, 4), dtype=bool)
    genes[:, 1] = False
    candidate = encoding.candidate(with_genes(encoding.full(), 1, _3=genes))
    plan = found.plan(candidate.choice, candidate.connections)
    assert {n: k.tolist() for n, k in plan.channels.items()} == {"0": [True, False, True, True]}


def test_channel_that_inactive_neurons_alone_read_disappears() -> None:
    _, found, encoding = subject("chain")
    genes = np.ones((5, 4), dtype=bool)
    genes[:3, 1] = False
    chromosome = with_genes(encoding.full(), 1, all_but(5, 3, 4), _3=genes)
    candidate = encoding.candidate(chromosome)
    plan = found.plan(candidate.choice, candidate.connections)
    assert plan.channels["0"].tolist() == [True, False, True, True]


# -- the network they make ------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
@every_network
def test_what_genes_make_is_certified(case: str, seed: int) -> None:
    network, found, encoding = subject(case)
    candidate = encoding.candidate(drawn(encoding, seed, 0.7))
    assert candidate.connections
    plan = found.plan(candidate.choice, candidate.connections)
    assert certify(network, found, plan, IMAGES).passed


@given(SEEDS, st.floats(0.0, 0.8), st.sampled_from(sorted(CASES)), st.sampled_from([1, 2]))
def test_active_neurons_are_those_that_the_cut_network_has(
    seed: int, share: float, case: str, step: int
) -> None:
    """A plan takes units away that nothing reads: of a candidate there are none left."""
    _, found, encoding = subject(case, step)
    candidate = encoding.candidate(drawn(encoding, seed, share, step=step))
    active = {n: k.tolist() for n, k in candidate.choice.items() if not k.all()}
    cutting = found.cut_units(candidate.choice, candidate.connections)
    assert {n: k.tolist() for n, k in cutting.items()} == active


def hand_made() -> nn.Module:
    """Unit 0 of the first layer inactive; two kernels and one weight at zero between active ones."""
    network, found, encoding = subject("chain")
    kernels, weights = np.ones((5, 4), dtype=bool), np.ones((2, 5), dtype=bool)
    kernels[1, [0, 2]] = False
    kernels[4, 3] = False
    weights[0, 2] = False
    chromosome = with_genes(encoding.full(), 0, all_but(4, 0))
    chromosome = with_genes(with_genes(chromosome, 1, _3=kernels), 2, _6=weights)
    candidate = encoding.candidate(chromosome)
    return cut(network, found.plan(candidate.choice, candidate.connections))


def zero_positions(network: nn.Module, tensor: str) -> list[list[int]]:
    weight = network.get_parameter(tensor).detach()
    return torch.argwhere(weight.reshape(*weight.shape[:2], -1).eq(0).all(2)).tolist()


def test_zeroed_connections_are_zero_and_stay_zero_in_training() -> None:
    network = hand_made()
    # positions after the cut: inputs 1, 2, 3 are 0, 1, 2 now
    expected = {"0.weight": [], "3.weight": [[1, 1], [4, 2]], "6.weight": [[0, 2]]}
    assert {name: zero_positions(network, name) for name in expected} == expected
    hold_connections_(network)
    before = network.get_parameter("3.weight").detach().clone()
    stepper = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    network.train()
    for _ in range(3):
        stepper.zero_grad()
        (network(IMAGES) - 1).square().mean().backward()
        stepper.step()
    assert {name: zero_positions(network, name) for name in expected} == expected
    moved = network.get_parameter("3.weight").detach() != before
    assert int(moved.sum()) == 5 * 3 - 2


def test_effective_macs_leave_out_zeroed_connections_executed_ones_do_not() -> None:
    cost = measure_cost(hand_made(), IMAGES[:1])
    area = 6 * 6
    executed = area * 9 * 3 * 3 + area * 3 * 5 + 5 * 2
    assert cost.macs == executed
    assert cost.effective_macs == executed - 2 * area - 1


def test_encoding_and_candidate_leave_genes_alone() -> None:
    _, _, encoding = subject("residual")
    chromosome = drawn(encoding, 1, 0.2)
    copies = [
        replace(
            x, neurons=x.neurons.copy(), connections={t: g.copy() for t, g in x.connections.items()}
        )
        for x in chromosome
    ]
    encoding.candidate(chromosome)
    for layer, before in zip(chromosome, copies, strict=True):
        assert (layer.neurons == before.neurons).all()
        assert all((layer.connections[t] == g).all() for t, g in before.connections.items())
