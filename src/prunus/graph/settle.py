"""What follows from a walk as a whole: sizes that stay, that stay equal, and views that stay rectangles."""

from collections.abc import Sequence

import numpy as np

from prunus.graph.findings import AttributeUse, Findings
from prunus.graph.labels import FIXED, Algebra, varies
from prunus.graph.traced_numbers import Origin
from prunus.plan import IntArray


def note_numbers(findings: Findings, scalars: Sequence[Origin]) -> None:
    """What a formula computes with must not change: an attribute, or the size of a dim.

    A number that is seen only as a multiple, in the sizes of views, is as long as each part of these;
    of one that is seen nowhere its name and value may tell.
    """
    findings.attributes += _untold(findings, findings.multiples)
    findings.presumed = _untold(findings, findings.presumed)
    uses = [*findings.attributes, *findings.presumed]
    sizes = {(u.module, u.attribute): u.value for u in uses}
    for origin in scalars:
        if isinstance(origin, tuple):
            findings.formulas.add(origin)
            if origin in sizes:
                findings.attributes.append(AttributeUse(*origin, sizes[origin], None))
        else:
            findings.whole.append(origin)


def _untold(findings: Findings, uses: Sequence[AttributeUse]) -> list[AttributeUse]:
    """Those of numbers that nothing else tells of."""
    told = {(use.module, use.attribute) for use in findings.attributes}
    return [use for use in uses if (use.module, use.attribute) not in told]


def settle(algebra: Algebra, findings: Findings) -> None:
    """Unite until every view stays a full rectangle and every attribute has one meaning."""
    _unite(algebra, findings)
    # What is presumed of a dim that is not the one cut, as of heads' width, was a chance likeness.
    likely = [
        use
        for use in findings.presumed
        if use.ids is not None and algebra.own_column(use.ids) is not None
    ]
    if likely:
        findings.attributes += likely
        _unite(algebra, findings)


def _unite(algebra: Algebra, findings: Findings) -> None:
    joints = {(ids.shape, ids.tobytes()): ids for ids in findings.joints}
    while True:
        before = algebra.atoms.find(np.arange(algebra.atoms.size)).copy()
        fixed = int((algebra.atoms.resolve(before) == FIXED).sum())
        for ids in joints.values():
            _make_rectangular(algebra, ids)
        _agree_on_attributes(algebra, findings)
        for ids in findings.whole:
            column = algebra.own_column(ids)
            if column is not None:
                algebra.atoms.pin(column, "its size is used as a number in a formula")
        for left, right in findings.same_size:
            _make_equal(algebra, left, right)
        after = algebra.atoms.find(np.arange(algebra.atoms.size))
        if np.array_equal(before, after) and fixed == int(
            (algebra.atoms.resolve(after) == FIXED).sum()
        ):
            return


def _make_equal(algebra: Algebra, left: IntArray, right: IntArray) -> None:
    """Two dims of one size stay of one size: the same positions go, or none."""
    a, b = algebra.own_column(left), algebra.own_column(right)
    if a is not None and b is not None:
        # The same units in another order are equally many whatever is cut.
        if not np.array_equal(np.sort(algebra.atoms.resolve(a)), np.sort(algebra.atoms.resolve(b))):
            algebra.atoms.union(a, b)
    elif a is not None:
        algebra.atoms.pin(a, "is given a size that cannot change")
    elif b is not None:
        algebra.atoms.pin(b, "is given a size that cannot change")


def _make_rectangular(algebra: Algebra, ids: IntArray) -> None:
    """A joint label must end up depending on one dim alone: the longest that varies."""
    roots = algebra.atoms.resolve(ids)
    varying = [axis for axis in range(ids.ndim) if varies(roots, axis)]
    if len(varying) < 2:
        return
    stays = max(varying, key=lambda axis: ids.shape[axis])
    rows = np.moveaxis(ids, stays, 0).reshape(ids.shape[stays], -1)
    algebra.atoms.union(rows[:, 1:], rows[:, :1], "a view needs a full rectangle")


def _agree_on_attributes(algebra: Algebra, findings: Findings) -> None:
    uses: dict[tuple[str, str], list[IntArray | None]] = {}
    for use in findings.attributes:
        ids = None if use.ids is None else algebra.own_column(use.ids)
        uses.setdefault((use.module, use.attribute), []).append(ids)
    for (module, attribute), arrays in uses.items():
        labelled = [ids for ids in arrays if ids is not None]
        reason = f"'{attribute}' of '{module}' serves several sizes"
        for ids in labelled[1:]:
            algebra.atoms.union(labelled[0], ids, reason)
        if labelled and len(labelled) < len(arrays):
            algebra.atoms.pin(labelled[0], reason)
