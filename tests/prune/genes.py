"""Small networks, their genes counted by hand, and chromosomes of them."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from prunus.graph import Trace, trace
from prunus.plan import BoolArray, ZeroConnections
from prunus.prune.chromosome import Chromosome, Encoding, Layer
from prunus.zoo import PadShortcut
from tests.helpers import Wired, chain, enliven_, images

SEEDS = st.integers(0, 10**6)
IMAGES = images(4, 3, 8, 8)
Genes = list[tuple[str, int, dict[str, tuple[int, int]]]]


def residual() -> nn.Module:
    def wiring(n: Any, x: Tensor) -> Tensor:
        stem = n.a(x)
        out: Tensor = n.fc((stem + n.c(n.b(stem.relu()).relu())).relu().mean((2, 3)))
        return out

    a, b, c = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(6, 4, 1)
    return Wired(wiring, a=a, b=b, c=c, fc=nn.Linear(4, 2))


def flattened() -> nn.Module:
    """Three channels of 2x2 become twelve features; a second linear layer follows."""
    convolution = nn.Conv2d(3, 3, 7)
    return nn.Sequential(convolution, nn.Flatten(), nn.Linear(12, 4), nn.ReLU(), nn.Linear(4, 2))


def depthwise() -> nn.Module:
    layers = nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 5, 1)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 2))


def grouped() -> nn.Module:
    """Two terms of a sum: the kernels of one have genes, the other's are those of a grouped convolution.

    Its two groups of channels can only be cut alike, and so all of a unit are two.
    """

    def wiring(n: Any, x: Tensor) -> Tensor:
        stem = n.stem(x).relu()
        out: Tensor = n.fc((n.a(stem) + n.g(stem)).relu().mean((2, 3)))
        return out

    a, g = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding=1, groups=2)
    return Wired(wiring, stem=nn.Conv2d(3, 4, 1), a=a, g=g, fc=nn.Linear(4, 2))


def shortcut() -> nn.Module:
    """Channels 1 and 2 of the second layer are of the first one's group, 0 and 3 its own."""

    def wiring(n: Any, x: Tensor) -> Tensor:
        out: Tensor = n.c((n.short(n.a(x)) + n.b(x)).relu()).mean((2, 3))
        return out

    a, b, c = nn.Conv2d(3, 2, 1), nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.Conv2d(4, 2, 1)
    return Wired(wiring, a=a, short=PadShortcut(2, 4), b=b, c=c)


def transposed() -> nn.Module:
    layers = nn.Conv2d(3, 4, 1), nn.ReLU(), nn.ConvTranspose2d(4, 5, 2)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 2))


# Counted by hand: a bit per unit that can be cut, one per pair of output and input of a weight
# (input and output, where a weight is transposed), in the order of the forward pass.
CASES: dict[str, tuple[Callable[[], nn.Module], Genes]] = {
    "chain": (
        chain,
        [
            ("0", 4, {"0.weight": (4, 3)}),
            ("3", 5, {"3.weight": (5, 4)}),
            ("6", 0, {"6.weight": (2, 5)}),
        ],
    ),
    "residual": (
        residual,
        [
            ("a", 4, {"a.weight": (4, 3), "c.weight": (4, 6)}),
            ("b", 6, {"b.weight": (6, 4)}),
            ("fc", 0, {"fc.weight": (2, 4)}),
        ],
    ),
    "flattened": (
        flattened,
        [
            ("0", 3, {"0.weight": (3, 3)}),
            ("2", 4, {"2.weight": (4, 12)}),
            ("4", 0, {"4.weight": (2, 4)}),
        ],
    ),
    "depthwise": (
        depthwise,
        [
            ("0", 4, {"0.weight": (4, 3)}),
            ("3", 5, {"3.weight": (5, 4)}),
            ("6", 0, {"6.weight": (2, 5)}),
        ],
    ),
    "grouped": (
        grouped,
        [
            ("stem", 2, {"stem.weight": (4, 3)}),
            ("a", 2, {"a.weight": (4, 4)}),
            ("fc", 0, {"fc.weight": (2, 4)}),
        ],
    ),
    "shortcut": (
        shortcut,
        [
            ("a", 2, {"a.weight": (2, 3), "b.weight": (4, 3)}),
            ("b", 2, {}),
            ("c", 0, {"c.weight": (2, 4)}),
        ],
    ),
    "transposed": (
        transposed,
        [
            ("0", 4, {"0.weight": (4, 3)}),
            ("2", 5, {"2.weight": (4, 5)}),
            ("5", 0, {"5.weight": (2, 5)}),
        ],
    ),
}
every_network = pytest.mark.parametrize("case", CASES)


@cache
def subject(case: str, step: int = 1) -> tuple[nn.Module, Trace, Encoding]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = enliven_(CASES[case][0]())
    found = trace(network, IMAGES, min_units=step, round_to=step)
    return network, found, Encoding(network, found)


def with_genes(
    chromosome: Chromosome, locus: int, neurons: BoolArray | None = None, **connections: BoolArray
) -> Chromosome:
    """Other genes at one locus; weights are named without ``.weight``."""
    layer = chromosome[locus]
    named = {f"{name.strip('_')}.weight": genes for name, genes in connections.items()}
    made = Layer(
        layer.neurons if neurons is None else neurons, {**dict(layer.connections), **named}
    )
    return (*chromosome[:locus], made, *chromosome[locus + 1 :])


def drawn(encoding: Encoding, seed: int, share: float = 0.6, step: int = 1) -> Chromosome:
    """Random genes; at least ``step`` neurons of a layer, and a multiple of it."""
    rng = np.random.default_rng(seed)
    made = []
    for layer in encoding.full():
        count = (
            step * int(rng.integers(1, layer.neurons.size // step + 1)) if len(layer.neurons) else 0
        )
        neurons = rng.permutation(layer.neurons.size) < count
        connections = {t: rng.random(g.shape) < share for t, g in layer.connections.items()}
        made.append(Layer(neurons, connections))
    return tuple(made)


def zeroed(edits: Sequence[ZeroConnections]) -> dict[str, BoolArray]:
    """Weight to which of its connections are listed."""
    return {e.tensor: ~e.keep.unpack().reshape(e.shape) for e in edits}
