"""Label rules of operations that compute nothing across positions: pointwise, views, copies."""

from typing import Any

import numpy as np
import torch

from prunus.graph.labels import FIXED, LOOKUP, NONE, Factor, Labels
from prunus.graph.inputs import flat_tensors
from prunus.graph.provenance import TracedInt
from prunus.graph.walk import Reindexed, Walk, rule

_POINTWISE = """
add add_ sub sub_ rsub mul mul_ div div_ true_divide pow pow_ maximum minimum where fmod remainder
floor_divide lerp addcmul addcmul_ addcdiv atan2 masked_fill masked_fill_ copy_ copy fill_ zero_
relu relu_ relu6 gelu gelu_ silu silu_ sigmoid sigmoid_ tanh tanh_ mish hardswish hardswish_
hardsigmoid hardsigmoid_ hardtanh hardtanh_ leaky_relu leaky_relu_ elu elu_ celu softplus log_sigmoid
log_sigmoid_forward exp exp_ expm1 log log1p sqrt rsqrt reciprocal neg abs sign erf sin cos floor ceil
round clamp clamp_ clamp_min clamp_max square eq ne lt le gt ge logical_and logical_or logical_not
logical_xor bitwise_and bitwise_or bitwise_not bitwise_and_ isnan isinf native_dropout bernoulli_
threshold prelu _prelu_kernel nan_to_num dropout
""".split()
_IDENTITY = "clone detach detach_ alias contiguous _to_copy to lift_fresh lift_fresh_copy".split()
_LIKE = "zeros_like ones_like empty_like full_like rand_like randn_like".split()


@rule(*_POINTWISE)
def pointwise(walk: Walk, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Positions that meet are coupled (``Algebra.elementwise``)."""
    operands = [(walk.labels(t), tuple(t.shape)) for t in flat_tensors((args, kwargs))]
    out = func(*args, **kwargs)
    results = list(flat_tensors(out))
    name = func.overloadpacket.__name__
    if results and any(labels.factors for labels, _ in operands):
        reason = walk.reason(name, "meets a dimension whose size cannot change")
        labels = walk.algebra.elementwise(operands, results[0].shape, reason)
        params = {labels.param for labels, _ in operands if labels.param}
        if len(operands) == 1 and len(params) == 1:
            labels = Labels(labels.factors, params.pop())
        for result in results:
            walk.mark(result, labels)
    return out


@rule(*_IDENTITY)
def identity(walk: Walk, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A copy or cast: still the same parameter."""
    out = func(*args, **kwargs)
    walk.mark(out, walk.labels(args[0]))
    return out


@rule(*_LIKE)
def like(walk: Walk, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A constant of the same shape follows the shape of its model."""
    out = func(*args, **kwargs)
    walk.mark(out, Labels(walk.labels(args[0]).factors))
    return out


@rule("new_zeros", "new_ones", "new_full", "new_empty", "new_empty_strided")
def fresh(walk: Walk, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A constant that takes only type and device from its model: no labels."""
    return func(*args, **kwargs)


@rule("view", "_unsafe_view", "reshape", "_reshape_alias", "unsqueeze", "squeeze", "squeeze_")
def view(walk: Walk, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Any change of shape that keeps the order of elements."""
    out = func(*args, **kwargs)
    labels = walk.labels(args[0])
    if labels.factors and tuple(out.shape) != tuple(args[0].shape):
        reason = walk.reason("view", "merges two dimensions that could both be cut")
        labels = walk.algebra.reshape(labels, args[0].shape, out.shape, reason)
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
    walk.mark(out, _take_position(walk, walk.labels(args[0]), dim, args[2], args[0].dim()))
    return out


@rule("unbind")
def unbind(walk: Walk, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """All positions of a dim, one tensor each."""
    out = func(*args, **kwargs)
    dim = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % args[0].dim()
    labels = walk.labels(args[0])
    for position, part in enumerate(out):
        walk.mark(part, _take_position(walk, labels, dim, position, args[0].dim()))
    return out


def _take_position(walk: Walk, labels: Labels, dim: int, position: int, n: int) -> Labels:
    factor = labels.on(dim)
    if factor is not None:
        if len(factor.dims) == 1:
            walk.algebra.pin_all(Labels((factor,)), walk.reason("select", "picks positions by number"))
            rest: tuple[Factor, ...] = ()
        else:
            axis = factor.dims.index(dim)
            dims = tuple(d for d in factor.dims if d != dim)
            rest = (Factor(dims, factor.ids.take(position, axis=axis)),)
        labels = Labels(tuple(f for f in labels.factors if f is not factor) + rest, labels.param)
    return labels.moved({d: d - (d > dim) for d in range(n) if d != dim})


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
    walk.mark(out, _take_range(walk, walk.labels(args[0]), dim, picked, size))
    return out


def _take_range(walk: Walk, labels: Labels, dim: int, picked: Any, size: int) -> Labels:
    factor = labels.on(dim)
    if factor is None or len(picked) == size:
        return labels
    if len(factor.dims) == 1:
        return walk.algebra.keep_size(labels, dim, walk.reason("slice", "cuts a range by numbers"))
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
                    walk.atoms.pin(factor.ids[start : start + size], walk.reason("split", "fixed size"))
        elif len(set(sizes)) == 1:
            rows = factor.ids.reshape(len(out), -1)
            walk.atoms.union(rows[1:], rows[:1], walk.reason("split", "into equal parts"))
        else:
            reason = walk.reason("split", "into unequal parts")
            labels = walk.algebra.keep_size(labels, dim, reason)
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


@rule("cat", "concat", "stack")
def cat(walk: Walk, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Along the joined dim labels are joined; along all others the parts are coupled."""
    out = func(*args, **kwargs)
    tensors = [t for t in args[0] if t.numel() or t.dim() > 1]
    n = out.dim()
    dim = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % n
    name = func.overloadpacket.__name__
    reason = walk.reason(name, "meets a dimension whose size cannot change")
    labels_of = [walk.labels(t) for t in tensors]
    if name != "stack":
        joint = _joint_cat(labels_of, dim)
        if joint is not None:
            walk.mark(out, joint)
            return out
    parts = []
    for tensor, labels in zip(tensors, labels_of, strict=True):
        if name == "stack":
            labels = labels.moved({d: d + (d >= dim) for d in range(n - 1)}, keep_param=False)
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


@rule("constant_pad_nd", "reflection_pad1d", "reflection_pad2d", "replication_pad2d", "pad")
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


@rule("flip", "roll")
def reorder(walk: Walk, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Positions change places along some dims: those keep their sizes if labelled."""
    out = func(*args, **kwargs)
    labels = walk.labels(args[0])
    name = func.overloadpacket.__name__
    dims = args[1] if name == "flip" else (args[2] if len(args) > 2 else range(args[0].dim()))
    for dim in dims:
        labels = walk.algebra.keep_size(labels, dim % out.dim(), walk.reason(name, "reorders"))
    walk.mark(out, Labels(labels.factors))
    return out


@rule("tril", "triu", "cumsum", "sort", "topk", "argmax", "argmin", "diagonal", "argsort", "any", "all")
def whole(walk: Walk, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Operations that mix positions in ways we do not follow: labelled inputs stay whole."""
    out = func(*args, **kwargs)
    name = func.overloadpacket.__name__
    for tensor in flat_tensors(args):
        walk.algebra.pin_all(walk.labels(tensor), walk.reason(name, "mixes positions"))
    return out


@rule("embedding")
def embedding(walk: Walk, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Rows are looked up by number and stay; columns are channels."""
    out = func(*args, **kwargs)
    weight, ids = args[0], args[1]
    table = walk.algebra.keep_size(
        walk.labels(weight), 0, LOOKUP
    )
    walk.algebra.pin_all(walk.labels(ids), LOOKUP)
    column = table.on(1)
    walk.mark(out, NONE if column is None else Labels((Factor((out.dim() - 1,), column.ids),)))
    return out


@rule("index_select")
def index_select(walk: Walk, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Positions picked by an index; an index kept in a buffer follows the cut (``Reindexed``)."""
    out = func(*args, **kwargs)
    source, dim, index = args[0], args[1] % args[0].dim(), args[2]
    walk.mark(out, pick(walk, walk.labels(source), dim, index))
    return out


def pick(walk: Walk, labels: Labels, dim: int, index: torch.Tensor) -> Labels:
    """Labels after one dim was replaced by positions ``index`` (one-dimensional) of it."""
    reason = LOOKUP if labels.param else walk.reason("index", "picks positions by number")
    labels, ids = walk.algebra.single(labels, dim, reason)
    buffer = walk.name_of(index)
    if ids is None:
        walk.algebra.pin_all(walk.labels(index), reason)
        return Labels(labels.factors)
    rest = tuple(f for f in labels.factors if dim not in f.dims)
    if buffer is None:
        walk.atoms.pin(ids, reason)
        return Labels(rest)
    entries = walk.labels(index).on(0)
    if entries is None:
        walk.atoms.pin(ids, reason)
        return Labels(rest)
    picked = ids[index.cpu().numpy()]
    free = walk.atoms.resolve(picked) != FIXED
    walk.atoms.union(entries.ids[free], picked[free])
    if not walk.masked:
        walk.findings.reindexed.append(Reindexed(buffer, ids))
    return Labels((*rest, Factor((dim,), entries.ids)))


@rule("index")
def index(walk: Walk, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Advanced indexing: indexed dims stay whole (one-dim buffer indices excepted), others pass."""
    out = func(*args, **kwargs)
    source, indices = args[0], list(args[1])
    labels = walk.labels(source)
    at = [d for d, i in enumerate(indices) if i is not None]
    if len(at) == 1 and indices[at[0]].dim() == 1 and indices[at[0]].dtype == torch.int64:
        walk.mark(out, pick(walk, labels, at[0], indices[at[0]]))
        return out
    reason = LOOKUP if labels.param else walk.reason("index", "picks positions by number")
    for d in at:
        labels = walk.algebra.keep_size(labels, d, reason)
        walk.algebra.pin_all(walk.labels(indices[d]), LOOKUP)
    contiguous = at == list(range(at[0], at[-1] + 1)) if at else True
    spread = out.dim() - (source.dim() - len(at))
    if not contiguous or any(i is not None and i.dtype == torch.bool for i in indices):
        walk.algebra.pin_all(labels, reason)
        return out
    new_dim = {d: (d if d < at[0] else d - len(at) + spread) for d in range(source.dim()) if d not in at}
    walk.mark(out, labels.moved(new_dim, keep_param=False))
    return out


@rule("gather", "scatter", "scatter_")
def gather(walk: Walk, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Positions of one dim picked element by element: that dim stays, others are coupled."""
    out = func(*args, **kwargs)
    source, dim, index = args[0], args[1] % args[0].dim(), args[2]
    reason = walk.reason(func.overloadpacket.__name__, "picks positions by number")
    labels = walk.algebra.keep_size(walk.labels(source), dim, reason)
    where = walk.algebra.keep_size(walk.labels(index), dim, reason)
    operands = [(labels, _one(source.shape, dim)), (where, _one(index.shape, dim))]
    walk.mark(out, walk.algebra.elementwise(operands, _one(out.shape, dim), reason))
    return out


def _one(shape: Any, dim: int) -> list[int]:
    return [1 if d == dim else int(size) for d, size in enumerate(shape)]


@rule("im2col")
def im2col(walk: Walk, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Unfolded patches: channel c becomes the rows c*k … c*k + k - 1."""
    out = func(*args, **kwargs)
    labels, ids = walk.algebra.single(walk.labels(args[0]), 1, walk.reason("im2col", "unfolds"))
    if ids is not None:
        each = out.shape[1] // ids.size
        walk.mark(out, Labels((Factor((1,), np.repeat(ids, each)),)))
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
