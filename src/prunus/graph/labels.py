"""Who is coupled to whom: labels that travel through a network along with its tensors.

Every position of every dimension of every parameter gets an *atom*. An operation carries atoms from
its inputs to its outputs and unites those that must live or die together (the two sides of an
addition, a filter and the kernel slices that read it). What is united at the end of one forward pass
is one coupled unit. Atom ``FIXED`` (0) stands for all that cannot be cut.

A tensor's labels are *factors*: a factor covers one dimension, or several jointly (after a view
splits 768 into 12 heads x 64, the label of a position depends on both). A joint factor is *collapsed*
onto one of its dimensions by the first operation that needs the others whole: so whole heads go.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from prunus.plan import IntArray

FIXED = 0
# Reasons of what is no channel at all, or is meant to stay: not worth telling a user as a refusal.
KERNEL = "it is a kernel dimension"
LOOKUP = "its rows are looked up by number"
OUTPUT = "it is an output of the network"
SINGLE = "a single unit: nothing to choose"
IGNORED = "left out by ignore"
PROTECTED = frozenset({KERNEL, LOOKUP, OUTPUT, SINGLE, IGNORED})


class Atoms:
    """Union-find over atoms; a class can be fixed, with a reason.

    A frozen instance ignores unions: the masked run walks the same rules and changes nothing.
    """

    def __init__(self) -> None:
        self._parent = np.zeros(1, dtype=np.int64)
        self._weak = np.zeros(1, dtype=bool)
        # Per representative: 0 while its class is free, else the number of the reason that fixed it.
        self._why = np.ones(1, dtype=np.int64)
        self._reasons = ["", "no parameter decides its size"]
        self._size = 1
        self.frozen = False

    @property
    def size(self) -> int:
        """How many atoms there are, ``FIXED`` included."""
        return self._size

    def new(self, n: int, *, weak: bool = False) -> IntArray:
        """``n`` fresh atoms, shape ``[n]``; weak ones (a buffer's) never decide how heads collapse."""
        first = self._size
        self._size += n
        if self._size > self._parent.size:
            grown = np.arange(max(self._size, 2 * self._parent.size), dtype=np.int64)
            grown[: self._parent.size] = self._parent
            more = grown.size - self._parent.size
            self._parent = grown
            self._weak = np.concatenate([self._weak, np.zeros(more, dtype=bool)])
            self._why = np.concatenate([self._why, np.zeros(more, dtype=np.int64)])
        self._weak[first : self._size] = weak
        return np.arange(first, first + n, dtype=np.int64)

    def find(self, ids: IntArray) -> IntArray:
        """The representative of the class of each atom."""
        roots = self._parent[ids]
        while True:
            above = self._parent[roots]
            if np.array_equal(above, roots):
                break
            roots = above
        if not self.frozen:
            self._parent[ids] = roots
        return roots

    def weak(self, ids: IntArray) -> bool:
        """Whether all these atoms were born on buffers (or are fixed)."""
        return bool((self._weak[ids] | (ids == FIXED)).all())

    def resolve(self, ids: IntArray) -> IntArray:
        """As ``find``, but ``FIXED`` for every class that cannot be cut."""
        roots = self.find(ids)
        return np.where(self._why[roots] > 0, FIXED, roots)

    def reason(self, atom: int) -> str:
        """Why the class of this atom is fixed; empty when it is not."""
        return self._reasons[int(self._why[self._root(atom)])]

    def union(self, a: IntArray, b: IntArray, reason: str = "") -> None:
        """Unite element by element (shapes broadcast); what meets ``FIXED`` becomes fixed."""
        if self.frozen:
            return
        left, right = np.broadcast_arrays(a, b)
        roots = np.sort(np.stack([self.find(left.ravel()), self.find(right.ravel())]), axis=0)
        fixing = roots[0] == FIXED
        if fixing.any():
            self._fix(np.unique(roots[1, fixing]), reason or "meets a size that cannot change")
        pairs = np.unique(roots[:, ~fixing & (roots[0] != roots[1])], axis=1)
        for x, y in pairs.T.tolist():
            low, high = sorted((self._root(x), self._root(y)))
            if low != high:
                self._parent[high] = low
                if not self._why[low]:
                    self._why[low] = self._why[high]

    def pin(self, ids: IntArray, reason: str) -> None:
        """Declare that these atoms cannot be cut."""
        self.union(ids, np.zeros(1, dtype=np.int64), reason)

    def _fix(self, roots: IntArray, reason: str) -> None:
        free = roots[self._why[roots] == 0]
        if free.size:
            if reason not in self._reasons:
                self._reasons.append(reason)
            self._why[free] = self._reasons.index(reason)

    def _root(self, atom: int) -> int:
        while self._parent[atom] != atom:
            atom = int(self._parent[atom])
        return atom


@dataclass(frozen=True)
class Factor:
    """Labels over ``dims`` (ascending) of a tensor; ``ids`` has the sizes of these dims as shape."""

    dims: tuple[int, ...]
    ids: IntArray


@dataclass(frozen=True)
class Labels:
    """All factors of a tensor (disjoint dims), and the parameter it is a mere view or cast of."""

    factors: tuple[Factor, ...] = ()
    param: str | None = None

    def on(self, dim: int) -> Factor | None:
        """The factor that covers ``dim``, if any."""
        return next((f for f in self.factors if dim in f.dims), None)

    def moved(self, new_dim: dict[int, int], *, keep_param: bool = True) -> "Labels":
        """Labels after dims were renumbered; factors of dims that vanished must be gone already."""
        factors = []
        for f in self.factors:
            order = np.argsort([new_dim[d] for d in f.dims])
            dims = tuple(sorted(new_dim[d] for d in f.dims))
            factors.append(Factor(dims, f.ids.transpose(order)))
        return Labels(tuple(factors), self.param if keep_param else None)


NONE = Labels()


@dataclass
class Algebra:
    """The moves on labels that the rules of single operations are made of."""

    atoms: Atoms = field(default_factory=Atoms)

    def collapse(self, labels: Labels, factor: Factor, onto: int, reason: str) -> Labels:
        """Make a joint factor depend on ``onto`` alone: its other dims keep their size."""
        axis = factor.dims.index(onto)
        ids = np.moveaxis(factor.ids, axis, 0).reshape(factor.ids.shape[axis], -1)
        self.atoms.union(ids[:, 1:], ids[:, :1], reason)
        single = Factor((onto,), ids[:, 0].copy())
        return Labels(tuple(single if f is factor else f for f in labels.factors), labels.param)

    def keep_size(self, labels: Labels, dim: int, reason: str) -> Labels:
        """``dim`` cannot shrink: a joint factor loses it, else it is fixed."""
        factor = labels.on(dim)
        if factor is None:
            return labels
        if len(factor.dims) > 1:
            ids = np.moveaxis(factor.ids, factor.dims.index(dim), 0)
            self.atoms.union(ids[1:], ids[:1], reason)
            left = Factor(tuple(d for d in factor.dims if d != dim), ids[0])
            return Labels(tuple(left if f is factor else f for f in labels.factors), labels.param)
        self.atoms.pin(factor.ids, reason)
        return Labels(tuple(f for f in labels.factors if f is not factor), labels.param)

    def pin_all(self, labels: Labels, reason: str) -> None:
        """Nothing of this tensor can be cut."""
        for factor in labels.factors:
            self.atoms.pin(factor.ids, reason)

    def own_column(self, ids: IntArray) -> IntArray | None:
        """Labels of a dim (axis 0 of ``ids``); None where another dim of a joint label is the one cut."""
        roots = self.atoms.resolve(ids)
        if any(varies(roots, axis) for axis in range(1, roots.ndim)):
            return None
        return ids.reshape(roots.shape[0], -1)[:, 0]

    def simplify(self, labels: Labels) -> Labels:
        """Drop from joint factors the dims along which nothing varies any more."""
        if all(len(f.dims) == 1 for f in labels.factors):
            return labels
        factors = []
        for f in labels.factors:
            dims, ids = list(f.dims), f.ids
            roots = self.atoms.find(ids)
            for axis in reversed(range(len(dims))):
                if len(dims) > 1 and not varies(roots, axis):
                    ids, roots = _first(ids, axis), _first(roots, axis)
                    del dims[axis]
            factors.append(Factor(tuple(dims), ids))
        return Labels(tuple(factors), labels.param)

    def single(self, labels: Labels, dim: int, reason: str) -> tuple[Labels, IntArray | None]:
        """The labels of ``dim`` alone, shape ``[size]``, collapsing a joint factor onto it."""
        factor = labels.on(dim)
        if factor is None:
            return labels, None
        if len(factor.dims) > 1:
            labels = self.collapse(labels, factor, dim, reason)
            factor = labels.on(dim)
        return labels, None if factor is None else factor.ids

    def elementwise(
        self, operands: Sequence[tuple[Labels, Sequence[int]]], out: Sequence[int], reason: str
    ) -> Labels:
        """Labels of a broadcasting operation: what meets at a position is coupled.

        Args:
            operands: Labels and shape of each tensor operand.
            out: Shape of the result.
            reason: Why something is fixed when it meets a dimension without labels.
        """
        n = len(out)
        aligned: list[Labels] = []
        big: list[set[int]] = []
        for labels, shape in operands:
            shift = n - len(shape)
            aligned.append(
                labels.moved({d: d + shift for d in range(len(shape))}, keep_param=False)
            )
            big.append({d + shift for d, size in enumerate(shape) if size > 1})
        self._settle_joint(aligned, big, reason)
        result: list[Factor] = []
        done: set[tuple[int, ...]] = set()
        for dims in [f.dims for labels in aligned for f in labels.factors]:
            if dims in done:
                continue
            done.add(dims)
            here = [f.ids for labels in aligned for f in labels.factors if f.dims == dims]
            for other in here[1:]:
                self.atoms.union(here[0], other)
            bare = any(
                big[i] & set(dims) and not any(f.dims == dims for f in labels.factors)
                for i, labels in enumerate(aligned)
            )
            if bare:
                self.atoms.pin(here[0], reason)
            result.append(Factor(dims, here[0]))
        return Labels(tuple(result))

    def _settle_joint(self, aligned: list[Labels], big: list[set[int]], reason: str) -> None:
        """Collapse joint factors that meet an operand which sees only some of their dims."""
        while True:
            clash = self._find_clash(aligned, big)
            if clash is None:
                return
            i, factor, onto = clash
            aligned[i] = self.collapse(aligned[i], factor, onto, reason)

    def _find_clash(
        self, aligned: list[Labels], big: list[set[int]]
    ) -> tuple[int, Factor, int] | None:
        for i, labels in enumerate(aligned):
            for f in (f for f in labels.factors if len(f.dims) > 1):
                for j, other in enumerate(aligned):
                    seen = big[j] & set(f.dims)
                    if j == i or not seen or any(g.dims == f.dims for g in other.factors):
                        continue
                    # A lone labelled dim on the other side decides; a lone bare one must stay whole.
                    lone = next(iter(seen)) if len(seen) == 1 else f.dims[0]
                    met = other.on(lone)
                    if len(seen) == 1 and (met is None or self.atoms.weak(met.ids)):
                        lone = next(d for d in f.dims if d not in seen)
                    return i, f, lone
        return None

    def reshape(
        self, labels: Labels, old: Sequence[int], new: Sequence[int], reason: str
    ) -> Labels:
        """Labels after a view from shape ``old`` to shape ``new``."""
        factors = [({("old", d): k for k, d in enumerate(f.dims)}, f.ids) for f in labels.factors]
        for inner_old, inner_new in _blocks(old, new):
            touched = [
                i for i, (at, _) in enumerate(factors) if any(("old", d) in at for d in inner_old)
            ]
            if len(touched) > 1 and (len(inner_old) > 1 or len(inner_new) > 1):
                # Two independent labellings merged into one dim cannot be told apart: as with heads,
                # the outer one stays open and the inner one keeps its size. What is fixed is no rival.
                live = [i for i in touched if self.atoms.resolve(factors[i][1]).any()] or touched
                first = min(live, key=lambda i: min(d for _, d in factors[i][0]))
                for i in touched:
                    if i != first:
                        self.atoms.pin(factors[i][1], reason)
                kept = factors[first]
                factors = [f for i, f in enumerate(factors) if i == first or i not in touched]
                touched = [next(i for i, f in enumerate(factors) if f is kept)]
            for i in touched:
                factors[i] = self._reshape_block(factors[i], inner_old, inner_new, old, new)
        result = []
        for at, ids in factors:
            names = sorted(at, key=lambda name: name[1])
            if names:
                result.append(
                    Factor(tuple(n[1] for n in names), ids.transpose([at[n] for n in names]))
                )
        return Labels(tuple(result), labels.param)

    def _reshape_block(
        self,
        factor: tuple[dict[tuple[str, int], int], IntArray],
        inner_old: Sequence[int],
        inner_new: Sequence[int],
        old: Sequence[int],
        new: Sequence[int],
    ) -> tuple[dict[tuple[str, int], int], IntArray]:
        at, ids = factor
        outer = [name for name in at if name[0] == "new" or name[1] not in inner_old]
        inner = [("old", d) for d in inner_old if ("old", d) in at]
        moved = ids.transpose([at[n] for n in outer + inner])
        lead = moved.shape[: len(outer)]
        full = moved.reshape(lead + tuple(old[d] if ("old", d) in at else 1 for d in inner_old))
        full = np.broadcast_to(full, lead + tuple(old[d] for d in inner_old))
        full = full.reshape(lead + tuple(new[d] for d in inner_new))
        names = outer + [("new", d) for d in inner_new]
        for axis in reversed(range(len(outer), len(names))):
            if not varies(self.atoms.find(full), axis):
                full = _first(full, axis)
                del names[axis]
        return {name: k for k, name in enumerate(names)}, full


def varies(roots: IntArray, axis: int) -> bool:
    """Whether any entries differ along an axis."""
    return bool((roots != roots.take([0], axis=axis)).any())


def _first(ids: IntArray, axis: int) -> IntArray:
    moved: IntArray = np.moveaxis(ids, axis, 0)
    return np.asarray(moved[0])


def _blocks(old: Sequence[int], new: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Smallest runs of dims with equal products on both sides; dims of size 1 carry nothing."""
    left = [d for d, size in enumerate(old) if size != 1]
    right = [d for d, size in enumerate(new) if size != 1]
    blocks = []
    while left and right:
        a, b = [left.pop(0)], [right.pop(0)]
        size_a, size_b = old[a[0]], new[b[0]]
        while size_a != size_b:
            if size_a < size_b:
                a.append(left.pop(0))
                size_a *= old[a[-1]]
            else:
                b.append(right.pop(0))
                size_b *= new[b[-1]]
        blocks.append((a, b))
    return blocks
