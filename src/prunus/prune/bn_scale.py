"""Units ranked by the scale of their batch norm."""

from typing import final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from prunus.errors import InputError
from prunus.graph import Inputs, Trace
from prunus.method import Context
from prunus.prune.base import GlobalOptions, GlobalRanking, Ranked
from prunus.prune.magnitude import magnitude_scores
from prunus.prune.scores import Normalize, normalized, unit_scores

_NO_SCALE = (
    "method 'bn-scale' needs batch norms with a scale, and no group that can be cut has one; use "
    "l2-global or taylor"
)


class BnScaleOptions(GlobalOptions):
    """As ``GlobalOptions``, but scales are compared as they are unless told otherwise."""

    normalize: Normalize = "none"


@final
class BnScale(GlobalRanking[BnScaleOptions]):
    """Smallest batch-norm scales go, over the whole network.

    ``I[k] = |gamma[k]|``, one threshold for all layers (Liu et al., "Learning Efficient
    Convolutional Networks through Network Slimming", ICCV 2017, section 3); the mean where a unit has
    several channels, or a coupled group several batch norms. The paper trains with an L1 penalty on
    gamma first: without it the scales tell less. Groups without a batch norm are ranked by L2 norms
    relative to their mean, times the mean scale of the network, so that such a unit counts on average
    as much as any other.
    """

    name = "bn-scale"
    summary = "smallest batch-norm scales of the whole network go (Liu et al. 2017)"
    options_type = BnScaleOptions

    def require_applicable(self, network: nn.Module, inputs: Inputs) -> None:  # noqa: ARG002  # as in Method
        """Needs a batch norm with a scale; whether its group can be cut, the trace says."""
        if not _named_scales(network):
            raise InputError(_NO_SCALE)

    def rank(self, context: Context) -> Ranked:
        """Mean absolute scale of every unit.

        Raises:
            InputError: No group that can be cut has a batch norm.
        """
        trace, scales = context.trace, _scales(context.network, context.trace)
        having = [g for g in trace.cuttable if any(a.tensor in scales for a in g.axes)]
        if not having:
            raise InputError(_NO_SCALE)
        scores = unit_scores(trace, scales, groups=having)
        mean_scale = float(np.concatenate(list(scores.values())).mean())
        without = [g.name for g in trace.cuttable if g.name not in scores]
        if not without:
            return Ranked(scores)
        norms = magnitude_scores(context.network, trace, norm="l2", axes="out")
        relative = normalized(norms, "mean")
        scores |= {name: relative[name] * mean_scale for name in without}
        return Ranked(scores, (f"no batch norm, ranked by relative L2 norm: {', '.join(without)}",))


def _named_scales(network: nn.Module) -> dict[str, Tensor]:
    """Scale of every batch norm that has one, by parameter name."""
    return {
        f"{name}.weight" if name else "weight": module.weight
        for name, module in network.named_modules()
        if isinstance(module, _BatchNorm) and module.weight is not None
    }


def _scales(network: nn.Module, trace: Trace) -> dict[str, Tensor]:
    """|gamma| of every batch norm that has one, by parameter name."""
    # A scale that two batch norms share goes by its first name alone.
    return {
        name: scale.detach().abs() / _channels_of_units(trace, name).to(scale)
        for name, scale in _named_scales(network).items()
        if name in trace.parameters
    }


def _channels_of_units(trace: Trace, scale: str) -> Tensor:
    """How many channels go with the unit of each, ``[channels]``: a unit's scale is their mean.

    Several in a layer of groups; where layers are put side by side, their units differ in that.
    """
    counts = np.ones(trace.parameters[scale])
    for group in trace.cuttable:
        for axis in group.axes:
            if axis.tensor == scale:
                mine = axis.units >= 0
                counts[mine] = np.bincount(axis.units[mine])[axis.units[mine]]
    return torch.from_numpy(counts)
