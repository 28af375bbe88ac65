"""Crossover: a child's genes from two parents, a locus at a time. Deaf to what a locus holds."""

import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

Locus = TypeVar("Locus")


def break_point(a: Sequence[Locus], b: Sequence[Locus], point: float) -> tuple[Locus, ...]:
    """Loci 1 to ``ceil(point * L)`` of ``a``, the rest of ``b`` (paper K, stage 4).

    >>> break_point("aaaaa", "bbbbb", 0.6)
    ('a', 'a', 'a', 'b', 'b')
    """
    # A product that is whole but for rounding counts as whole: 0.6 of 5 is 3.
    first = math.ceil(round(point * len(a), 9))
    return (*a[:first], *b[first:])


def uniform(
    a: Sequence[Locus], b: Sequence[Locus], generator: np.random.Generator
) -> tuple[Locus, ...]:
    """Every locus of either parent, by a fair coin."""
    heads = generator.random(len(a)) < 0.5
    return tuple(x if head else y for x, y, head in zip(a, b, heads, strict=True))
