"""Pareto fronts: who is on them, what they are worth, who survives. By pymoo (extra ``front``)."""

import numpy as np
import numpy.typing as npt

from prunus.extras import require_extra

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


def require_pymoo() -> None:
    """Say how to get the package, where it is missing.

    Raises:
        MissingExtraError: It is not installed.
    """
    require_extra("pymoo", "front")


def fronts(values: FloatArray) -> list[IntArray]:
    """Rows by nondominated front, the best front first; every row is in one.

    A row dominates another that is nowhere better and somewhere worse.

    Args:
        values: Lower is better, ``[n, objectives]``.

    Returns:
        Positions of rows, ascending: one array ``[m]`` a front.

    Raises:
        MissingExtraError: pymoo is not installed.
    """
    require_pymoo()
    from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting  # noqa: PLC0415

    found = NonDominatedSorting().do(np.asarray(values, dtype=np.float64))
    return [np.sort(np.asarray(front, dtype=np.int64)) for front in found]


def nondominated(values: FloatArray) -> IntArray:
    """Rows that no other dominates, ascending; of equal rows the first only.

    Args:
        values: Lower is better, ``[n, objectives]``.

    Returns:
        Positions of rows, ``[m]``.

    Raises:
        MissingExtraError: pymoo is not installed.
    """
    if not len(values):
        return np.empty(0, dtype=np.int64)
    first = fronts(values)[0]
    _, at = np.unique(values[first], axis=0, return_index=True)
    return np.asarray(np.sort(first[at]), dtype=np.int64)


def crowding(values: FloatArray) -> FloatArray:
    """Distance of every row to its neighbours on the front, ``[n]``; infinite at the ends.

    Averaged over objectives (the paper adds them up: the order is the same).

    Source: Deb et al., "A Fast and Elitist Multiobjective Genetic Algorithm: NSGA-II", IEEE TEC
    2002, section III-B.

    Args:
        values: Of one front; lower is better, ``[n, objectives]``.

    Raises:
        MissingExtraError: pymoo is not installed.
    """
    require_pymoo()
    from pymoo.operators.survival.rank_and_crowding.metrics import (  # noqa: PLC0415
        calc_crowding_distance,
    )

    return np.asarray(calc_crowding_distance(np.asarray(values)), dtype=np.float64)


def hypervolume(values: FloatArray, reference: FloatArray) -> float:
    """Volume that is dominated by some row and dominates the reference point.

    Args:
        values: Lower is better, ``[n, objectives]``; rows beyond the reference add nothing.
        reference: ``[objectives]``.

    Raises:
        MissingExtraError: pymoo is not installed.
    """
    require_pymoo()
    from pymoo.indicators.hv import HV  # noqa: PLC0415

    inside = values[(values < reference).all(axis=1)]
    return float(HV(ref_point=reference)(inside)) if len(inside) else 0.0
