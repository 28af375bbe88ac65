"""Costs of a cut network as formulas of the units that stay: sums of products of sizes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from prunus.graph.labels import Atoms
from prunus.plan import BoolArray, IntArray

# A constant, and the ids of the atoms in each labelled dim that it is multiplied with.
Term = tuple[int, Sequence[IntArray]]


@dataclass(frozen=True, eq=False)
class Formula:
    """Sum over terms of ``constant * size * size ...``, each size linear in the units that stay.

    Attributes:
        fixed: Of each size, what no cut takes away.
        counts: Of each size, how many of its channels a unit has. [sizes, units]
        products: Of each term its constant, and which sizes it is multiplied with.
    """

    fixed: IntArray
    counts: sparse.csr_matrix
    products: tuple[tuple[int, tuple[int, ...]], ...]

    def value(self, keep: BoolArray) -> int:
        """The sum, exact, where ``keep`` [units] says what stays."""
        size = (self.fixed + self.counts @ keep.astype(np.int64)).tolist()
        total = 0
        for constant, at in self.products:
            term = constant
            for row in at:
                term *= size[row]
            total += term
        return total


def formula_of(
    terms: Sequence[Term], atoms: Atoms, unit_of: Mapping[int, int], units: int
) -> Formula:
    """The formula of terms whose dims are labelled.

    Args:
        terms: Of the sum.
        atoms: Which atoms are one.
        unit_of: Number of the unit that a class of atoms is of; classes without one always stay.
        units: How many there are.
    """
    sizes: list[IntArray] = []
    seen: dict[bytes, int] = {}
    products = []
    for constant, dims in terms:
        at = []
        for ids in dims:
            roots = np.sort(atoms.find(ids).ravel())
            key = roots.tobytes()
            if key not in seen:
                seen[key] = len(sizes)
                sizes.append(roots)
            at.append(seen[key])
        products.append((constant, tuple(at)))
    fixed, counts = _linear(sizes, unit_of, units)
    return Formula(fixed, counts, tuple(products))


def _linear(
    sizes: Sequence[IntArray], unit_of: Mapping[int, int], units: int
) -> tuple[IntArray, sparse.csr_matrix]:
    """Sizes, each given by the classes of its channels, as ``fixed + counts @ keep``."""
    fixed = np.zeros(len(sizes), dtype=np.int64)
    rows, columns, values = [], [], []
    for row, roots in enumerate(sizes):
        classes, counts = np.unique(roots, return_counts=True)
        for root, count in zip(classes.tolist(), counts.tolist(), strict=True):
            unit = unit_of.get(root)
            if unit is None:
                fixed[row] += count
            else:
                rows.append(row)
                columns.append(unit)
                values.append(count)
    shape = (len(sizes), units)
    return fixed, sparse.csr_matrix((values, (rows, columns)), shape=shape, dtype=np.int64)
