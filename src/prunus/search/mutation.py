"""Mutation of a row of bits that keeps how many are set."""

import numpy as np
import numpy.typing as npt

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]


def swap(
    bits: BoolArray,
    count: int,
    generator: np.random.Generator,
    weights: FloatArray | None = None,
) -> BoolArray:
    """Clear some set bits and set as many clear ones: the number of set bits stays.

    Args:
        bits: Any shape; not touched.
        count: Pairs to swap; fewer where there are not so many set or clear bits.
        generator: Of the draws.
        weights: By bit, above 0: a clear bit is set with a probability in proportion to its weight,
            a set one is cleared in inverse proportion. None: all alike.

    Returns:
        Bits of the same shape.

    >>> int(swap(np.array([True, True, False, False]), 1, np.random.default_rng(0)).sum())
    2
    """
    flat = bits.reshape(-1).copy()
    ones, zeros = np.flatnonzero(flat), np.flatnonzero(~flat)
    count = min(count, ones.size, zeros.size)
    if count:
        scale = None if weights is None else weights.reshape(-1)
        leave = _draw(ones, count, generator, None if scale is None else 1 / scale[ones])
        enter = _draw(zeros, count, generator, None if scale is None else scale[zeros])
        flat[leave], flat[enter] = False, True
    return flat.reshape(bits.shape)


def _draw(
    among: npt.NDArray[np.int64],
    count: int,
    generator: np.random.Generator,
    weights: FloatArray | None,
) -> npt.NDArray[np.int64]:
    shares = None if weights is None else weights / weights.sum()
    return generator.choice(among, size=count, replace=False, p=shares, shuffle=False)
