"""Units ranked by the size of their weights: L1 and L2, within layers and across the network."""

from typing import Literal, final

import numpy as np
from torch import nn

from prunus.graph import Trace
from prunus.method import Context
from prunus.plan import Record
from prunus.prune.base import GlobalOptions, GlobalRanking, Ranked, UniformRanking
from prunus.prune.scores import Axes, FloatArray, unit_scores

Norm = Literal["l1", "l2", "l2-squared"]


class UniformMagnitudeOptions(Record):
    """``axes``: ``out`` scores the filters that produce a unit, ``all`` every slice of it."""

    axes: Axes = "out"


class GlobalMagnitudeOptions(GlobalOptions):
    """As ``GlobalOptions``; ``axes`` as for the uniform methods."""

    axes: Axes = "out"


def magnitude_scores(
    network: nn.Module, trace: Trace, *, norm: Norm, axes: Axes
) -> dict[str, FloatArray]:
    """Norms of the weights of every unit that can be cut.

    ``l1``: ``sum |w|``, ``l2-squared``: ``sum w^2``, ``l2``: its root. Several axes of a group are
    averaged, for ``l2`` before the root. Biases are left out: they are no part of a filter.
    """
    weights = {n: p.detach() for n, p in network.named_parameters() if not _is_bias(n)}
    elements = {n: w.abs() if norm == "l1" else w.double() ** 2 for n, w in weights.items()}
    scores = unit_scores(trace, elements, axes=axes)
    return {n: np.sqrt(s) if norm == "l2" else s for n, s in scores.items()}


def _is_bias(name: str) -> bool:
    """Whether a parameter is one; those of recurrent layers are named ``bias_ih_l0`` and the like."""
    leaf = name.rpartition(".")[2]
    return leaf.endswith("bias") or leaf.startswith("bias_")


@final
class L1(UniformRanking[UniformMagnitudeOptions]):
    """Smallest filters by L1 norm go, the same share of every group.

    Source: Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017, section 3.1.
    """

    name = "l1"
    summary = "smallest L1 norms go, the same share of every group (Li et al. 2017)"
    options_type = UniformMagnitudeOptions

    def rank(self, context: Context) -> Ranked:
        """L1 norm of every unit."""
        axes = self.options.axes
        return Ranked(magnitude_scores(context.network, context.trace, norm="l1", axes=axes))


@final
class L2(UniformRanking[UniformMagnitudeOptions]):
    """As ``L1``, by L2 norm."""

    name = "l2"
    summary = "smallest L2 norms go, the same share of every group"
    options_type = UniformMagnitudeOptions

    def rank(self, context: Context) -> Ranked:
        """L2 norm of every unit."""
        axes = self.options.axes
        return Ranked(magnitude_scores(context.network, context.trace, norm="l2", axes=axes))


@final
class L1Global(GlobalRanking[GlobalMagnitudeOptions]):
    """Smallest filters by L1 norm go, wherever they are; norms relative to their group's mean."""

    name = "l1-global"
    summary = "smallest L1 norms of the whole network go, relative to their group's mean"
    options_type = GlobalMagnitudeOptions

    def rank(self, context: Context) -> Ranked:
        """L1 norm of every unit."""
        axes = self.options.axes
        return Ranked(magnitude_scores(context.network, context.trace, norm="l1", axes=axes))


@final
class L2Global(GlobalRanking[GlobalMagnitudeOptions]):
    """As ``L1Global``, by L2 norm."""

    name = "l2-global"
    summary = "smallest L2 norms of the whole network go, relative to their group's mean"
    options_type = GlobalMagnitudeOptions

    def rank(self, context: Context) -> Ranked:
        """L2 norm of every unit."""
        axes = self.options.axes
        return Ranked(magnitude_scores(context.network, context.trace, norm="l2", axes=axes))


@final
class GroupL2(GlobalRanking[GlobalOptions]):
    """Squared L2 norm over all coupled slices of a unit, ranked over the whole network.

    ``I[k] = mean over the slices of sum w^2``: filters, norm scales and the kernel slices that read
    the unit, but no biases; then divided by the group's mean. As ``GroupMagnitudeImportance`` of
    torch-pruning has it (Fang et al., "DepGraph", CVPR 2023, section 3.3), which however leaves out
    depthwise filters; here they count.
    """

    name = "group-l2"
    summary = "smallest L2 norms over all coupled slices go, network-wide (DepGraph 2023)"
    options_type = GlobalOptions

    def rank(self, context: Context) -> Ranked:
        """Mean squared L2 norm of every unit's slices."""
        scores = magnitude_scores(context.network, context.trace, norm="l2-squared", axes="all")
        return Ranked(scores)
