"""Label rules of operations that pick positions by number."""

from typing import Any

import numpy as np
import torch

from prunus.graph.findings import Reindexed
from prunus.graph.inputs import flat_tensors
from prunus.graph.labels import FIXED, LOOKUP, NONE, Factor, Labels
from prunus.graph.rules_pointwise import pointwise
from prunus.graph.walk import Walk, rule
from prunus.plan import IntArray


@rule("tril", "triu", "diagonal")
def whole(walk: Walk, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Operations that mix positions in ways we do not follow: labelled inputs stay whole."""
    out = func(*args, **kwargs)
    name = func.overloadpacket.__name__
    for tensor in flat_tensors(args):
        walk.algebra.pin_all(walk.labels(tensor), walk.reason(name, "mixes positions"))
    return out


_DIM_OF = {"sort": 1, "argsort": 1, "topk": 2}  # where the dim stands among the arguments


@rule("cumsum", "cumprod", "cummax", "cummin", "logcumsumexp", "sort", "argsort", "topk")
def along(walk: Walk, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Positions of one dim are mixed, which stays; all others each for itself."""
    out = func(*args, **kwargs)
    name = func.overloadpacket.__name__
    at, n = _DIM_OF.get(name, 1), args[0].dim()
    dim = args[at] if len(args) > at else kwargs.get("dim", -1)
    labels = walk.labels(args[0])
    if n:
        labels = walk.algebra.keep_size(labels, int(dim) % n, walk.reason(name, "mixes positions"))
    for result in flat_tensors(out):
        walk.mark(result, Labels(labels.factors))
    return out


_ORDER_DIM = {"argmax": (1, None), "argmin": (1, None), "kthvalue": (2, -1), "mode": (1, -1)}


@rule("argmax", "argmin", "median", "nanmedian", "kthvalue", "mode")
def order(walk: Walk, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """One position of a dim, which stays, is told by number; all other dims each for itself."""
    out = func(*args, **kwargs)
    name, n = func.overloadpacket.__name__, args[0].dim()
    reason = walk.reason(name, "picks positions by number")
    at, default = _ORDER_DIM.get(name, (1, None))
    given = args[at] if len(args) > at else kwargs.get("dim", default)
    labels = walk.labels(args[0])
    if given is None or not n:
        walk.algebra.pin_all(labels, reason)
        return out
    dim = int(given) % n
    labels = Labels(walk.algebra.keep_size(labels, dim, reason).factors)
    for result in flat_tensors(out):
        gone = result.dim() < n
        new_dim = {d: d - (gone and d > dim) for d in range(n) if d != dim}
        walk.mark(result, labels.moved(new_dim))
    return out


@rule("embedding")
def embedding(walk: Walk, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Rows are looked up by number and stay; columns are channels."""
    out = func(*args, **kwargs)
    weight, ids = args[0], args[1]
    table = walk.algebra.keep_size(walk.labels(weight), 0, LOOKUP)
    read_plainly(walk, ids, LOOKUP)
    column = table.on(1)
    walk.mark(out, NONE if column is None else Labels((Factor((out.dim() - 1,), column.ids),)))
    return out


@rule("_embedding_bag", "_embedding_bag_forward_only")
def embedding_bag(walk: Walk, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Sums, means or maxima of rows that are looked up; columns are channels."""
    out = func(*args, **kwargs)
    table = walk.algebra.keep_size(walk.labels(args[0]), 0, LOOKUP)
    for tensor in flat_tensors((args[1:], kwargs)):
        read_plainly(walk, tensor, LOOKUP)
    column = table.on(1)
    walk.mark(out[0], NONE if column is None else Labels((Factor((1,), column.ids),)))
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
        read_plainly(walk, index, reason)
        return Labels(labels.factors)
    rest = tuple(f for f in labels.factors if dim not in f.dims)
    entries = walk.labels(index).on(0)
    if buffer is None or entries is None:
        read_plainly(walk, index, reason)
        walk.atoms.pin(ids, reason)
        return Labels(rest)
    _numbers(walk, buffer, ids)
    picked = ids[index.cpu().numpy()]
    free = walk.atoms.resolve(picked) != FIXED
    walk.atoms.union(entries.ids[free], picked[free])
    return Labels((*rest, Factor((dim,), entries.ids)))


def _numbers(walk: Walk, buffer: str, ids: IntArray) -> None:
    """A buffer's values are positions on ``ids``; they can follow one cut, so all it picks from share it.

    That goes for positions which it does not pick, too: what lies behind them gets another number.
    """
    if walk.masked:
        return
    reason = f"'{buffer}' picks positions of several sizes by number"
    for other in (item.ids for item in walk.findings.reindexed if item.buffer == buffer):
        if other.size == ids.size:
            walk.atoms.union(other, ids, reason)
        else:
            for one in (other, ids):
                walk.atoms.pin(one, reason)
    walk.findings.reindexed.append(Reindexed(buffer, ids))


def read_plainly(walk: Walk, index: torch.Tensor, reason: str) -> None:
    """An index into what stays whole: it stays as it is."""
    walk.algebra.pin_all(walk.labels(index), reason)
    _keep_values(walk, index)


def _keep_values(walk: Walk, index: torch.Tensor) -> None:
    """Buffers that a tensor is, or was computed from, are not renumbered."""
    starts = np.array([start for start, _ in walk.findings.owners])
    for factor in walk.labels(index).factors:
        for k in np.unique(np.searchsorted(starts, factor.ids.ravel(), side="right") - 1):
            if k >= 0:
                _numbers(walk, walk.findings.owners[k][1][0], np.zeros(1, dtype=np.int64))


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
    walk.mark(out, _picked(walk, labels, indices, (source.dim(), out.dim()), reason)[0])
    return out


def _picked(
    walk: Walk, labels: Labels, indices: list[Any], ranks: tuple[int, int], reason: str
) -> tuple[Labels, dict[int, int]]:
    """Labels of what indices pick, and where its dims that they leave alone lie in the source.

    How many rows a mask picks is up to the data: sizes and MACs behind it are those of the example.
    """
    dims: list[int] = []
    d = 0
    for one in indices:
        mask = one is not None and one.dtype in (torch.bool, torch.uint8)
        wide = one.dim() if mask else 1
        if one is not None:
            read_plainly(walk, one, reason if mask else LOOKUP)
            dims += range(d, d + wide)
        d += wide
    for d in dims:
        labels = walk.algebra.keep_size(labels, d, reason)
    if not dims or dims != list(range(dims[0], dims[-1] + 1)):
        walk.algebra.pin_all(labels, reason)
        return NONE, {}
    shift = ranks[1] - ranks[0]
    new_dim = {d: d if d < dims[0] else d + shift for d in range(ranks[0]) if d not in dims}
    return labels.moved(new_dim, keep_param=False), {new: old for old, new in new_dim.items()}


@rule("index_put", "index_put_", "_index_put_impl_")
def index_put(walk: Walk, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Advanced indexing the other way: indexed dims stay, along all others values are coupled."""
    target, indices, values = args[0], list(args[1]), args[2]
    if _is_masked_fill(target, indices, values):
        return pointwise(walk, func, args, kwargs)
    shape = tuple(target[tuple(slice(None) if i is None else i for i in indices)].shape)
    labels = walk.labels(target)
    out = func(*args, **kwargs)
    reason = walk.reason("index_put", "puts values in by number")
    ranks = (target.dim(), len(shape))
    picked, origin = _picked(walk, labels, indices, ranks, reason)
    put = walk.labels(values)
    for d in range(values.dim()):
        if d + len(shape) - values.dim() not in origin:
            put = walk.algebra.keep_size(put, d, reason)
    operands = [(picked, shape), (put, tuple(values.shape))]
    walk.mark(out, walk.algebra.elementwise(operands, shape, reason).moved(origin))
    return out


def _is_masked_fill(target: torch.Tensor, indices: list[Any], values: torch.Tensor) -> bool:
    """Whether one value is put wherever a mask of all positions says, as ``h[h < 0] = 0`` does."""
    masks = [one for one in indices if one is not None and one.dtype == torch.bool]
    return len(indices) == len(masks) == values.numel() == 1 and masks[0].shape == target.shape


@rule("gather", "scatter", "scatter_", "scatter_add", "scatter_add_")
@rule("scatter_reduce", "scatter_reduce_")
def gather(walk: Walk, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Positions of one dim picked element by element: that dim stays, others are coupled."""
    _keep_values(walk, args[2])
    labels = _alike(walk, func, list(flat_tensors((args, kwargs))), args[1])
    out = func(*args, **kwargs)
    walk.mark(out, labels)
    return out


@rule("index_add", "index_add_", "index_copy", "index_copy_", "index_fill", "index_fill_")
def index_add(walk: Walk, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Slices put in by number: their dim stays, others are coupled."""
    read_plainly(walk, args[2], LOOKUP)
    tensors = [args[0], *(t for t in flat_tensors((args[3:], kwargs)) if t.dim() == args[0].dim())]
    labels = _alike(walk, func, tensors, args[1])
    out = func(*args, **kwargs)
    walk.mark(out, labels)
    return out


def _alike(walk: Walk, func: Any, tensors: list[torch.Tensor], dim: int) -> Labels:
    """Labels of tensors, coupled along all dims but one; where they are not equally long, dims stay."""
    n = tensors[0].dim()
    reason = walk.reason(func.overloadpacket.__name__, "picks positions by number")
    open_dims = [d for d in range(n) if len({t.shape[d] for t in tensors}) == 1 and d != dim % n]
    operands = []
    for tensor in tensors:
        labels = walk.labels(tensor)
        for d in range(n):
            if d not in open_dims:
                labels = walk.algebra.keep_size(labels, d, reason)
        shape = [1] * n
        for d in open_dims:  # one position that is spread (``expand_as``) follows what it meets
            if tensor.stride(d) or labels.on(d) is not None:
                shape[d] = int(tensor.shape[d])
        operands.append((labels, shape))
    return walk.algebra.elementwise(operands, tensors[0].shape, reason)


@rule("im2col")
def im2col(walk: Walk, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Unfolded patches: channel c becomes the rows c*k … c*k + k - 1."""
    out = func(*args, **kwargs)
    _, ids = walk.algebra.single(walk.labels(args[0]), 1, walk.reason("im2col", "unfolds"))
    if ids is not None:
        each = out.shape[1] // ids.size
        walk.mark(out, Labels((Factor((1,), np.repeat(ids, each)),)))
    return out


@rule("col2im")
def col2im(walk: Walk, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Folded patches: rows c*k … c*k + k - 1 become channel c, and go together."""
    out = func(*args, **kwargs)
    channel = args[0].dim() - 2
    reason = walk.reason("col2im", "folds")
    labels = walk.algebra.keep_size(walk.labels(args[0]), channel + 1, reason)
    _, ids = walk.algebra.single(labels, channel, reason)
    if ids is not None:
        rows = ids.reshape(out.shape[channel], -1)
        walk.atoms.union(rows[:, 1:], rows[:, :1], reason)
        walk.mark(out, Labels((Factor((channel,), rows[:, 0]),)))
    return out


@rule("unfold")
def unfold(walk: Walk, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Windows over one dim, which stays, their positions in a new last one."""
    out = func(*args, **kwargs)
    labels, n = walk.labels(args[0]), args[0].dim()
    if n:
        reason = walk.reason("unfold", "slides over it")
        labels = walk.algebra.keep_size(labels, args[1] % n, reason)
    walk.mark(out, Labels(labels.factors))
    return out


@rule("max_unpool2d", "max_unpool3d")
def max_unpool(walk: Walk, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Values go back to where they were the largest, channel by channel."""
    out = func(*args, **kwargs)
    name, n = func.overloadpacket.__name__, out.dim()
    reason = walk.reason(name, "picks positions by number")
    spatial = 3 if "3d" in name else 2
    operands = []
    for tensor in args[:2]:
        labels = walk.labels(tensor)
        for dim in range(n - spatial, n):
            labels = walk.algebra.keep_size(labels, dim, reason)
        operands.append((labels, [*tensor.shape[: n - spatial], *[1] * spatial]))
    walk.mark(out, walk.algebra.elementwise(operands, out.shape, reason))
    return out
