"""Label rules of views: operations that only arrange positions anew."""

from typing import Any

import numpy as np
import torch

from prunus.graph.labels import FIXED, Factor, Labels
from prunus.graph.traced_numbers import TracedInt
from prunus.graph.walk import Walk, rule
from prunus.plan import IntArray


@rule(
    *("view", "_unsafe_view", "reshape", "_reshape_alias"),
    *("unsqueeze", "unsqueeze_", "squeeze", "squeeze_"),
)
def view(walk: Walk, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Any change of shape that keeps the order of elements."""
    labels, before = walk.labels(args[0]), tuple(args[0].shape)  # which in-place ones change
    out = func(*args, **kwargs)
    if labels.factors and tuple(out.shape) != before:
        reason = walk.reason("view", "merges two dimensions that could both be cut")
        labels = walk.algebra.reshape(labels, before, out.shape, reason)
    walk.mark(out, labels)
    return out


@rule("t", "transpose", "permute", "transpose_", "movedim")
def permute(walk: Walk, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Dims change places."""
    out = func(*args, **kwargs)
    n = args[0].dim()
    order = list(range(n))
    name = func.overloadpacket.__name__
    if name == "permute":
        order = [d % n for d in args[1]]
    elif n > 1:
        a, b = (0, 1) if name == "t" else (args[1] % n, args[2] % n)
        order[a], order[b] = order[b], order[a]
    walk.mark(out, walk.labels(args[0]).moved({old: new for new, old in enumerate(order)}))
    return out


@rule("expand", "broadcast_to")
def expand(walk: Walk, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """New leading dims; dims of size 1 grow and carry no labels."""
    out = func(*args, **kwargs)
    shift = out.dim() - args[0].dim()
    walk.mark(out, walk.labels(args[0]).moved({d: d + shift for d in range(args[0].dim())}))
    return out


@rule("repeat")
def repeat(walk: Walk, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Copies along dims: positions repeat their labels."""
    out = func(*args, **kwargs)
    labels, times = walk.labels(args[0]), args[1]
    shift = len(times) - args[0].dim()
    factors = []
    for f in labels.factors:
        tiles = [times[d + shift] for d in f.dims]
        factors.append(Factor(tuple(d + shift for d in f.dims), np.tile(f.ids, tiles)))
    walk.mark(out, Labels(tuple(factors)))
    return out


@rule("select")
def select(walk: Walk, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """One position of a dim."""
    out = func(*args, **kwargs)
    dim = args[1] % args[0].dim()
    _mark_position(walk, args[0], dim, args[2], out)
    return out


@rule("unbind")
def unbind(walk: Walk, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """All positions of a dim, one tensor each."""
    out = func(*args, **kwargs)
    dim = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % args[0].dim()
    for position, part in enumerate(out):
        _mark_position(walk, args[0], dim, position, part)
    return out


def _mark_position(
    walk: Walk, source: torch.Tensor, dim: int, position: int, picked: torch.Tensor
) -> None:
    labels = walk.labels(source)
    factor = labels.on(dim)
    if factor is not None:
        rest: tuple[Factor, ...] = ()
        if len(factor.dims) == 1:
            reason = walk.reason("select", "picks positions by number")
            walk.pin_when_read(picked, factor.ids, reason)
        else:
            axis = factor.dims.index(dim)
            dims = tuple(d for d in factor.dims if d != dim)
            rest = (Factor(dims, np.moveaxis(factor.ids, axis, 0)[position]),)
        labels = Labels(tuple(f for f in labels.factors if f is not factor) + rest, labels.param)
    n = source.dim()
    walk.mark(picked, labels.moved({d: d - (d > dim) for d in range(n) if d != dim}))


_BY_NUMBERS = "cuts a range by numbers with no known origin; use chunk, or an attribute (self.n)"


@rule("slice")
def slice_(walk: Walk, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A range of positions of a dim."""
    out = func(*args, **kwargs)
    dim = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % args[0].dim()
    start = args[2] if len(args) > 2 else kwargs.get("start")
    step = args[4] if len(args) > 4 else kwargs.get("step", 1)
    size = args[0].shape[dim]
    first = min(max((start or 0) + (size if (start or 0) < 0 else 0), 0), size)
    picked = np.arange(first, size, step or 1)[: out.shape[dim]]
    # Ends that were traced follow what stays before them (told to the walk).
    followed = walk.split_sizes == [first, first + len(picked)]
    if not followed and step in (None, 1):
        end = args[3] if len(args) > 3 else kwargs.get("end")
        followed = _ends_at_fixed(walk, walk.labels(args[0]).on(dim), dim, (start, end))
    walk.mark(out, _take_range(walk, walk.labels(args[0]), dim, picked, followed=followed))
    return out


def _ends_at_fixed(
    walk: Walk, factor: Factor | None, dim: int, ends: tuple[int | None, int | None]
) -> bool:
    """Whether ends by number stay right: what they count, from their side of the dim, never goes.

    As in ``functional.pad(v, (0, 1))[..., :-1]``.
    """
    if factor is None or factor.dims != (dim,):
        return False
    fixed = walk.atoms.resolve(factor.ids) == FIXED
    start, end = ends
    counted = [fixed[slice(0, start) if (start or 0) >= 0 else slice(start, None)]]
    if end is not None and end < len(fixed):
        counted.append(fixed[slice(0, end) if end >= 0 else slice(end, None)])
    return all(part.all() for part in counted)


def _take_range(
    walk: Walk, labels: Labels, dim: int, picked: IntArray, *, followed: bool
) -> Labels:
    factor = labels.on(dim)
    if factor is None or len(picked) == factor.ids.shape[factor.dims.index(dim)]:
        return labels
    if len(factor.dims) == 1 and not followed and not walk.masked:  # which knows no traced ends
        return walk.algebra.keep_size(labels, dim, walk.reason("slice", _BY_NUMBERS))
    part = Factor(factor.dims, factor.ids.take(picked, axis=factor.dims.index(dim)))
    return Labels(tuple(part if f is factor else f for f in labels.factors), labels.param)


@rule("split", "split_with_sizes", "chunk", "unsafe_split", "unsafe_chunk")
def split(walk: Walk, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Equal parts lose the same positions, so that they stay equal; unequal parts stay whole."""
    out = func(*args, **kwargs)
    n = args[0].dim()
    dim = (args[2] if len(args) > 2 else kwargs.get("dim", 0)) % n
    labels = walk.labels(args[0])
    factor = labels.on(dim)
    sizes = [part.shape[dim] for part in out]
    expected, walk.split_sizes = walk.split_sizes, []
    if factor is not None and len(factor.dims) == 1 and len(out) > 1:
        if expected == sizes and any(isinstance(size, TracedInt) for size in expected):
            # Traced sizes follow their dims or attributes (told to the walk); plain ones stay.
            for start, size in zip(np.cumsum([0, *sizes[:-1]]), expected, strict=True):
                if not isinstance(size, TracedInt):
                    walk.atoms.pin(
                        factor.ids[start : start + size],
                        walk.reason("split", "a number in the code; use an attribute (self.n)"),
                    )
        elif len(set(sizes)) == 1:
            rows = factor.ids.reshape(len(out), -1)
            walk.atoms.union(rows[1:], rows[:1], walk.reason("split", "into equal parts"))
        elif not walk.masked:  # which knows no traced sizes, and changes no label
            reason = walk.reason("split", "into unequal parts; use attributes (self.n)")
            labels = walk.algebra.keep_size(labels, dim, reason)
    elif factor is not None and len(set(sizes)) == 1 and expected != sizes:
        _keep_equal(walk, factor, dim, len(out))
    start = 0
    for part, size in zip(out, sizes, strict=True):
        picked = np.arange(start, start + size)
        here = labels.on(dim)
        if here is not None and len(out) > 1:
            cut = Factor(here.dims, here.ids.take(picked, axis=here.dims.index(dim)))
            walk.mark(part, Labels(tuple(cut if f is here else f for f in labels.factors)))
        else:
            walk.mark(part, labels)
        start += size
    return out


def _keep_equal(walk: Walk, factor: Factor, dim: int, parts: int) -> None:
    """Should this dim of a joint label be the one that is cut, its parts lose the same positions."""
    if not walk.masked:
        ids = np.moveaxis(factor.ids, factor.dims.index(dim), 0)
        first, *rest = np.split(ids, parts)
        walk.findings.same_size += [(first, part) for part in rest]


@rule("cat", "concat", "stack")
def cat(walk: Walk, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Along the joined dim labels are joined; along all others the parts are coupled."""
    out = func(*args, **kwargs)
    n = out.dim()
    dim = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % n
    name = func.overloadpacket.__name__
    # What is empty adds nothing; its other sizes have to be right where it has any.
    tensors = [
        t
        for t in args[0]
        if t.numel()
        or (t.dim() == n - (name == "stack") and (walk.labels(t).factors or not out.numel()))
    ]
    reason = walk.reason(name, "meets a dimension whose size cannot change")
    labels_of = [walk.labels(t) for t in tensors]
    if name != "stack":
        joint = _joint_cat(labels_of, dim)
        if joint is not None:
            walk.mark(out, joint)
            return out
        labels_of = _beside_the_joined(walk, labels_of, dim, reason)
    parts = []
    if name == "stack":
        shift = {d: d + (d >= dim) for d in range(n - 1)}
        labels_of = [labels.moved(shift, keep_param=False) for labels in labels_of]
    for tensor, labels in zip(tensors, labels_of, strict=True):
        _, ids = walk.algebra.single(labels, dim, reason)
        rest = Labels(tuple(f for f in labels.factors if dim not in f.dims))
        shape = [1 if d == dim else size for d, size in enumerate(out.shape)]
        length = 1 if name == "stack" else tensor.shape[dim]
        parts.append((rest, shape, np.full(length, FIXED) if ids is None else ids))
    labels = walk.algebra.elementwise([(r, s) for r, s, _ in parts], out.shape, reason)
    joined = np.concatenate([ids for _, _, ids in parts])
    if joined.any():
        labels = Labels((*labels.factors, Factor((dim,), joined)))
    walk.mark(out, labels)
    return out


def _beside_the_joined(walk: Walk, parts: list[Labels], dim: int, reason: str) -> list[Labels]:
    """Parts with whole rows: a joint label leaves the joined dim where another part has its rows alone.

    As heads of which some positions are rotated and the others pass.
    """
    rows = {d for part in parts for f in part.factors if dim not in f.dims for d in f.dims}
    settled = []
    for part in parts:
        factor = part.on(dim)
        joint = factor is not None and rows & set(factor.dims)
        settled.append(walk.algebra.keep_size(part, dim, reason) if joint else part)
    return settled


def _joint_cat(parts: list[Labels], dim: int) -> Labels | None:
    """Parts whose only labels are joint ones over the same dims, the joined dim among them."""
    dims = {tuple(f.dims for f in labels.factors) for labels in parts}
    if len(dims) != 1 or any(len(labels.factors) != 1 for labels in parts):
        return None
    factors = [labels.factors[0] for labels in parts]
    if len(factors[0].dims) < 2 or dim not in factors[0].dims:
        return None
    axis = factors[0].dims.index(dim)
    return Labels((Factor(factors[0].dims, np.concatenate([f.ids for f in factors], axis=axis)),))


@rule(
    "constant_pad_nd",
    "reflection_pad1d",
    "reflection_pad2d",
    "reflection_pad3d",
    "replication_pad1d",
    "replication_pad2d",
    "replication_pad3d",
    "pad",
)
def pad(walk: Walk, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Padded positions of a labelled dim are constants that cannot be cut."""
    out = func(*args, **kwargs)
    labels, n = walk.labels(args[0]), out.dim()
    padding = list(args[1])
    for k in range(len(padding) // 2):
        dim, (before, after) = n - 1 - k, padding[2 * k : 2 * k + 2]
        if (before or after) and labels.on(dim) is not None:
            reason = walk.reason("pad", "crops or pads by fixed numbers")
            labels, ids = walk.algebra.single(labels, dim, reason)
            if min(before, after) < 0 or ids is None:
                labels = walk.algebra.keep_size(labels, dim, reason)
                continue
            padded = np.concatenate([np.zeros(before, int), ids, np.zeros(after, int)])
            others = tuple(f for f in labels.factors if dim not in f.dims)
            labels = Labels((*others, Factor((dim,), padded)))
    walk.mark(out, Labels(labels.factors))
    return out


@rule("flip", "roll", "rot90")
def reorder(walk: Walk, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Positions change places along some dims: those keep their sizes if labelled."""
    out = func(*args, **kwargs)
    labels = walk.labels(args[0])
    name = func.overloadpacket.__name__
    given: Any = args[1] if name == "flip" else args[2] if len(args) > 2 else kwargs.get("dims")
    dims = given or (range(2) if name == "rot90" else range(args[0].dim()))
    for dim in dims:
        labels = walk.algebra.keep_size(labels, dim % out.dim(), walk.reason(name, "reorders"))
    walk.mark(out, Labels(labels.factors))
    return out


@rule("as_strided_", "as_strided")
def as_strided(walk: Walk, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The same shape with other strides keeps its labels; anything else is not followed."""
    shape = tuple(args[0].shape)
    labels = walk.labels(args[0])
    out = func(*args, **kwargs)
    if tuple(out.shape) == shape:
        walk.mark(out, labels)
    else:
        walk.algebra.pin_all(labels, walk.reason("as_strided", "re-reads memory"))
    return out
