"""From a number per weight to a number per unit: how elements add up over a coupled group."""

from collections.abc import Iterable, Mapping
from typing import Literal

import numpy as np
import numpy.typing as npt
from torch import Tensor

from prunus.errors import InputError
from prunus.graph import Group, Trace, UnitAxis

FloatArray = npt.NDArray[np.float64]
Scores = Mapping[str, FloatArray]
Reduce = Literal["mean", "sum"]
Axes = Literal["out", "all"]
Normalize = Literal["mean", "none"]


def unit_scores(
    trace: Trace,
    per_tensor: Mapping[str, Tensor],
    *,
    reduce: Reduce = "mean",
    axes: Axes = "all",
    groups: Iterable[Group] | None = None,
) -> dict[str, FloatArray]:
    """Add up the importance of single weights over the units of coupled groups.

    Along each axis of a group the elements of a slice are summed per position, then the positions
    of a unit; the axes of a group are then averaged, ``I[k] = mean_axes sum_slice I(element)``
    (Fang et al., "DepGraph: Towards Any Structural Pruning", CVPR 2023, section 3.3).

    Args:
        trace: Knows which slices of which tensors a unit is.
        per_tensor: Importance of every element by parameter name, in the parameter's shape;
            parameters left out have no say.
        reduce: ``mean`` over the axes of a group, or ``sum``.
        axes: ``all``, or ``out`` for the filters that produce the units alone. A group that no
            filter produces (it has no ``out`` axis of two dims or more) is scored on all its axes.
        groups: Which groups to score; all that can be cut by default.

    Returns:
        By group name, float64 ``[units]``.

    Raises:
        InputError: A tensor has another shape than its parameter, or a group gets no score.
    """
    for name, tensor in per_tensor.items():
        if tuple(tensor.shape) != trace.parameters.get(name):
            raise InputError(
                f"per_tensor['{name}'] has shape {list(tensor.shape)}; the network's parameter has "
                f"{list(trace.parameters.get(name, ()))}"
            )
    arrays = {n: t.detach().double().cpu().numpy() for n, t in per_tensor.items()}
    scores = {}
    for group in trace.cuttable if groups is None else groups:
        found = [a for a in group.axes if a.tensor in arrays]
        if axes == "out":
            found = [a for a in found if a.role == "out" and arrays[a.tensor].ndim > 1] or found
        if not found:
            raise InputError(
                f"per_tensor names no parameter of group '{group.name}'; it needs one of "
                f"{', '.join(sorted({a.tensor for a in group.axes}))}"
            )
        total = np.sum([_along(group, a, arrays[a.tensor]) for a in found], axis=0)
        scores[group.name] = total / len(found) if reduce == "mean" else total
    return scores


def _along(group: Group, axis: UnitAxis, elements: FloatArray) -> FloatArray:
    others = tuple(d for d in range(elements.ndim) if d != axis.dim)
    positions = elements.sum(axis=others)
    mine = axis.units >= 0
    total = np.zeros(group.units)
    np.add.at(total, axis.units[mine], positions[mine])
    return total


def normalized(scores: Scores, how: Normalize) -> dict[str, FloatArray]:
    """Scores to be compared across groups: divided by their group's mean, or as they are.

    A group of zeros stays zero.
    """
    if how == "none":
        return dict(scores)
    means = {name: float(mine.mean()) for name, mine in scores.items()}
    return {n: mine / means[n] if means[n] > 0 else mine.copy() for n, mine in scores.items()}
