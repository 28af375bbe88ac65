"""Whole layers of a transformer go: the fewest that a target allows, by place or by what they add."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Self, final

import numpy as np
from pydantic import Field, model_validator
from torch import Tensor, nn

from prunus.errors import BudgetError, GraphError, InputError
from prunus.graph import call, cut, first_sample, plan_of
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
            split is least; ``top``: the last ones; ``every-other``: spread evenly.
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

    def decide(self, context: Context) -> Decision:
        """Drop one layer after the other until the target is met."""
        network = context.network
        stack = main_stack(network, f"method '{self.name}'")
        size = len(list(network.get_submodule(stack).children()))
        _require_residual(network, stack, context.trace.example_inputs)
        wanted = self.options.keep
        if self.options.share is not None:
            wanted = max(1, round(self.options.share * size))
        if wanted is not None and wanted > size:
            raise InputError(f"option keep={wanted} of method 'layers': there are {size} layers")
        count = self._count(context, stack, size) if wanted is None else wanted
        kept = self._kept(context, stack, size, count)
        flags = np.isin(np.arange(size), kept)
        note = f"layers: {sorted(kept)} of {size} stay (numbered from 0)"
        edits = () if count == size else (KeepLayers(stack=stack, keep=Bits.pack(flags)),)
        return Decision(choice={}, edits=edits, notes=(note,))

    def _count(self, context: Context, stack: str, size: int) -> int:
        """Most layers that the budget allows; they are all of a size."""
        budget = context.budget
        dense = budget.measure(context.trace, {})
        limit = budget.limit(dense)
        left = dense
        for count in range(size, 0, -1):
            left = budget.read(_cost(context, stack, size, list(range(count))))
            if left <= limit:
                return count
        raise BudgetError(
            f"target {budget.quantity}={budget.value:g} allows {limit}; with one layer of {size} "
            f"{left} of {dense} are left; ask for that or more"
        )

    def _kept(self, context: Context, stack: str, size: int, count: int) -> list[int]:
        if self.options.order == "top":
            return list(range(count))
        if self.options.order == "every-other":
            return sorted({round(i) for i in np.linspace(0, size - 1, count)})
        split = search_split(context, self)
        split = split.subset(min(self.options.images, len(split)), context.seed)
        kept = list(range(size))
        context.progress.start("drop layers", size - count)
        try:
            while len(kept) > count:
                losses = {
                    layer: evaluate(
                        _without(context.network, stack, size, [k for k in kept if k != layer]),
                        split,
                        device=context.device,
                    ).loss
                    for layer in kept
                }
                kept.remove(min(losses, key=lambda layer: losses[layer]))
                context.progress.advance()
        finally:
            context.progress.finish()
        return kept


def _without(network: nn.Module, stack: str, size: int, kept: Sequence[int]) -> nn.Module:
    flags = np.isin(np.arange(size), kept)
    if bool(flags.all()):
        return network
    edit = KeepLayers(stack=stack, keep=Bits.pack(flags))
    return cut(network, plan_of(network, [edit]))


def _cost(context: Context, stack: str, size: int, kept: Sequence[int]) -> Any:
    smaller = _without(context.network, stack, size, kept)
    one = first_sample(context.trace.example_inputs)
    return measure_cost(smaller, one, size=context.budget.quantity == "size")


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
