"""Single weights held at zero: the smallest ones, across the network or layer by layer."""

from fnmatch import fnmatchcase
from typing import Literal, final

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from prunus.errors import InputError
from prunus.graph import held_connections
from prunus.method import Configured, Context, Decision
from prunus.plan import Bits, Record, ZeroConnections


class MagnitudeWeightsOptions(Record):
    """How many weights go.

    Attributes:
        sparsity: Share of the weights that is zero in the end.
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
    ignore: tuple[str, ...] = ()


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
    options_type = MagnitudeWeightsOptions

    @property
    def sizes_itself(self) -> bool:
        """Always: ``sparsity`` says how many weights go."""
        return True

    def decide(self, context: Context) -> Decision:
        """Zero the smallest weights, as many as the schedule says for this round."""
        dense = context.budget.measure(context.trace, {})
        if context.budget.limit(dense) < dense:
            raise InputError(
                f"target {context.budget.quantity}={context.budget.value:g}: zeros are computed and "
                "stored like other numbers, no target is met by them; leave it out and set sparsity"
            )
        weights = self._weights(context)
        share = self.options.sparsity
        if self.options.schedule == "cubic":
            share *= 1 - (1 - context.done) ** 3
        keep = _kept(weights, share, scope=self.options.scope)
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
        total = sum(w.numel() for w in weights.values())
        zeros = sum(int((~mask).sum()) for mask in keep.values())
        note = (
            f"magnitude-weights: {zeros} of {total} weights are zero ({zeros / total:.1%}); zeros are "
            "computed and stored like other numbers"
        )
        return Decision(choice={}, connections=connections, notes=(note,))

    def _weights(self, context: Context) -> dict[str, Tensor]:
        """Weights that may go, with those that are held at zero already as zeros."""
        protected = context.trace.output_layers
        held = held_connections(context.network)
        kinds = (nn.Linear, nn.modules.conv._ConvNd)
        found = {}
        for path, module in context.network.named_modules():
            table = self.options.embeddings and isinstance(module, nn.Embedding)
            name = f"{path}.weight"
            if not (isinstance(module, kinds) or table) or path in protected:
                continue
            if any(fnmatchcase(path, pattern) for pattern in self.options.ignore):
                continue
            weight = module.get_parameter("weight").detach()
            found[name] = weight * held[name] if name in held else weight
        if not found:
            raise InputError("method 'magnitude-weights' has no layer left; mend option ignore")
        return found


def _kept(
    weights: dict[str, Tensor], share: float, *, scope: Literal["global", "layer"]
) -> dict[str, Tensor]:
    """Masks of what stays; ties go by position."""
    if scope == "layer":
        return {
            name: _largest(weight.abs().flatten(), share).view_as(weight)
            for name, weight in weights.items()
        }
    flat = torch.cat([weight.abs().flatten() for weight in weights.values()])
    mask = _largest(flat, share)
    parts = torch.split(mask, [weight.numel() for weight in weights.values()])
    return {
        name: part.view_as(weight)
        for (name, weight), part in zip(weights.items(), parts, strict=True)
    }


def _largest(sizes: Tensor, share: float) -> Tensor:
    """True for all but the ``round(share * n)`` smallest."""
    gone = round(share * len(sizes))
    order = torch.from_numpy(np.argsort(sizes.double().numpy(), kind="stable"))
    mask = torch.ones(len(sizes), dtype=torch.bool)
    mask[order[:gone]] = False
    return mask
