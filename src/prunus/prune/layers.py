"""Whole layers of a transformer go: the fewest that a target allows, by place or by what they add."""

import math
from collections.abc import Collection, Sequence
from typing import Any, ClassVar, Literal, Self, final

import numpy as np
from pydantic import Field, model_validator
from torch import Tensor, nn

from prunus.errors import BudgetError, GraphError, InputError
from prunus.graph import Inputs, call, cut, first_sample, plan_of
from prunus.graph.stacks import main_stack
from prunus.meter import measure_cost
from prunus.method import Configured, Context, Decision, Need, search_split
from prunus.plan import Bits, KeepLayers, Record
from prunus.train import evaluate

Order = Literal["every-other", "top", "importance"]


class LayersOptions(Record):
    """Which layers go.

    Attributes:
        keep: Layers that stay; by default as many as the target allows.
        share: In place of ``keep``, the share of the layers that stay, rounded.
        order: ``importance``: one after the other the layer without which the loss on the search
            split is least, of those without which the target can still be met; ``top``: the last ones;
            ``every-other``: spread evenly.
        images: Samples of the search split that losses are measured on.
    """

    keep: int | None = Field(default=None, ge=1)
    share: float | None = Field(default=None, gt=0, le=1)
    order: Order = "importance"
    images: int = Field(default=500, ge=1)

    @model_validator(mode="after")
    def _one(self) -> Self:
        if self.keep is not None and self.share is not None:
            raise ValueError(f"keep={self.keep} and share={self.share:g}: give one of them")
        return self


@final
class Layers(Configured[LayersOptions]):
    """Drops layers of the largest stack; the others are what they were.

    Source: Sajjad et al., "On the Effect of Dropping Layers of Pre-trained Transformer Models", Computer
    Speech and Language 77, 2023 (top, alternate); Men et al., "ShortGPT", 2024, for dropping by what a
    layer changes, here measured as the loss without it.
    """

    name = "layers"
    summary = "whole layers of a transformer go (Sajjad et al. 2023)"
    needs = frozenset({Need.SEARCH})
    edits: ClassVar[bool] = True
    options_type = LayersOptions

    @property
    def sizes_itself(self) -> bool:
        """Where ``keep`` or ``share`` is set."""
        return self.options.keep is not None or self.options.share is not None

    def require_applicable(self, network: nn.Module, inputs: Inputs) -> None:
        """Needs a stack of like layers, as many as stay at least, that add to what they read."""
        stack, size = self._stack(network)
        self._wanted(size)
        _require_residual(network, stack, inputs)

    def _stack(self, network: nn.Module) -> tuple[str, int]:
        """Path of the stack, and its layers."""
        stack = main_stack(network, f"method '{self.name}'")
        return stack, len(list(network.get_submodule(stack).children()))

    def decide(self, context: Context) -> Decision:
        """Drop one layer after the other until the target is met."""
        network = context.network
        stack, size = self._stack(network)
        _require_residual(network, stack, context.trace.example_inputs)
        names = [name for name, _ in network.get_submodule(stack).named_children()]
        held = [k for k in range(size) if _holds(context.trace.ignored, f"{stack}.{names[k]}")]
        kept = self._kept(context, stack, size, held)
        flags = np.isin(np.arange(size), kept)
        notes = [f"layers: {kept} of {size} stay (numbered from 0)"]
        if held:
            notes.append(f"layers: ignore names layers {held}, which therefore stay")
        edits = () if bool(flags.all()) else (KeepLayers(stack=stack, keep=Bits.pack(flags)),)
        return Decision(choice={}, edits=edits, notes=tuple(notes))

    def _kept(self, context: Context, stack: str, size: int, held: Sequence[int]) -> list[int]:
        """Layers that stay: as many as are asked for, else the most that the target allows.

        Raises:
            BudgetError: They cost more than the target allows.
            InputError: More of them are held than are asked for.
        """
        wanted = self._wanted(size)
        if wanted is not None and wanted < len(held):
            raise InputError(
                f"method 'layers' is to keep {wanted} of {size} layers, and ignore names "
                f"{len(held)} of them; keep as many, or leave them out of ignore"
            )
        dense = context.budget.measure(context.trace, {})
        limit = context.budget.limit(dense)
        if wanted is None and limit >= dense:
            return list(range(size))
        if wanted is None:  # known before any loss is measured
            least = list(held) or _by_cost(context, stack, size)[:1]
            _require(context, stack, size, least, limit)
        kept = list(range(size))
        while len(kept) > (wanted or len(held) or 1):
            kept = self._fewer(context, stack, size, kept, held)
            if wanted is None and _left(context, stack, size, kept) <= limit:
                return kept
        _require(context, stack, size, kept, limit)
        return kept

    def _wanted(self, size: int) -> int | None:
        """How many layers the options ask for.

        Raises:
            InputError: More than there are.
        """
        if self.options.share is not None:
            return max(1, round(self.options.share * size))
        if self.options.keep is not None and self.options.keep > size:
            raise InputError(
                f"option keep={self.options.keep} of method 'layers': there are {size} layers; give "
                "as many or fewer"
            )
        return self.options.keep

    def _fewer(
        self, context: Context, stack: str, size: int, kept: list[int], held: Sequence[int]
    ) -> list[int]:
        """One layer less, by the order that is asked for; none of those that are held."""
        free = [k for k in kept if k not in held]
        if self.options.order == "top":
            return [k for k in kept if k != free[-1]]
        if self.options.order == "every-other":
            every = [k for k in range(size) if k not in held]
            places = np.linspace(0, len(every) - 1, len(free) - 1)
            return sorted([*held, *(every[round(place)] for place in places)])
        if not held:
            free = _leaving_enough(context, stack, size, kept, self._wanted(size) or 1)
        split = search_split(context, self)
        split = split.subset(min(self.options.images, len(split)), context.seed)
        losses: dict[int, float] = {}
        context.progress.start(f"layer {size - len(kept) + 1} to drop", len(free))
        try:
            for layer in free:
                smaller = _without(context.network, stack, size, [k for k in kept if k != layer])
                loss = evaluate(smaller, split, device=context.device).loss
                losses[layer] = loss if math.isfinite(loss) else math.inf  # NaN would win a minimum
                context.progress.advance()
        finally:
            context.progress.finish()
        gone = min(losses, key=lambda layer: losses[layer])
        return [k for k in kept if k != gone]


def _holds(ignored: Collection[str], layer: str) -> bool:
    """Whether something in a layer is ignored: it cannot go without it."""
    return any(f"{name}.".startswith(f"{layer}.") for name in ignored)


def _without(network: nn.Module, stack: str, size: int, kept: Sequence[int]) -> nn.Module:
    flags = np.isin(np.arange(size), kept)
    if bool(flags.all()):
        return network
    edit = KeepLayers(stack=stack, keep=Bits.pack(flags))
    return cut(network, plan_of(network, [edit]))


def _left(context: Context, stack: str, size: int, kept: Sequence[int]) -> int:
    """What the budget limits, of the network with these layers."""
    smaller = _without(context.network, stack, size, kept)
    one = first_sample(context.trace.example_inputs)
    budget = context.budget
    return budget.read(measure_cost(smaller, one, size=budget.quantity == "size"))


def _by_cost(context: Context, stack: str, size: int) -> list[int]:
    """Layers by what each alone costs, the least first: earlier cuts may have left unlike widths."""
    layers = context.network.get_submodule(stack).children()
    kinds = [str([p.shape for p in layer.parameters()]) for layer in layers]
    costs = {
        kind: _left(context, stack, size, [kinds.index(kind)]) for kind in dict.fromkeys(kinds)
    }
    return sorted(range(size), key=lambda layer: costs[kinds[layer]])


def _leaving_enough(
    context: Context, stack: str, size: int, kept: Sequence[int], wanted: int
) -> list[int]:
    """Layers that can go so that the cheapest of the others still meet the target; all where none can.

    The wide layers of a stack may be those that matter most: where they alone stayed, a target that
    a narrow one meets would be out of reach.
    """
    dense = context.budget.measure(context.trace, {})
    limit = context.budget.limit(dense)
    if limit >= dense:
        return list(kept)
    order = [layer for layer in _by_cost(context, stack, size) if layer in kept]

    def is_enough(layers: Sequence[int]) -> bool:
        return _left(context, stack, size, sorted(layers)) <= limit

    first, spare = order[:wanted], order[wanted]
    found = [
        layer
        for layer in kept
        if layer not in first or is_enough([*(k for k in first if k != layer), spare])
    ]
    return found if is_enough(first) and found else list(kept)


def _require(context: Context, stack: str, size: int, kept: Sequence[int], limit: int) -> None:
    """Refuse layers that cost more than the limit.

    Raises:
        BudgetError: They do.
    """
    budget = context.budget
    dense = budget.measure(context.trace, {})
    left = dense if limit >= dense else _left(context, stack, size, kept)
    if left > limit:
        raise BudgetError(
            f"target {budget.quantity}={budget.value:g} allows {limit}; with {len(kept)} of {size} "
            f"layers {left} of {dense} are left; ask for that or more"
        )


def _require_residual(network: nn.Module, stack: str, inputs: Any) -> None:
    """Refuse a stack whose layers do not hand on what they were handed in the same shape.

    Raises:
        GraphError: Dropping a layer would break the next one.
    """
    shapes: list[tuple[Any, Any]] = []

    def note(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        first = given[0] if given else named.get("hidden_states")
        out = output if isinstance(output, Tensor) else output[0]
        shapes.append((getattr(first, "shape", None), getattr(out, "shape", None)))

    layers = network.get_submodule(stack).children()
    handles = [layer.register_forward_hook(note, with_kwargs=True) for layer in layers]
    try:
        call(network, inputs)
    finally:
        for handle in handles:
            handle.remove()
    if not shapes or any(before is None or before != after for before, after in shapes):
        raise GraphError(
            f"method 'layers': layers of '{stack}' change the shape of what they are given, so that "
            "none can be left out; use a channel method"
        )
