"""The two encodings of paper K in one chromosome: neurons, and the connections that lead into them."""

import math
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from prunus.candidates import Candidate
from prunus.graph import Trace, held_connections
from prunus.graph.connections import NORMS, narrow_, unread_units
from prunus.plan import Bits, BoolArray, IntArray, ZeroConnections


@dataclass(frozen=True, eq=False)
class Layer:
    """The genes of one coupled group: a bit per neuron, a bit per connection that leads into one.

    Attributes:
        neurons: Whether each unit stays, ``[units]``; empty where the outputs cannot be cut.
        connections: By weight: whether each kernel (or weight of a linear layer) between two layers
            stays, ``[out, in]`` as in the weight (``[in, out]`` for a transposed convolution).
    """

    neurons: BoolArray
    connections: Mapping[str, BoolArray]


Chromosome = tuple[Layer, ...]


@dataclass(frozen=True)
class _Weight:
    """A weight with connections: which unit of which group each output and input position is.

    Outputs may be of several groups, as where padding or concatenation puts channels side by side.
    ``live`` is 0 where an earlier round holds a connection at zero: its gene then changes nothing.
    """

    tensor: str
    shape: tuple[int, int]
    out_dim: int
    outputs: tuple[tuple[str, IntArray], ...]
    readers: tuple[tuple[str, IntArray], ...]
    kernel: bool
    live: BoolArray


class Encoding:
    """Which gene of a chromosome is what of a network.

    A locus of a chromosome is a coupled group, in forward order: its units, and the weights of the
    convolutions and linear layers that produce them; a weight that produces units of several groups
    is at the first of these. Layers of one output per group of channels (depthwise) have no
    connections apart from their neurons, and layers that the user has ignored none that may go.

    Args:
        network: Read for which weights connect; not kept.
        trace: Its trace.

    Attributes:
        names: Group of every locus.
    """

    def __init__(self, network: nn.Module, trace: Trace) -> None:
        self._trace = trace
        weights = dict(_weights(network, trace))
        self._loci = [
            (group, weights.get(group.name, []))
            for group in trace.groups
            if not group.refused or group.name in weights
        ]
        self.names = tuple(group.name for group, _ in self._loci)
        led = _led_without_genes(
            network, trace, {w.tensor for mine in weights.values() for w in mine}
        )
        self._leading = [
            (group, leading, led[group.name])
            for group, _ in self._loci
            if not group.refused and (leading := self._into(group.name))
        ]

    def _into(self, group: str) -> list[tuple[_Weight, int, IntArray]]:
        """Weights that lead into a group, each with its locus and the unit of every output."""
        return [
            (weight, locus, units)
            for locus, (_, weights) in enumerate(self._loci)
            for weight in weights
            for name, units in weight.outputs
            if name == group
        ]

    def __len__(self) -> int:
        """Number of loci."""
        return len(self._loci)

    def full(self) -> Chromosome:
        """The chromosome of the whole network: every gene 1."""
        return tuple(
            Layer(
                np.ones(0 if group.refused else group.units, dtype=bool),
                {weight.tensor: np.ones(weight.shape, dtype=bool) for weight in weights},
            )
            for group, weights in self._loci
        )

    def with_neurons(self, chromosome: Chromosome, choice: Mapping[str, BoolArray]) -> Chromosome:
        """The chromosome with other neurons; groups left out stay as they are."""
        return tuple(
            Layer(
                choice.get(name, layer.neurons) if layer.neurons.size else layer.neurons,
                layer.connections,
            )
            for name, layer in zip(self.names, chromosome, strict=True)
        )

    def neurons(self, chromosome: Chromosome) -> dict[str, BoolArray]:
        """Neuron genes of the groups that can be cut, by group."""
        return {
            name: layer.neurons
            for name, layer in zip(self.names, chromosome, strict=True)
            if layer.neurons.size
        }

    def candidate(self, chromosome: Chromosome) -> Candidate:
        """What the genes make: a neuron that no connection leads into, or out of, is inactive, too.

        Connections are listed between active neurons only: those of an inactive one go with it.
        """
        keep = self.active(chromosome)
        zeroed = self._zeroed(keep, chromosome)
        return Candidate(keep, tuple(_edit(weight, stays) for weight, stays in zeroed))

    def active(self, chromosome: Chromosome) -> dict[str, BoolArray]:
        """Neurons of a candidate that its cut network has, by group."""
        keep = self.neurons(chromosome)
        while self._silence_(
            keep, chromosome
        ):  # what is inactive may have been another's last input
            pass
        return keep

    def zero_share(self, chromosome: Chromosome) -> float:
        """Share of the connections that are zero by their genes, or held there since earlier rounds."""
        pairs = list(self._connected(chromosome))
        total = sum(genes.size for _, genes in pairs)
        alive = sum(int((genes & weight.live).sum()) for weight, genes in pairs)
        return 1 - alive / total if total else 0.0

    def _silence_(self, keep: dict[str, BoolArray], chromosome: Chromosome) -> bool:
        """Make neurons inactive that no active one leads into or reads; whether any were."""
        changed = False
        for group, leading, led_anyway in self._leading:
            alive = led_anyway.copy()
            for weight, locus, units in leading:
                genes = chromosome[locus].connections[weight.tensor]
                rows = np.moveaxis(genes & weight.live, weight.out_dim, 0)
                led = np.asarray((rows & _inputs(weight, keep)).any(axis=1), dtype=bool)
                alive[units[led & (units >= 0)]] = True
            changed |= narrow_(keep, group, alive)
        unread = unread_units(self._trace.cuttable, self._dropped(keep, chromosome))
        for name, mine in unread.items():
            changed |= narrow_(keep, self._trace.by_name[name], ~mine)
        return changed

    def _dropped(
        self, keep: Mapping[str, BoolArray], chromosome: Chromosome
    ) -> dict[str, BoolArray]:
        """Weights with connections that are not; what leads into an inactive neuron is none."""
        found = {}
        for weight, genes in self._connected(chromosome):
            real, stays = _real(weight, keep), genes & weight.live
            if not stays[real].all():
                found[weight.tensor] = stays & real
        return found

    def _zeroed(
        self, keep: Mapping[str, BoolArray], chromosome: Chromosome
    ) -> Iterator[tuple[_Weight, BoolArray]]:
        """Weights with genes of 0 between active neurons, and whether each connection stays."""
        for weight, genes in self._connected(chromosome):
            real = _real(weight, keep)
            if not genes[real].all():
                yield weight, genes | ~real

    def _connected(self, chromosome: Chromosome) -> Iterator[tuple[_Weight, BoolArray]]:
        """Every weight with its genes."""
        for (_, weights), layer in zip(self._loci, chromosome, strict=True):
            for weight in weights:
                yield weight, layer.connections[weight.tensor]


def _weights(network: nn.Module, trace: Trace) -> Iterator[tuple[str, list[_Weight]]]:
    """Producing group to the weights whose outputs are its units, in forward order."""
    kernels = {
        f"{name}.weight" if name else "weight": isinstance(module, nn.modules.conv._ConvNd)
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear)
        or (isinstance(module, nn.modules.conv._ConvNd) and module.groups == 1)
    }
    seen: set[str] = set()
    held = held_connections(network)
    for group in trace.groups:
        mine = []
        for axis in group.axes:
            if axis.role != "out" or axis.dim > 1 or axis.tensor not in kernels:
                continue
            if axis.tensor in seen or axis.tensor in trace.ignored_tensors:
                continue
            seen.add(axis.tensor)
            shape = trace.parameters[axis.tensor]
            outputs = _along(trace, "out", axis.tensor, axis.dim)
            readers = _along(trace, "in", axis.tensor, 1 - axis.dim)
            mine.append(
                _Weight(
                    axis.tensor,
                    (shape[0], shape[1]),
                    axis.dim,
                    outputs,
                    readers,
                    kernels[axis.tensor],
                    _live(held.get(axis.tensor), (shape[0], shape[1])),
                )
            )
        if mine:
            yield group.name, mine


def _led_without_genes(
    network: nn.Module, trace: Trace, genes: AbstractSet[str]
) -> dict[str, BoolArray]:
    """By group: the units that a weight without genes leads into from elsewhere."""
    owners = dict(network.named_modules())
    reading = {axis.tensor for group in trace.groups for axis in group.axes if axis.role == "in"}
    found = {}
    for group in trace.groups:
        led = np.zeros(group.units, dtype=bool)
        for axis in group.axes:
            if axis.role == "in" or axis.tensor in genes or axis.tensor not in trace.parameters:
                continue
            owner = owners[axis.tensor.rpartition(".")[0]]
            single = math.prod(trace.parameters[axis.tensor]) == len(axis.units)  # bias, scale
            depthwise = isinstance(owner, nn.modules.conv._ConvNd) and axis.tensor not in reading
            if not (single or depthwise or isinstance(owner, NORMS)):  # else it passes a unit on
                led[axis.units[axis.units >= 0]] = True
        found[group.name] = led
    return found


def _live(mask: Tensor | None, shape: tuple[int, int]) -> BoolArray:
    """Whether each connection may be other than zero."""
    if mask is None:
        return np.ones(shape, dtype=bool)
    live: BoolArray = mask.bool().reshape(*shape, -1).any(dim=2).cpu().numpy()
    return live


def _along(trace: Trace, role: str, tensor: str, dim: int) -> tuple[tuple[str, IntArray], ...]:
    """Groups along one dim of a tensor, each with the unit of every position."""
    return tuple(
        (group.name, axis.units)
        for group in trace.groups
        for axis in group.axes
        if axis.role == role and (axis.tensor, axis.dim) == (tensor, dim)
    )


def _inputs(weight: _Weight, keep: Mapping[str, BoolArray]) -> BoolArray:
    """Whether each input position of a weight is active."""
    return _active(weight.shape[1 - weight.out_dim], weight.readers, keep)


def _active(
    size: int, groups: Sequence[tuple[str, IntArray]], keep: Mapping[str, BoolArray]
) -> BoolArray:
    """Whether each position is active: its unit is, of every group that has one there."""
    active = np.ones(size, dtype=bool)
    for name, units in groups:
        if name in keep:
            active &= np.where(units >= 0, keep[name][units], True)
    return active


def _real(weight: _Weight, keep: Mapping[str, BoolArray]) -> BoolArray:
    """Connections between active neurons, in the weight's own order of dims."""
    active = _active(weight.shape[weight.out_dim], weight.outputs, keep)
    real = np.outer(active, _inputs(weight, keep))
    return real if weight.out_dim == 0 else real.T


def _edit(weight: _Weight, stays: BoolArray) -> ZeroConnections:
    return ZeroConnections(
        tensor=weight.tensor,
        level="kernel" if weight.kernel else "weight",
        shape=weight.shape,
        keep=Bits.pack(stays),
    )


def dropped_share(chromosome: Sequence[Layer]) -> float:
    """Share of connection genes that are 0."""
    total = sum(g.size for layer in chromosome for g in layer.connections.values())
    kept = sum(int(g.sum()) for layer in chromosome for g in layer.connections.values())
    return 1 - kept / total if total else 0.0
