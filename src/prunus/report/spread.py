"""Mean, sample standard deviation and count over seeds, and when a lead counts as one. No torch."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

MIN_SEEDS = 3
"""Seeds that both the best and the runner-up need before a lead may be claimed."""


@dataclass(frozen=True)
class Stat:
    """A number over ``n`` seeds; ``std`` has n - 1 in its denominator, and is None for n = 1."""

    mean: float
    std: float | None
    n: int


@dataclass(frozen=True)
class Missing:
    """A number that is not there; the empty reason means that the column does not apply."""

    reason: str = ""


Value = Stat | Missing
Reading = float | Missing


def summarize(readings: Sequence[Reading]) -> Value:
    """Pool the readings of several seeds, over those that are there.

    A row without any number keeps the first reason. A number that is not finite is missing, too: a
    mean over NaN would say nothing about the other seeds.

    >>> summarize([1.0, 2.0, 3.0])
    Stat(mean=2.0, std=1.0, n=3)
    """
    numbers = [float(r) for r in readings if not isinstance(r, Missing) and math.isfinite(r)]
    if not numbers:
        reasons = [r.reason for r in readings if isinstance(r, Missing)]
        return Missing(reasons[0] if reasons else "not a finite number")
    std = statistics.stdev(numbers) if len(numbers) > 1 else None
    return Stat(statistics.fmean(numbers), std, len(numbers))


def summarize_fixed(readings: Sequence[Reading]) -> Value:
    """Pool the readings of something that does not depend on the seed: the dense network.

    Equal readings are one number told several times, not a sample without any spread.

    >>> summarize_fixed([2.0, 2.0])
    Stat(mean=2.0, std=None, n=1)
    """
    distinct = {r for r in readings if not isinstance(r, Missing) and math.isfinite(r)}
    return Stat(float(distinct.pop()), None, 1) if len(distinct) == 1 else summarize(readings)


def clear_winner(stats: Mapping[int, Value], better: Literal["higher", "lower"]) -> int | None:
    """The key whose mean leads outside the spread, or None where no lead can be claimed.

    The best mean leads if its gap to the runner-up's mean exceeds the larger of their two sample
    standard deviations, and if both stand on at least ``MIN_SEEDS`` seeds. Where all seeds of both
    gave one number, no draw entered, and there is no spread that a gap could exceed.

    >>> clear_winner({0: Stat(0.91, 0.01, 3), 1: Stat(0.88, 0.02, 3)}, "higher")
    0
    >>> clear_winner({0: Stat(0.91, 0.01, 3), 1: Stat(0.90, 0.02, 3)}, "higher") is None
    True
    >>> clear_winner({0: Stat(0.91, 0.0, 3), 1: Stat(0.88, 0.0, 3)}, "higher") is None
    True
    """
    there = {key: stat for key, stat in stats.items() if isinstance(stat, Stat)}
    if len(there) < 2:
        return None
    order = sorted(there, key=lambda key: there[key].mean, reverse=better == "higher")
    best, second = there[order[0]], there[order[1]]
    if min(best.n, second.n) < MIN_SEEDS or best.std is None or second.std is None:
        return None
    spread = max(best.std, second.std)
    return order[0] if 0 < spread < abs(best.mean - second.mean) else None
