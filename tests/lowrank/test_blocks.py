"""Blocks: exact at full rank, nearer with every rank, sized by energy, weighed by inputs."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from prunus.errors import InputError
from prunus.graph import cut, plan_of
from prunus.lowrank.blocks import Block, EmbeddingBlock, LinearBlock
from prunus.lowrank.layers import Layer, select_layers
from prunus.lowrank.spectrum import DAMPING, Spectrum, root_of, spectrum
from prunus.lowrank.tensors import times
from prunus.lowrank.tucker_blocks import ConvBlock, StackBlock, TuckerBlock
from prunus.meter import count_macs

pytest.importorskip("tensorly")

Made = tuple[nn.Module, Block, Tensor]
seeds = st.integers(0, 2**32 - 1)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def filled(network: nn.Module, seed: int) -> nn.Module:
    with torch.no_grad():
        for at, parameter in enumerate(network.parameters()):
            parameter.copy_(random(*parameter.shape, seed=seed + at))
    return network.eval()


def moment_of(x: Tensor) -> Tensor:
    return x.T @ x / len(x)


def made(kind: str, seed: int = 0, dtype: torch.dtype = torch.float64, seen: bool = False) -> Made:
    """A network of one kind of layer, the block of it, inputs; ``seen``: weighed by moments."""
    network: nn.Sequential
    if kind == "conv":
        network, x = nn.Sequential(nn.Conv2d(5, 7, 3, stride=2, padding=1)), random(3, 5, 9, 8)
    elif kind == "embedding":
        network, x = nn.Sequential(nn.Embedding(11, 6)), torch.arange(11)[None]
    elif kind == "stack":
        network, x = nn.Sequential(*(nn.Linear(6, 6) for _ in range(3))), random(9, 6)
    else:
        sides = {"wide": (8, 5), "tall": (5, 8), "square": (6, 6)}[kind]
        network, x = nn.Sequential(nn.Linear(*sides)), random(9, sides[0])
    filled(network.to(dtype), seed)
    layers = tuple(Layer(str(k), m, 1, 1) for k, m in enumerate(network))
    size = int(layers[0].weight.shape[1])
    skewed = [random(40, size, seed=seed + k) * torch.arange(1.0, size + 1) for k in range(3)]
    moments = {la.path: moment_of(skewed[k]) for k, la in enumerate(layers)} if seen else {}
    if kind == "embedding":
        moments = {"0": torch.arange(11.0, dtype=torch.float64) / 55} if seen else {}
    types: dict[str, Callable[..., Block]] = {
        "conv": ConvBlock,
        "embedding": EmbeddingBlock,
        "stack": StackBlock,
    }
    return network, types.get(kind, LinearBlock)(layers, moments), x


def rebuilt(network: nn.Module, block: Block, ranks: tuple[int, ...]) -> nn.Module:
    return cut(network, plan_of(network, block.edits(ranks)), block.tensors(ranks)).eval()


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).detach().abs().max() / wanted.detach().abs().max())


def products(block: Block, ranks: tuple[int, ...]) -> list[Tensor]:
    """The matrices that the factors of a linear block stand for."""
    tensors, edits = block.tensors(ranks), block.edits(ranks)
    if len(ranks) == 1:
        return [tensors[f"{e.module}.1.weight"] @ tensors[f"{e.module}.0.weight"] for e in edits]
    first, last = tensors["0.0.weight"], tensors["0.2.weight"]
    return [last @ tensors[f"{e.module}.1.weight"] @ first for e in edits]


KINDS = ["wide", "tall", "square", "conv", "embedding", "stack"]


@pytest.mark.parametrize("seen", [False, True], ids=["plain", "seen"])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("kind", KINDS)
def test_full_rank_is_exact(kind: str, dtype: torch.dtype, limit: float, seen: bool) -> None:
    network, block, x = made(kind, 3, dtype, seen)
    given = x.to(dtype) if x.is_floating_point() else x
    assert relative(rebuilt(network, block, block.full)(given), network(given)) < limit


def test_full_ranks_are_those_of_the_unfoldings() -> None:
    assert made("wide")[1].full == made("tall")[1].full == (5,)
    assert made("embedding")[1].full == (6,)
    assert made("conv")[1].full == (5, 7)
    assert made("stack")[1].full == (6, 6)
    # One input channel and 3 x 3 positions: at most 9 outputs are independent of each other.
    layer = Layer("0", nn.Conv2d(1, 20, 3), 1, 1)
    assert ConvBlock((layer,), {}).full == (1, 9)


@given(seeds, st.sampled_from(["wide", "tall", "square"]), st.booleans())
def test_the_error_of_a_matrix_falls_with_every_rank_and_is_the_tail(
    seed: int, kind: str, seen: bool
) -> None:
    _, block, _ = made(kind, seed, seen=seen)
    weight = block.layers[0].weight
    root = root_of(block.moments["0"]) if seen else torch.eye(weight.shape[1]).double()
    values = torch.linalg.svdvals(weight @ root).square()
    for rank in range(1, block.full[0] + 1):
        (product,) = products(block, (rank,))
        lost = float(((weight - product) @ root).square().sum())
        # Eckart and Young: no matrix of this rank is nearer, as the inputs weigh it.
        assert lost == pytest.approx(
            float(values[rank:].sum()), rel=1e-6, abs=1e-9 * float(values.sum())
        )


@given(seeds, st.sampled_from(["conv", "stack"]))
def test_a_tucker_decomposition_loses_less_with_every_rank(seed: int, kind: str) -> None:
    _, block, _ = made(kind, seed)
    weights = torch.stack([la.weight for la in block.layers]).flatten()
    errors = []
    for rank in range(1, min(block.full) + 1):
        tensors = block.tensors((rank, rank))
        if kind == "conv":
            first, core, last = (tensors[f"0.{k}.weight"] for k in range(3))
            dense = [torch.einsum("sr,rqhw,qi->sihw", last[..., 0, 0], core, first[..., 0, 0])]
        else:
            dense = products(block, (rank, rank))
        errors.append(float((torch.stack(dense).flatten() - weights).square().sum()))
    # Iterations stop at a tolerance: a rank more may be that much worse, never more.
    slack = 1e-3 * float(weights.square().sum())
    assert all(later <= before + slack for before, later in pairwise(errors))
    assert errors[0] < float(weights.square().sum())


@pytest.mark.parametrize("kind", ["conv", "stack"])
def test_a_tensor_of_low_multilinear_rank_is_found(kind: str) -> None:
    network, block, x = made(kind, 5)
    with torch.no_grad():
        into, out = random(2, 6 if kind == "stack" else 5), random(6 if kind == "stack" else 7, 3)
        for at, layer in enumerate(block.layers):
            core = random(3, 2, *layer.weight.shape[2:], seed=at)
            layer.weight.copy_(torch.einsum("or,rq...,qi->oi...", out, core, into))
    assert relative(rebuilt(network, block, (2, 3))(x), network(x)) < 1e-10
    assert block.at_energy(1.0) == (2, 3)


def test_a_matrix_of_rank_one_by_hand() -> None:
    layer = nn.Linear(2, 3, bias=False).double()
    with torch.no_grad():  # of u = (1, 2, 2) / 3 and v = (3, 4) / 5 with the singular value 15
        layer.weight.copy_(torch.tensor([[3.0, 4.0], [6.0, 8.0], [6.0, 8.0]]))
    block = LinearBlock((Layer("0", layer, 1, 1),), {})
    tensors = block.tensors((1,))
    root = 15**0.5  # both factors carry it
    first, last = tensors["0.0.weight"], tensors["0.1.weight"]
    sign = torch.sign(first[0, 0])
    torch.testing.assert_close(sign * first, root * torch.tensor([[0.6, 0.8]]).double())
    wanted = root * torch.tensor([[1.0], [2.0], [2.0]]).double() / 3
    torch.testing.assert_close(sign * last, wanted)
    assert block.at_energy(1.0) == (1,)


@pytest.mark.parametrize(
    ("energy", "rank"),
    [(0.1, 1), (0.639, 1), (0.65, 2), (0.899, 2), (0.97, 3), (0.979, 3), (0.981, 4), (1.0, 4)],
)
def test_the_energy_rule_by_hand(energy: float, rank: int) -> None:
    """Squared singular values 64, 26, 8, 2 add up to 64, 90, 98, 100."""
    layer = nn.Linear(4, 4, bias=False).double()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([26.0, 2.0, 64.0, 8.0]).sqrt().diag())
    assert LinearBlock((Layer("0", layer, 1, 1),), {}).at_energy(energy) == (rank,)


def test_modes_that_lose_different_parts_keep_together_what_is_asked_for() -> None:
    """Squares 70, 15, 15 in one layer each: in both modes 85 lie along the first direction.

    Yet one direction in both keeps 70 alone.
    """
    _, block, _ = made("stack")
    with torch.no_grad():
        for layer, (row, column), square in zip(
            block.layers, ((0, 0), (1, 0), (0, 1)), (70.0, 15.0, 15.0), strict=True
        ):
            layer.weight.zero_()
            layer.weight[row, column] = square**0.5
    assert block.at_energy(0.8) == (1, 1)
    assert block.keeping(0.8) == (2, 2)
    assert block.keeping(0.65) == (1, 1)
    matrix = made("wide")[1]
    assert matrix.keeping(0.8) == matrix.at_energy(0.8)


@given(seeds, st.sampled_from(["conv", "stack"]), st.booleans(), st.floats(0.05, 0.99))
def test_a_tucker_decomposition_keeps_the_energy_that_is_asked_for(
    seed: int, kind: str, seen: bool, energy: float
) -> None:
    """Of the weights as the inputs weigh them."""
    _, block, _ = made(kind, seed, seen=seen)
    assert isinstance(block, TuckerBlock)
    ranks = block.keeping(energy)
    core, first, last = block.factors(ranks)
    into, out = block.modes
    rebuilt = times(times(core, first.T, into), last, out)
    total, lost = block.tensor, block.tensor - rebuilt
    if block._root is not None:
        total, lost = (times(t, block._root.T, into) for t in (total, lost))
    kept = 1 - float(lost.square().sum() / total.square().sum())
    assert kept >= energy - 1e-6


def test_the_least_rank_of_no_energy_is_one() -> None:
    nothing = Spectrum(torch.zeros(3), torch.eye(3))
    assert [nothing.rank_of(e) for e in (0.1, 1.0)] == [1, 1]
    block = LinearBlock((Layer("0", filled(nn.Linear(3, 3), 0), 1, 1),), {})
    with torch.no_grad():
        block.layers[0].weight.zero_()
    assert bool((products(block, (2,))[0] == 0).all())


@given(seeds, st.integers(1, 5), st.floats(0.05, 1))
def test_directions_are_orthonormal_and_carry_the_energy(
    seed: int, rank: int, energy: float
) -> None:
    a = random(6, rank, seed=seed)
    found = spectrum(a @ a.T, 6)
    torch.testing.assert_close(found.basis.T @ found.basis, torch.eye(6).double())
    values = torch.linalg.svdvals(a).square()
    torch.testing.assert_close(found.energies[:rank], values, rtol=1e-6, atol=1e-9)
    least = found.rank_of(energy)
    assert least <= rank
    assert float(values[:least].sum()) >= energy * float(values.sum()) * (1 - 1e-9)
    assert least == 1 or float(values[: least - 1].sum()) < energy * float(values.sum())


@given(seeds, st.integers(1, 4), st.sampled_from(["wide", "tall"]))
def test_a_matrix_weighed_by_inputs_is_nearer_on_them(seed: int, rank: int, kind: str) -> None:
    """The error on these inputs, with the damping, is the least that a matrix of this rank has."""
    _, plain, _ = made(kind, seed)
    weight, size = plain.layers[0].weight, int(plain.layers[0].weight.shape[1])
    x = random(60, size, seed=seed) * 3.0 ** -torch.arange(size).double()
    moment = moment_of(x)
    seen = LinearBlock(plain.layers, {"0": moment})
    damping = DAMPING * float(moment.diagonal().mean())
    error = {}
    for name, block in (("plain", plain), ("seen", seen)):
        (product,) = products(block, (rank,))
        gone = weight - product
        on_inputs = float((x @ gone.T).square().sum() / len(x))
        error[name] = on_inputs + damping * float(gone.square().sum())
    assert error["seen"] <= error["plain"] * (1 + 1e-9)
    # Eckart and Young: what is left of W L is the tail of its singular values.
    tail = torch.linalg.svdvals(weight @ root_of(moment)).square()[rank:].sum()
    assert error["seen"] == pytest.approx(float(tail), rel=1e-6)


@given(seeds, st.integers(1, 4))
def test_cores_of_a_stack_are_fitted_to_the_inputs_of_their_own_layer(seed: int, rank: int) -> None:
    """A least-squares core cannot be bettered by a step in any direction."""
    _, block, _ = made("stack", seed, seen=True)
    tensors = block.tensors((rank, rank))
    first, last = tensors["0.0.weight"], tensors["0.2.weight"]
    for layer in block.layers:
        root = root_of(block.moments[layer.path])
        core = tensors[f"{layer.path}.1.weight"]
        # Normal equations: what is left is orthogonal to all that the outer factors can say.
        left = (layer.weight - last @ core @ first) @ root
        scale = float(layer.weight.abs().max() * root.abs().max() ** 2)
        assert float((last.T @ left @ (first @ root).T).abs().max()) < 1e-8 * scale


def test_frequent_pieces_are_nearer_in_a_table_that_is_weighed() -> None:
    _, plain, _ = made("embedding", 4)
    shares = torch.tensor([0.5, 0.5] + [0.0] * 9, dtype=torch.float64)
    seen = EmbeddingBlock(plain.layers, {"0": shares})
    error = {}
    for name, block in (("plain", plain), ("seen", seen)):
        tensors = block.tensors((2,))
        gone = plain.layers[0].weight - tensors["0.0.weight"] @ tensors["0.1.weight"].T
        error[name] = float(gone[:2].square().sum())
    assert error["seen"] < error["plain"]


def test_pieces_that_were_never_seen_count_as_often_as_if_all_were_alike() -> None:
    """Rows (1, 0) and (0, 2), the first alone seen: shares 1 + 1/2 and 1/2 make 1.5 and 0.5 * 4."""
    table = nn.Embedding(2, 2, _weight=torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
    block = EmbeddingBlock((Layer("0", table, 1, 1),), {"0": torch.tensor([1.0, 0.0])})
    torch.testing.assert_close(block.spectrum.energies, torch.tensor([2.0, 1.5]).double())


def test_damping_keeps_directions_that_were_never_seen() -> None:
    """C = diag(4, 0): 1 % of the mean 2 is added, so that L = diag(sqrt 4.02, sqrt 0.02)."""
    root = root_of(torch.tensor([[4.0, 0.0], [0.0, 0.0]]))
    torch.testing.assert_close(root, torch.tensor([4.02, 0.02]).double().sqrt().diag())
    torch.testing.assert_close(root_of(torch.zeros(2, 2)), torch.eye(2).double())


def test_activations_that_are_not_finite_are_refused() -> None:
    with pytest.raises(InputError, match=r"calibration: activations are not finite.*calibration=0"):
        root_of(torch.tensor([[float("nan"), 0.0], [0.0, 1.0]]))


SHAPES: dict[str, tuple[tuple[int, ...], int, int]] = {
    # ranks, parameters with biases, multiplications at one position a layer
    "wide": ((2,), 2 * (8 + 5) + 5, 2 * (8 + 5)),
    "embedding": ((2,), 2 * (11 + 6), 2 * 6),
    "conv": ((2, 3), 2 * 5 + 9 * 6 + 7 * 3 + 7, 2 * 5 + 9 * 6 + 7 * 3),
    "stack": ((2, 3), 2 * 6 + 3 * 6 + 6 * 3 + 18, 3 * (2 * 6 + 6 + 6 * 3)),
}


@pytest.mark.parametrize("kind", list(SHAPES))
def test_parameters_and_macs_by_formula(kind: str) -> None:
    ranks, params, macs = SHAPES[kind]
    network, block, _ = made(kind)
    assert block.cost(ranks, "params") == params
    assert block.cost(ranks, "macs") == macs
    smaller = rebuilt(network, block, ranks)
    shapes = {n: tuple(p.shape) for n, p in smaller.named_parameters()}
    assert shapes == dict(block.shapes(ranks))
    assert set(block.tensors(ranks)) == {n for n in shapes if n.endswith("weight")}


def test_macs_of_a_convolution_with_a_stride_are_those_that_are_counted() -> None:
    # 9 x 8 pixels come in, 5 x 4 go out: the first part runs on the former, the others on the latter.
    network, _, x = made("conv")
    (layer,) = select_layers(network, x, (nn.Conv2d,), ignore=(), classifier=True).layers
    assert (layer.inputs, layer.outputs) == (9 * 8, 5 * 4)
    block = ConvBlock((layer,), {})
    expected = 9 * 8 * (2 * 5) + 5 * 4 * (9 * 6 + 7 * 3)
    assert block.macs((2, 3)) == expected
    assert count_macs(rebuilt(network, block, (2, 3)), x[:1]).macs == expected
    assert block.dense_macs == count_macs(network, x[:1]).macs == 5 * 4 * 7 * 5 * 9


@pytest.mark.parametrize("kind", KINDS)
def test_a_share_of_the_rank_is_rounded_and_at_least_one(kind: str) -> None:
    _, block, _ = made(kind)
    assert block.at_fraction(1.0) == block.full
    assert set(block.at_fraction(0.01)) == {1}
    half: dict[str, Any] = {"wide": (3,), "square": (3,), "conv": (3, 4), "stack": (3, 3)}
    assert block.at_fraction(0.5) == half.get(kind, (3,))
