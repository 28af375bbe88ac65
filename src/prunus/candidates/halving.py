"""Successive halving with paired tests: few images tell most candidates apart.

All candidates see the same images, so their differences are paired and vary far less than their
scores. After each part of the images a candidate is dropped when its mean difference to the K-th best
has a one-sided lower 95 % bound above zero (Student's t); the parts grow geometrically (Jamieson and
Talwalkar, "Non-stochastic Best Arm Identification and Hyperparameter Optimization", AISTATS 2016;
paired tests as in racing, Maron and Moore, NIPS 1994).
"""

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

CONFIDENCE = 0.95
DECIMALS = 4
"""Fitness and bounds are rounded to 1e-4, so that rounding of the machine decides nothing."""

Values = npt.NDArray[np.floating]


def rung_ends(images: int, first: float, growth: float, batch_size: int) -> tuple[int, ...]:
    """Images seen at the end of each part: whole batches, growing by a factor; the last is all.

    >>> rung_ends(2000, first=128, growth=4, batch_size=64)
    (128, 512, 2000)
    """
    ends: list[int] = []
    end = first
    while True:
        whole = math.ceil(end / batch_size) * batch_size
        if whole * math.sqrt(growth) >= images:  # a part of a few images more is no part
            break
        ends.append(whole)
        end = whole * growth
    return (*ends, images)


def fitness(values: Values) -> float:
    """Mean over images, rounded: what candidates are ranked by, lower is better."""
    return round(float(np.mean(values, dtype=np.float64)), DECIMALS)


def survivors(
    values: Mapping[str, Values], top: int, difficulty: Values, population: int | None
) -> set[str]:
    """Who may still be among the best ``top``.

    Args:
        values: Fitness per image by candidate, ``[images]`` each, on the same images.
        top: K, how many of the best are wanted.
        difficulty: Of each image, ``[images]``: what the images were spread evenly by.
        population: How many images there are in all, the best being those on all of them; None:
            these stand for any others.
    """
    order = sorted(values, key=lambda key: (fitness(values[key]), key))
    if len(order) <= top:
        return set(order)
    pivot = values[order[top - 1]].astype(np.float64)
    by_difficulty = np.argsort(difficulty, kind="stable")
    bounds = {
        key: lower_bound((values[key] - pivot)[by_difficulty], population) for key in order[top:]
    }
    return {key for key in order if bounds.get(key, 0.0) <= 0}


def lower_bound(differences: Values, population: int | None) -> float:
    """One-sided lower 95 % bound of the mean, ``mean - t(0.95, n - 1) s / sqrt(n)``, rounded.

    The images are a systematic sample, spread evenly by difficulty, so the variance is that of
    neighbors, ``s^2 = sum (d_i - d_(i-1))^2 / (2 (n - 1))`` (Wolter, "Introduction to Variance
    Estimation", 2007, section 8.2, estimator v2): what difficulty explains does not count. Nor does
    what has been seen already: of ``N`` images in all, ``s^2 (1 - n / N)``.

    Args:
        differences: In order of difficulty, ``[images]``.
        population: ``N``, of which these are a part; None: without end.
    """
    count = len(differences)
    if count < 2:
        return -math.inf
    sample = differences.astype(np.float64)
    variance = float((np.diff(sample) ** 2).sum()) / (2 * (count - 1))
    variance *= 1.0 if population is None else 1 - count / population
    # Here, not above: workers start sooner without it.
    from scipy.special import stdtrit  # noqa: PLC0415

    quantile = float(stdtrit(count - 1, CONFIDENCE))
    return round(float(sample.mean()) - quantile * math.sqrt(variance / count), DECIMALS)
