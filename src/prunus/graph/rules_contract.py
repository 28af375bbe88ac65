"""Label rules of operations that sum over channels: convolutions, matrix products, attention.

Each couples the two sides of the sum, notes its MACs as a formula over the labels, and in a masked
run zeroes the removed channels at its own input.
"""

from typing import Any

import numpy as np
import torch
from torch import nn

from prunus.graph.fixed_macs import fixed_macs
from prunus.graph.labels import KERNEL, Factor, Labels
from prunus.graph.walk import Walk, rule
from prunus.plan import IntArray

Args = tuple[Any, ...]
Kwargs = dict[str, Any]


def _shape_but(shape: Any, *dims: int) -> int:
    return int(np.prod([s for d, s in enumerate(shape) if d not in dims], dtype=np.int64))


@rule("convolution", "_convolution", "mkldnn_convolution", "convolution_overrideable")
def convolution(walk: Walk, func: Any, args: Args, kwargs: Kwargs) -> Any:
    """Convolution of any rank; see ``_ordinary``, ``_depthwise`` and ``_grouped`` for the coupling."""
    x, weight, bias = args[0], args[1], args[2]
    transposed, groups = bool(args[6]), int(args[8])
    out = func(walk.mask(x, 1), *args[1:], **kwargs)
    labels, w = walk.labels(x), walk.labels(weight)
    reason = walk.reason("convolution", "slides over this dimension")
    for dim in range(2, x.dim()):
        if not _passes(args, dim):
            labels = walk.algebra.keep_size(labels, dim, reason)
        w = walk.algebra.keep_size(w, dim, KERNEL)
    walk.contracted(w, own_ids(w, 0 if transposed else 1))
    if transposed:
        labels, out_ids = _transposed(walk, labels, w, groups, x.shape[1])
    elif groups == 1:
        labels, out_ids = _ordinary(walk, labels, w)
    elif weight.shape[1] == 1:
        labels, out_ids = _depthwise(walk, labels, w, x.shape[1])
    else:
        labels, out_ids = _grouped(walk, labels, w, groups)
    if w.param is None:
        walk.note_mixed(own_ids(labels, 1))  # kernels that are computed: none is known to be zero
    if bias is not None:
        reason = walk.reason("convolution", "its outputs cannot be cut")
        _couple_vector(walk, walk.labels(bias), out_ids, reason)
    beside = tuple(f for f in labels.factors if 1 not in f.dims)
    channel = () if out_ids is None else (Factor((1,), out_ids),)
    walk.mark(out, Labels(beside + channel))
    spatial = x.shape if transposed else out.shape
    walk.count(
        "convolution",
        [
            *((f.ids.size, f.ids) for f in beside),
            (_shape_but(spatial, 1, *(d for f in beside for d in f.dims)), None),
            (_shape_but(weight.shape, 0, 1), None),
            (weight.shape[0], own_ids(w, 0)),
            (weight.shape[1], own_ids(w, 1)),
        ],
    )
    return out


def _passes(args: Args, dim: int) -> bool:
    """Whether a kernel of one position leaves spatial dim ``dim`` as it is."""
    stride, padding, more = (int(args[k][(dim - 2) % len(args[k])]) for k in (3, 4, 7))
    return args[1].shape[dim] == 1 and stride == 1 and padding == 0 and more == 0


def own_ids(labels: Labels, dim: int) -> IntArray | None:
    """The labels of a dim that depend on no other dim, shape ``[size]``."""
    factor = labels.on(dim)
    return factor.ids if factor is not None and len(factor.dims) == 1 else None


def couple(walk: Walk, a: Labels, dim_a: int, b: Labels, dim_b: int, reason: str) -> None:
    """Positions of a dim of one tensor are those of a dim of another."""
    left, right = a.on(dim_a), b.on(dim_b)
    if left is not None and right is not None:
        walk.atoms.union(left.ids, right.ids, reason)
    elif left is not None:
        walk.atoms.pin(left.ids, reason)
    elif right is not None:
        walk.atoms.pin(right.ids, reason)


def _couple_vector(walk: Walk, vector: Labels, ids: IntArray | None, reason: str) -> None:
    mine = vector.on(0)
    if mine is None:
        if ids is not None:
            walk.atoms.pin(ids, reason)
    elif ids is None:
        walk.atoms.pin(mine.ids, reason)
    else:
        walk.atoms.union(mine.ids, ids, reason)


def _ordinary(walk: Walk, x: Labels, w: Labels) -> tuple[Labels, IntArray | None]:
    reason = walk.reason("convolution", "reads channels that cannot be cut (network input)")
    x, _ = walk.algebra.single(x, 1, reason)
    couple(walk, x, 1, w, 1, reason)
    return x, own_ids(w, 0)


def _transposed(
    walk: Walk, x: Labels, w: Labels, groups: int, channels: int
) -> tuple[Labels, IntArray | None]:
    reason = walk.reason("transposed convolution", "reads channels that cannot be cut")
    if groups != 1 and groups == channels:
        return _depthwise_transposed(walk, x, w, channels)
    x, _ = walk.algebra.single(x, 1, reason)
    if groups != 1:
        walk.algebra.pin_all(w, walk.reason("transposed convolution", "is grouped"))
        walk.algebra.pin_all(x, walk.reason("transposed convolution", "is grouped"))
        return x, None
    couple(walk, x, 1, w, 0, reason)
    return x, own_ids(w, 1)


def _depthwise_transposed(
    walk: Walk, x: Labels, w: Labels, channels: int
) -> tuple[Labels, IntArray | None]:
    """A channel and the ``out / in`` outputs that it makes are one unit; ``groups`` follows."""
    reason = walk.reason("transposed convolution", "reads channels that cannot be cut")
    x, ids = walk.algebra.single(x, 1, reason)
    multiple = walk.algebra.keep_size(w, 1, walk.reason("transposed convolution", "outputs of one"))
    rows = own_ids(multiple, 0)
    if ids is None or rows is None or not isinstance(walk.module, nn.modules.conv._ConvNd):
        for labels in (x, w):
            walk.algebra.pin_all(labels, reason)
        return x, None
    walk.atoms.union(rows, ids, reason)
    walk.attribute(walk.path, "groups", channels, ids)
    return x, np.repeat(ids, walk.module.out_channels // channels)


def _depthwise(walk: Walk, x: Labels, w: Labels, channels: int) -> tuple[Labels, IntArray | None]:
    """A channel and the ``out / in`` filters that read it are one unit; ``groups`` follows.

    Outside of a layer ``SizeWatch`` tells where its number is from; where it is written down, the cut
    network does not run, and the probe says so.
    """
    reason = walk.reason("depthwise convolution", "reads channels that cannot be cut")
    x, ids = walk.algebra.single(x, 1, reason)
    out_ids = own_ids(w, 0)
    rows = None if out_ids is None else out_ids.reshape(channels, -1)
    if rows is not None and ids is not None:
        walk.atoms.union(rows, ids[:, None], reason)
        if isinstance(walk.module, nn.modules.conv._ConvNd):
            walk.attribute(walk.path, "groups", channels, ids)
    elif rows is not None:
        walk.atoms.pin(rows, reason)
    if ids is None:
        walk.algebra.pin_all(x, reason)
    return x, out_ids


def _grouped(walk: Walk, x: Labels, w: Labels, groups: int) -> tuple[Labels, IntArray | None]:
    """All groups lose the same position, so that their number stays and they stay equal."""
    reason = walk.reason("grouped convolution", "reads channels that cannot be cut")
    x, ids = walk.algebra.single(x, 1, reason)
    read = own_ids(w, 1)
    if ids is not None and read is not None:
        walk.atoms.union(ids.reshape(groups, -1), read[None, :], reason)
    else:
        couple(walk, x, 1, w, 1, reason)
    out_ids = own_ids(w, 0)
    if out_ids is not None:
        rows = out_ids.reshape(groups, -1)
        walk.atoms.union(rows[1:], rows[:1], reason)
    return x, out_ids


def _product(walk: Walk, a: torch.Tensor, b: torch.Tensor, out: torch.Tensor, op: str) -> Labels:
    """Rule of ``out[..., n, m] = a[..., n, k] @ b[..., k, m]`` with equal leading dims."""
    n = a.dim()
    reason = walk.reason(op, "sums over a dimension whose size cannot change")
    la, lb = walk.labels(a), walk.labels(b)
    walk.contracted(la, own_ids(la, n - 1))
    walk.contracted(lb, own_ids(lb, n - 2))
    la, lb = _settle(walk, la, n - 1, reason), _settle(walk, lb, n - 2, reason)
    couple(walk, la, n - 1, lb, n - 2, reason)
    if la.param is None and lb.param is None:
        walk.note_mixed(own_ids(la, n - 1))
    factors = []
    for dim in range(n - 2):
        fa, fb = la.on(dim), lb.on(dim)
        la, ids_a = walk.algebra.single(la, dim, reason) if fa else (la, None)
        lb, ids_b = walk.algebra.single(lb, dim, reason) if fb else (lb, None)
        if ids_a is not None and ids_b is not None:
            walk.atoms.union(ids_a, ids_b, reason)
        ids, bare = (ids_b, a) if ids_a is None else (ids_a, b)
        if ids is not None and out.shape[dim] > 1:
            # What broadcasting repeats (stride 0, as one key head for all queries) follows the other.
            if (ids_a is None) != (ids_b is None) and bare.stride(dim):
                walk.atoms.pin(ids, reason)
            factors.append(Factor((dim,), ids))
    la, rows = walk.algebra.single(la, n - 2, reason)
    lb, columns = walk.algebra.single(lb, n - 1, reason)
    if rows is not None:
        factors.append(Factor((n - 2,), rows))
    if columns is not None:
        factors.append(Factor((n - 1,), columns))
    inner = own_ids(la, n - 1)
    lead = Labels(tuple(factors))
    walk.count(
        op,
        [
            *((int(out.shape[d]), own_ids(lead, d)) for d in range(n)),
            (a.shape[-1], inner if inner is not None else own_ids(lb, n - 2)),
        ],
    )
    return lead


def _settle(walk: Walk, labels: Labels, dim: int, reason: str) -> Labels:
    """A joint factor that is summed over collapses onto what is not summed: whole heads."""
    factor = labels.on(dim)
    if factor is not None and len(factor.dims) > 1:
        return walk.algebra.keep_size(labels, dim, reason)
    return labels


@rule("mm", "bmm")
def mm(walk: Walk, func: Any, args: Args, kwargs: Kwargs) -> Any:
    """Matrix products."""
    a, b = args[0], args[1]
    out = func(walk.mask(a, a.dim() - 1), walk.mask(b, b.dim() - 2), **kwargs)
    walk.mark(out, _product(walk, a, b, out, "matrix product"))
    return out


@rule("addmm", "baddbmm", "_addmm_activation")
def addmm(walk: Walk, func: Any, args: Args, kwargs: Kwargs) -> Any:
    """A matrix product with something added."""
    bias, a, b = args[0], args[1], args[2]
    masked = (bias, walk.mask(a, a.dim() - 1), walk.mask(b, b.dim() - 2), *args[3:])
    out = func(*masked, **kwargs)
    labels = _product(walk, a, b, out, "matrix product")
    reason = walk.reason("matrix product", "adds a bias whose size cannot change")
    operands = [(labels, tuple(out.shape)), (walk.labels(bias), tuple(bias.shape))]
    walk.mark(out, walk.algebra.elementwise(operands, out.shape, reason))
    return out


@rule("_grouped_mm")
def grouped_mm(walk: Walk, func: Any, args: Args, kwargs: Kwargs) -> Any:
    """Experts' layers: runs of rows ``[rows, in]``, each times a matrix of ``[experts, in, out]``.

    All experts lose the same positions; how many there are stays. The kernel asks for rows of whole
    16 bytes.
    """
    x, weight = args[0], args[1]
    out = func(walk.mask(x, 1), *args[1:], **kwargs)
    reason = walk.reason("grouped matrix product", "sums over a dimension whose size cannot change")
    labels, w = walk.labels(x), walk.labels(weight)
    if (x.dim(), weight.dim()) != (2, 3):
        walk.algebra.pin_all(labels, reason)
        walk.algebra.pin_all(w, reason)
        walk.count("grouped", [(fixed_macs("_grouped_mm", args) or 0, None)])
        return out
    experts = walk.reason("grouped matrix product", "as many experts as are told")
    w = walk.algebra.keep_size(w, 0, experts)
    labels = walk.algebra.keep_size(labels, 0, experts)
    walk.contracted(w, own_ids(w, 1))
    labels, w = _settle(walk, labels, 1, reason), _settle(walk, w, 1, reason)
    couple(walk, labels, 1, w, 1, reason)
    if w.param is None:
        walk.note_mixed(own_ids(labels, 1))
    w, out_ids = walk.algebra.single(w, 2, reason)
    walk.mark(out, Labels(() if out_ids is None else (Factor((1,), out_ids),)))
    summed = own_ids(w, 1)
    for ids in (summed, out_ids):
        walk.note_aligned(ids)
    rows = (int(x.shape[0]), None)
    walk.count("grouped", [rows, (weight.shape[1], summed), (weight.shape[2], out_ids)])
    return out


@rule("linear")
def linear(walk: Walk, func: Any, args: Args, kwargs: Kwargs) -> Any:
    """``x @ weight.T + bias`` where it is not decomposed."""
    x, weight, bias = args[0], args[1], args[2] if len(args) > 2 else None
    out = func(walk.mask(x, x.dim() - 1), *args[1:], **kwargs)
    labels, w = walk.labels(x), walk.labels(weight)
    last = x.dim() - 1
    reason = walk.reason("linear", "reads channels that cannot be cut")
    walk.contracted(w, own_ids(w, 1))
    labels = _settle(walk, labels, last, reason)
    couple(walk, labels, last, w, 1, reason)
    if w.param is None:
        walk.note_mixed(own_ids(labels, last))
    out_ids = own_ids(w, 0)
    if bias is not None:
        _couple_vector(walk, walk.labels(bias), out_ids, reason)
    kept = tuple(f for f in labels.factors if last not in f.dims)
    walk.mark(out, Labels(kept if out_ids is None else (*kept, Factor((last,), out_ids))))
    rows = [(int(x.shape[d]), own_ids(labels, d)) for d in range(last)]
    walk.count("linear", [*rows, (weight.shape[0], out_ids), (weight.shape[1], own_ids(w, 1))])
    return out


@rule(
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_fused_attention_overrideable",
    "scaled_dot_product_attention",
)
def attention(walk: Walk, func: Any, args: Args, kwargs: Kwargs) -> Any:
    """Fused attention over ``[batch, heads, tokens, width]``: heads are coupled across q, k, v.

    With one head its width can be cut, but only where the scale is given: otherwise it would be
    computed from the cut width, and attention keeps the dense network's scale.
    """
    q, k, v = args[0], args[1], args[2]
    out = func(walk.mask(q, 3), walk.mask(k, 3), *args[2:], **kwargs)
    reason = walk.reason("attention", "head width stays whole")
    lq, lk, lv = (_heads(walk, walk.labels(t), reason) for t in (q, k, v))
    if kwargs.get("scale") is None:
        lq = walk.algebra.keep_size(lq, 3, walk.reason("attention", "scale follows the head width"))
        lk = walk.algebra.keep_size(lk, 3, walk.reason("attention", "scale follows the head width"))
    couple(walk, lq, 3, lk, 3, reason)
    if own_ids(lq, 3) is not None:
        walk.note_mixed(own_ids(lq, 3))
    for dim in (0, 1):
        _couple_equal(walk, [lq, lk, lv], [q, k, v], dim, reason)
    mask = kwargs.get("attn_mask", args[3] if "efficient" in func.overloadpacket.__name__ else None)
    if isinstance(mask, torch.Tensor):
        _couple_mask(walk, mask, lq, q)
    factors = [f for f in lq.factors if f.dims in ((0,), (1,))]
    wide = lv.on(3)
    result = Labels((*factors, *(() if wide is None else (wide,))))
    walk.mark(out if isinstance(out, torch.Tensor) else out[0], result)
    rows = [(int(q.shape[0]), own_ids(lq, 0)), (int(q.shape[1]), own_ids(lq, 1))]
    tokens = (int(q.shape[2]) * int(k.shape[2]), None)
    walk.count("attention", [*rows, tokens, (int(q.shape[3]), own_ids(lq, 3))])
    walk.count("attention", [*rows, tokens, (int(v.shape[3]), own_ids(lv, 3))])
    return out


def _couple_mask(walk: Walk, mask: torch.Tensor, heads: Labels, q: torch.Tensor) -> None:
    """A mask or bias of one row per head follows the heads; its other dims are tokens."""
    reason = walk.reason("attention", "its mask has a size that cannot change")
    head = mask.dim() - 3
    labels = walk.labels(mask)
    for dim in range(mask.dim()):
        if dim != head:
            labels = walk.algebra.keep_size(labels, dim, reason)
    if head >= 0 and mask.shape[head] > 1 and q.shape[1] > 1:
        couple(walk, labels, head, heads, 1, reason)


def _heads(walk: Walk, labels: Labels, reason: str) -> Labels:
    for dim in (2, 3):
        factor = labels.on(dim)
        if factor is not None and (len(factor.dims) > 1 or dim == 2):
            labels = walk.algebra.keep_size(labels, dim, reason)
    return labels


def _couple_equal(
    walk: Walk, labels: list[Labels], tensors: list[torch.Tensor], dim: int, reason: str
) -> None:
    sizes = [int(t.shape[dim]) for t in tensors]
    # One key and value head for all query heads (size 1) is read by each, however many stay.
    several = [one.on(dim) for one, size in zip(labels, sizes, strict=True) if size > 1]
    found = [f for f in several if f is not None]
    if not found:
        return
    queries = sizes[0] == max(sizes)
    if queries and len(found) == len(several) and all(max(sizes) % size == 0 for size in sizes):
        # Grouped queries: each key and value head serves a run of query heads.
        for other in found[1:]:
            rows = found[0].ids.reshape(other.ids.size, -1)
            walk.atoms.union(rows, other.ids[:, None], reason)
    else:
        for factor in found:
            walk.atoms.pin(factor.ids, reason)
