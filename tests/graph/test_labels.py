"""The label algebra against brute force: index arrays that numpy reshapes and broadcasts."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunus.graph.labels import FIXED, Algebra, Atoms, Factor, Labels

Ints = npt.NDArray[np.int64]


def spread(factor: Factor, shape: Sequence[int]) -> Ints:
    """A factor's labels at every position of the tensor."""
    wide = [shape[d] if d in factor.dims else 1 for d in range(len(shape))]
    return np.broadcast_to(factor.ids.reshape(wide), tuple(shape))


@st.composite
def shapes(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    """Two shapes of the same number of elements, each a merging of one row of small sizes."""
    sizes = draw(st.lists(st.sampled_from([1, 2, 3]), min_size=1, max_size=5))

    def merged() -> list[int]:
        dims = [sizes[0]]
        for size in sizes[1:]:
            if draw(st.booleans()):
                dims[-1] *= size
            else:
                dims.append(size)
        return dims

    return merged(), merged()


@given(shapes(), st.data())
def test_reshape_of_one_factor_moves_every_label_along(
    pair: tuple[list[int], list[int]], data: st.DataObject
) -> None:
    old, new = pair
    dims = [d for d, size in enumerate(old) if size > 1 and data.draw(st.booleans())]
    if not dims:
        return
    algebra = Algebra()
    size = math.prod(old[d] for d in dims)
    ids = algebra.atoms.new(size).reshape([old[d] for d in dims])
    factor = Factor(tuple(dims), ids)
    labels = algebra.reshape(Labels((factor,), "w"), old, new, "")
    expected = spread(factor, old).reshape(new)
    assert labels.param == "w"
    assert len(labels.factors) == 1
    assert np.array_equal(spread(labels.factors[0], new), expected)
    moving = tuple(d for d in range(len(new)) if (expected != expected.take([0], axis=d)).any())
    assert labels.factors[0].dims == moving
    assert (algebra.atoms.resolve(ids) == ids).all()  # a view alone couples and fixes nothing


@given(shapes(), st.data())
def test_reshape_of_several_factors_keeps_each_right_or_fixes_it(
    pair: tuple[list[int], list[int]], data: st.DataObject
) -> None:
    old, new = pair
    algebra = Algebra()
    factors = [
        Factor((d,), algebra.atoms.new(size))
        for d, size in enumerate(old)
        if size > 1 and data.draw(st.booleans())
    ]
    labels = algebra.reshape(Labels(tuple(factors)), old, new, "merged")
    seen = [d for f in labels.factors for d in f.dims]
    assert len(seen) == len(set(seen))
    for factor in factors:
        found = [f for f in labels.factors if np.isin(f.ids, factor.ids).all()]
        if found:
            assert np.array_equal(spread(found[0], new), spread(factor, old).reshape(new))
            assert (algebra.atoms.resolve(factor.ids) != FIXED).all()
        else:
            assert (algebra.atoms.resolve(factor.ids) == FIXED).all()
            assert algebra.atoms.reason(int(factor.ids[0])) == "merged"
    if factors:
        assert labels.factors, "the outermost of merged factors stays open"


def test_of_two_merged_dims_the_outer_one_stays_open() -> None:
    algebra = Algebra()
    outer, inner = algebra.atoms.new(2), algebra.atoms.new(3)
    both = Labels((Factor((0,), outer), Factor((1,), inner)))
    merged = algebra.reshape(both, (2, 3), (6,), "")
    assert [f.dims for f in merged.factors] == [(0,)]
    assert merged.factors[0].ids.tolist() == outer.repeat(3).tolist()
    assert (algebra.atoms.resolve(inner) == FIXED).all()


def test_an_outer_dim_that_is_fixed_leaves_the_inner_one_open() -> None:
    algebra = Algebra()
    outer, inner = algebra.atoms.new(2), algebra.atoms.new(3)
    algebra.atoms.pin(outer, "stays")
    both = Labels((Factor((0,), outer), Factor((1,), inner)))
    merged = algebra.reshape(both, (2, 3), (6,), "")
    assert merged.factors[0].ids.tolist() == [*inner, *inner]
    assert (algebra.atoms.resolve(inner) != FIXED).all()


def test_heads_split_and_merge_back() -> None:
    algebra = Algebra()
    ids = algebra.atoms.new(6)
    split = algebra.reshape(Labels((Factor((1,), ids),)), (5, 6), (5, 2, 3), "")
    assert split.factors[0].dims == (1, 2)
    assert np.array_equal(split.factors[0].ids, ids.reshape(2, 3))
    moved = split.moved({0: 0, 1: 2, 2: 1})
    assert np.array_equal(moved.factors[0].ids, ids.reshape(2, 3).T)
    merged = algebra.reshape(moved, (5, 3, 2), (5, 6), "")
    assert merged.factors[0].ids.tolist() == ids.reshape(2, 3).T.ravel().tolist()


@given(st.data())
def test_elementwise_couples_what_meets_and_fixes_what_meets_nothing(data: st.DataObject) -> None:
    """Every operand dim is labelled, bare, or of size 1 (broadcast); sizes of the result: 3."""
    n = data.draw(st.integers(1, 3))
    algebra = Algebra()
    operands: list[tuple[Labels, tuple[int, ...]]] = []
    kinds: list[list[str]] = []
    for _ in range(data.draw(st.integers(1, 3))):
        rank = data.draw(st.integers(1, n))
        kind = data.draw(
            st.lists(st.sampled_from(["label", "bare", "one"]), min_size=rank, max_size=rank)
        )
        factors = tuple(
            Factor((d,), algebra.atoms.new(3)) for d, k in enumerate(kind) if k == "label"
        )
        operands.append((Labels(factors), tuple(1 if k == "one" else 3 for k in kind)))
        kinds.append(["none"] * (n - rank) + kind)
    out = np.broadcast_shapes(*(shape for _, shape in operands), (1,) * n)
    labels = algebra.elementwise(operands, out, "bare")
    for dim in range(n):
        met = [
            f.ids
            for (ls, shape) in operands
            for f in ls.factors
            if f.dims == (dim - (n - len(shape)),)
        ]
        here = labels.on(dim)
        if not met:
            assert here is None
            continue
        assert here is not None
        roots = [algebra.atoms.resolve(ids).tolist() for ids in (*met, here.ids)]
        assert all(r == roots[0] for r in roots)
        if any(k[dim] == "bare" for k in kinds):
            assert set(roots[0]) == {FIXED}
        else:
            assert len(set(roots[0])) == 3
            assert FIXED not in roots[0]


def joint() -> tuple[Algebra, Ints, Labels]:
    algebra = Algebra()
    ids = algebra.atoms.new(6).reshape(2, 3)
    return algebra, ids, Labels((Factor((0, 1), ids),))


def test_joint_factor_collapses_onto_one_dim() -> None:
    algebra, ids, labels = joint()
    labels = algebra.collapse(labels, labels.factors[0], 0, "")
    roots = algebra.atoms.find(ids)
    assert labels.factors[0].dims == (0,)
    assert (roots == roots[:, :1]).all()
    assert roots[0, 0] != roots[1, 0]
    assert algebra.atoms.find(labels.factors[0].ids).tolist() == roots[:, 0].tolist()


@pytest.mark.parametrize("labelled", [True, False])
def test_joint_factor_that_meets_a_lone_dim(labelled: bool) -> None:
    """A labelled lone dim decides what is cut; a bare one keeps its size, the other dim is cut."""
    algebra, ids, labels = joint()
    other = Labels((Factor((1,), algebra.atoms.new(3)),)) if labelled else Labels()
    result = algebra.elementwise([(labels, (2, 3)), (other, (1, 3))], (2, 3), "")
    roots = algebra.atoms.resolve(ids)
    if labelled:
        assert (roots == roots[:1]).all()
        assert len(set(roots[0].tolist())) == 3
        assert algebra.atoms.resolve(other.factors[0].ids).tolist() == roots[0].tolist()
    else:
        assert (roots == roots[:, :1]).all()
        assert len(set(roots[:, 0].tolist())) == 2
    assert FIXED not in roots
    assert [f.dims for f in result.factors] == [(1,) if labelled else (0,)]


def test_weak_labels_do_not_decide_how_heads_collapse() -> None:
    """A buffer over head width (rotary angles) leaves whole heads to be cut."""
    algebra, ids, labels = joint()
    buffer = Labels((Factor((1,), algebra.atoms.new(3, weak=True)),))
    algebra.elementwise([(labels, (2, 3)), (buffer, (1, 3))], (2, 3), "angles")
    roots = algebra.atoms.resolve(ids)
    assert (roots == roots[:, :1]).all()
    assert roots[0, 0] != roots[1, 0]
    assert FIXED not in roots


def test_joint_factor_that_meets_a_whole_bare_operand_is_fixed() -> None:
    algebra, ids, labels = joint()
    algebra.elementwise([(labels, (2, 3)), (Labels(), (2, 3))], (2, 3), "bare")
    assert (algebra.atoms.resolve(ids) == FIXED).all()


def test_keep_size_takes_a_dim_from_a_joint_factor_and_fixes_a_single_one() -> None:
    algebra, ids, labels = joint()
    left = algebra.keep_size(labels, 0, "kept")
    roots = algebra.atoms.resolve(ids)
    assert (roots == roots[:1]).all()
    assert len(set(roots[0].tolist())) == 3
    assert [f.dims for f in left.factors] == [(1,)]
    none = algebra.keep_size(left, 1, "kept")
    assert none.factors == ()
    assert (algebra.atoms.resolve(ids) == FIXED).all()
    assert {algebra.atoms.reason(int(a)) for a in ids.ravel()} == {"kept"}


def test_simplify_drops_dims_along_which_nothing_varies() -> None:
    algebra, ids, labels = joint()
    algebra.atoms.union(ids[0], ids[1])
    slim = algebra.simplify(labels)
    assert [f.dims for f in slim.factors] == [(1,)]
    assert algebra.own_column(ids) is None
    assert algebra.own_column(ids.T) is not None


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), max_size=15))
def test_union_find_against_sets(pairs: list[tuple[int, int]]) -> None:
    atoms = Atoms()
    ids = atoms.new(9)
    groups = [{k} for k in range(10)]
    for a, b in pairs:
        atoms.union(np.array([a]), np.array([b]))
        one, other = (next(g for g in groups if k in g) for k in (a, b))
        if one is not other:
            groups.remove(other)
            one |= other
    fixed = next(g for g in groups if FIXED in g)
    for a in ids.tolist():
        mine = next(g for g in groups if a in g)
        assert (atoms.resolve(np.array([a]))[0] == FIXED) == (mine is fixed)
        if mine is not fixed:
            same = [
                b
                for b in range(1, 10)
                if atoms.find(np.array([b]))[0] == atoms.find(np.array([a]))[0]
            ]
            assert set(same) == mine


def test_reason_survives_later_unions_either_way() -> None:
    atoms = Atoms()
    a, b, c = atoms.new(3).tolist()
    atoms.pin(np.array([b]), "why")
    atoms.union(np.array([a]), np.array([b]))
    atoms.union(np.array([c]), np.array([a]))
    assert [atoms.reason(k) for k in (a, b, c)] == ["why"] * 3


def test_frozen_atoms_ignore_unions() -> None:
    atoms = Atoms()
    ids = atoms.new(3)
    atoms.frozen = True
    atoms.union(ids[:1], ids[1:])
    atoms.pin(ids, "late")
    assert atoms.resolve(ids).tolist() == ids.tolist()
