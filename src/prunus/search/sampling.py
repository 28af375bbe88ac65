"""Weighted sampling without replacement, as a perturbed ranking."""

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]


def gumbel_ranks(
    weights: FloatArray, temperature: float, generator: np.random.Generator
) -> FloatArray:
    """Scores whose ``k`` largest are a sample of ``k`` without replacement, for every ``k``.

    At temperature 1 the sample is that of drawing one after the other with probabilities in
    proportion to the weights (Plackett-Luce); at 0 the ``k`` heaviest; high above 1, any ``k``.
    Source: Kool et al., "Stochastic Beams and Where to Find Them", ICML 2019, section 3:
    ``log w + Gumbel``.

    Args:
        weights: At least 0, ``[n]``; those of weight 0 come last whatever the temperature.
        temperature: 0 or more.
        generator: Of the draws.

    Returns:
        Finite scores, ``[n]``.
    """
    positive = weights > 0
    logs = np.log(weights, where=positive, out=np.zeros_like(weights, dtype=np.float64))
    scores = logs + temperature * generator.gumbel(size=weights.shape)
    floor = float(scores[positive].min(initial=0.0)) - 1.0
    behind: FloatArray = np.where(positive, scores, floor - generator.random(weights.shape))
    return behind
