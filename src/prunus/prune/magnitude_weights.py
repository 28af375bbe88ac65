"""Single weights held at zero: the smallest ones, across the network or layer by layer."""

from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from typing import Literal, final

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from prunus.errors import GraphError, InputError
from prunus.graph import Inputs, Trace, held_connections, trace
from prunus.method import Configured, Context, Decision, require_layers
from prunus.plan import Bits, BoolArray, Names, Record, ZeroConnections

_LAYERS = (nn.Linear, nn.modules.conv._ConvNd)


class MagnitudeWeightsOptions(Record):
    """How many weights go.

    Attributes:
        sparsity: Share of the weights before the cut that is zero in the end. A channel that nothing
            reads then goes, with zeros and others: of what is left another share is zero.
        scope: ``global``: the smallest of the network; ``layer``: the same share of every layer.
        schedule: What earlier rounds of a ``repeat`` reach: ``cubic`` follows Zhu and Gupta, eq. 1;
            ``none``: every round goes to ``sparsity`` at once.
        embeddings: Tables of embeddings, too.
        ignore: Glob patterns of layers that stay whole.
    """

    sparsity: float = Field(gt=0, lt=1)
    scope: Literal["global", "layer"] = "global"
    schedule: Literal["cubic", "none"] = "cubic"
    embeddings: bool = False
    ignore: Names = ()


@final
class MagnitudeWeights(Configured[MagnitudeWeightsOptions]):
    """The smallest weights are zero, and stay so through later training.

    Zeros are computed with and stored like other numbers: executed MACs, time and the file stay what
    they were. Effective MACs tell what an engine for sparse weights could save.

    Source: Han et al., "Learning both Weights and Connections", NeurIPS 2015; Zhu and Gupta, "To prune,
    or not to prune", ICLR workshop 2018, section 3.
    """

    name = "magnitude-weights"
    summary = "smallest single weights are zero; nothing gets smaller by it (Zhu and Gupta 2018)"
    targets = frozenset()
    options_type = MagnitudeWeightsOptions

    @property
    def sizes_itself(self) -> bool:
        """Always: ``sparsity`` says how many weights go."""
        return True

    def require_applicable(self, network: nn.Module, inputs: Inputs) -> None:
        """Needs a linear or convolutional layer before the output layer, whatever is ignored."""
        self._weights(network, trace(network, inputs, verify=False))

    def decide(self, context: Context) -> Decision:
        """Zero the smallest weights, as many as the schedule says for this round."""
        dense = context.budget.measure(context.trace, {})
        if context.budget.limit(dense) < dense:
            raise InputError(
                f"target {context.budget.quantity}={context.budget.value:g}: zeros are computed and "
                "stored like other numbers, no target is met by them; leave it out and set sparsity"
            )
        weights = self._weights(context.network, context.trace)
        share = self.options.sparsity
        if self.options.schedule == "cubic":
            share *= 1 - (1 - context.done) ** 3
        held = held_connections(context.network)
        sizes = {name: _sizes(weight, held.get(name)) for name, weight in weights.items()}
        keep = _kept(sizes, share, scope=self.options.scope)
        # What an earlier round holds at zero stays so, even where this one asks for less.
        keep = {name: mask & held[name] if name in held else mask for name, mask in keep.items()}
        connections = tuple(
            ZeroConnections(
                tensor=name,
                level="weight",
                shape=tuple(weights[name].shape),
                keep=Bits.pack(mask.numpy()),
            )
            for name, mask in keep.items()
            if not bool(mask.all())
        )
        notes = (_note(context.trace, keep, connections),)
        return Decision(choice={}, connections=connections, notes=notes)

    def _weights(self, network: nn.Module, traced: Trace) -> dict[str, Tensor]:
        """Weights that may go, by the names that plans know them by: tied ones once.

        Raises:
            GraphError: The network has none.
            InputError: A glob of ``ignore`` matches no layer, or all layers are ignored.
        """
        kinds = (*_LAYERS, nn.Embedding) if self.options.embeddings else _LAYERS
        weights: dict[str, nn.Parameter] = {}
        for path, module in network.named_modules():
            weight = module._parameters.get("weight")  # computed ones are not to be computed
            if isinstance(module, kinds) and isinstance(weight, nn.Parameter):
                weights[path] = weight
        ignore = self.options.ignore
        require_layers(ignore, weights, "prune")
        names = {id(weight): name for name, weight in network.named_parameters()}
        whole = _output_weights(network, traced)
        inner = {path: weight for path, weight in weights.items() if id(weight) not in whole}
        kept = {
            names[id(weight)]: weight.detach()
            for path, weight in inner.items()
            if path not in traced.ignored
            and names[id(weight)] not in traced.ignored
            and not any(fnmatchcase(path, pattern) for pattern in ignore)
        }
        if kept:
            return kept
        told = (
            "method 'magnitude-weights' finds no linear or convolutional layer before the output "
            f"layer of {type(network).__name__}"
        )
        if inner:
            raise InputError(f"{told} that ignore leaves; mend it")
        raise GraphError(f"{told}; take a method for its channels")


def _note(trace: Trace, keep: dict[str, Tensor], connections: tuple[ZeroConnections, ...]) -> str:
    """How many weights are zero, before and after what nothing reads is cut."""
    zeros, total = _zeros_of(keep.values())
    told = f"magnitude-weights: {zeros} of {total} weights are zero ({zeros / total:.1%})"
    cutting = trace.cut_units({}, connections)
    if cutting:
        zeros, total = _zeros_of(_without(trace, keep, cutting))
        told += (
            f", {zeros} of {total} ({zeros / total:.1%}) once channels that nothing reads are cut"
        )
    return f"{told}; zeros are computed and stored like other numbers"


def _zeros_of(masks: Iterable[Tensor]) -> tuple[int, int]:
    """Zeros, and all weights."""
    counts = [(int((~mask).sum()), mask.numel()) for mask in masks]
    return sum(zeros for zeros, _ in counts), sum(total for _, total in counts)


def _without(
    trace: Trace, keep: dict[str, Tensor], cutting: dict[str, BoolArray]
) -> Iterator[Tensor]:
    """Of every mask what is left of it, flat."""
    left = {name: torch.ones_like(mask) for name, mask in keep.items()}
    for name, kept in cutting.items():
        for axis in trace.by_name[name].axes:
            if axis.tensor in left:
                gone = torch.from_numpy((axis.units >= 0) & ~kept[axis.units])
                left[axis.tensor].movedim(axis.dim, 0)[gone] = False
    return (mask[left[name]] for name, mask in keep.items())


def _output_weights(network: nn.Module, traced: Trace) -> set[int]:
    """Identities of the weights that give the output; one that is a table, too, is a language model's."""
    of: dict[bool, set[int]] = {True: set(), False: set()}
    found = set()
    for path, module in network.named_modules(remove_duplicate=False):
        weight = id(module._parameters.get("weight"))
        if path in traced.output_layers:
            found.add(weight)
        if isinstance(module, (*_LAYERS, nn.Embedding)):
            of[isinstance(module, nn.Embedding)].add(weight)
    return found | (of[True] & of[False])


def _sizes(weight: Tensor, held: Tensor | None) -> Tensor:
    """Magnitudes; nothing is as small as what is held at zero already, which goes first."""
    return weight.abs() if held is None else weight.abs().masked_fill(~held, -1.0)


def _kept(
    sizes: dict[str, Tensor], share: float, *, scope: Literal["global", "layer"]
) -> dict[str, Tensor]:
    """Masks of what stays, in the tensors' shapes; ties go by position."""
    if scope == "layer":
        return {name: _largest(one.flatten(), share).view(one.shape) for name, one in sizes.items()}
    mask = _largest(torch.cat([one.flatten() for one in sizes.values()]), share)
    parts = torch.split(mask, [one.numel() for one in sizes.values()])
    return {
        name: part.view(one.shape) for (name, one), part in zip(sizes.items(), parts, strict=True)
    }


def _largest(sizes: Tensor, share: float) -> Tensor:
    """True for all but the ``round(share * n)`` smallest; of equal ones the first go."""
    gone = round(share * len(sizes))
    if not gone:
        return torch.ones(len(sizes), dtype=torch.bool)
    values = sizes.float().numpy() if sizes.dtype != torch.float64 else sizes.numpy()
    # Sorting all would take far longer.
    threshold = np.partition(values, gone - 1)[gone - 1]
    keep = values > threshold
    equal = np.flatnonzero(values == threshold)
    keep[equal[gone - int((values < threshold).sum()) :]] = True
    return torch.from_numpy(keep)
