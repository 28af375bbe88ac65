"""Label rules of normalisations, reductions and pooling.

A reduction over a dimension that may be cut runs over the kept positions alone in a masked run: the
operands are narrowed to them, the operation runs, and its result is put back at full width.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from prunus.graph.labels import Labels
from prunus.graph.walk import Walk, rule

Args = tuple[Any, ...]
Kwargs = dict[str, Any]


def _kept(walk: Walk, tensor: torch.Tensor, dims: Sequence[int]) -> dict[int, torch.Tensor]:
    """Kept positions of each labelled dim in ``dims``; empty outside a masked run."""
    found: dict[int, torch.Tensor] = {}
    if not walk.masked:
        return found
    labels = walk.labels(tensor)
    for dim in dims:
        factor = labels.on(dim)
        if factor is not None and len(factor.dims) == 1:
            stays = walk.stays(factor.ids)
            if not stays.all():
                found[dim] = torch.from_numpy(stays).nonzero().flatten().to(tensor.device)
    return found


def _narrow(tensor: torch.Tensor, kept: dict[int, torch.Tensor]) -> torch.Tensor:
    for dim, positions in kept.items():
        tensor = tensor.index_select(dim, positions)
    return tensor


def _widen(narrow: torch.Tensor, like: torch.Tensor, kept: dict[int, torch.Tensor]) -> torch.Tensor:
    """Put a narrowed result back at full width, zero elsewhere."""
    for dim, positions in kept.items():
        shape = list(narrow.shape)
        shape[dim] = like.shape[dim]
        narrow = narrow.new_zeros(shape).index_copy(dim, positions, narrow)
    return narrow


def _reduced(walk: Walk, labels: Labels, dims: Sequence[int]) -> None:
    """Note which atoms a reduction runs over."""
    if not walk.masked:
        for dim in dims:
            factor = labels.on(dim)
            if factor is not None:
                walk.findings.reduced.append(factor.ids)


def _vectors(walk: Walk, labels: Labels, dim: int, vectors: Sequence[Any], reason: str) -> Labels:
    """Couple per-channel vectors (scale, shift, running statistics) to a dim."""
    labels, ids = walk.algebra.single(labels, dim, reason)
    for vector in vectors:
        if isinstance(vector, torch.Tensor):
            mine = walk.labels(vector).on(0)
            if mine is not None and ids is not None:
                walk.atoms.union(ids, mine.ids, reason)
            elif mine is not None:
                walk.atoms.pin(mine.ids, reason)
            elif ids is not None:
                walk.atoms.pin(ids, reason)
                labels = walk.algebra.keep_size(labels, dim, reason)
    return labels


@rule(
    "native_batch_norm",
    "_native_batch_norm_legit",
    "_native_batch_norm_legit_no_training",
    "_batch_norm_with_update",
    "_batch_norm_no_update",
    "cudnn_batch_norm",
    "batch_norm",
)
def batch_norm(walk: Walk, func: Any, args: Args, kwargs: Kwargs) -> Any:
    """Per channel (dim 1); other labelled dims are reduced over (standardised weights)."""
    x = args[0]
    others = [d for d in range(x.dim()) if d != 1]
    kept = _kept(walk, x, others)
    if kept:
        out = func(_narrow(x, kept), *args[1:], **kwargs)
        out = (_widen(out[0], x, kept), *out[1:])
    else:
        out = func(*args, **kwargs)
    reason = walk.reason("batch norm", "its size cannot change")
    labels = _vectors(walk, walk.labels(x), 1, args[1:5], reason)
    channel = labels.on(1)
    bare = not any(isinstance(vector, torch.Tensor) for vector in args[1:5])
    if bare and channel is not None and isinstance(walk.module, nn.modules.batchnorm._NormBase):
        walk.attribute(walk.path, "num_features", walk.module.num_features, channel.ids)
    _reduced(walk, labels, others)
    walk.mark(out if isinstance(out, torch.Tensor) else out[0], labels)
    return out


@rule("native_layer_norm", "layer_norm")
def layer_norm(walk: Walk, func: Any, args: Args, kwargs: Kwargs) -> Any:
    """Over the last dims, kept channels only."""
    x, shape, weight, bias = args[0], args[1], args[2], args[3]
    first = x.dim() - len(shape)
    dims = list(range(first, x.dim()))
    kept = _kept(walk, x, dims)
    if kept:
        inner = {d - first: positions for d, positions in kept.items()}
        short = _narrow(x, kept)
        narrow = [None if v is None else _narrow(v, inner) for v in (weight, bias)]
        out = func(short, list(short.shape[first:]), *narrow, *args[4:], **kwargs)
        out = (_widen(out[0], x, kept), *out[1:])
    else:
        out = func(*args, **kwargs)
    reason = walk.reason("layer norm", "its size cannot change")
    labels = walk.labels(x)
    bare = labels.on(dims[0]) if weight is None and bias is None else None
    if bare is not None and isinstance(walk.module, nn.LayerNorm) and len(bare.dims) == 1:
        walk.attribute(walk.path, "normalized_shape[0]", int(shape[0]), bare.ids)
    if len(dims) == 1:
        labels = _vectors(walk, labels, dims[0], (weight, bias), reason)
    else:
        for vector in (weight, bias):
            if vector is not None:
                operands = [(labels, tuple(x.shape)), (walk.labels(vector), tuple(vector.shape))]
                labels = walk.algebra.elementwise(operands, x.shape, reason)
    _reduced(walk, labels, dims)
    walk.mark(out[0] if isinstance(out, tuple) else out, labels)
    return out


@rule("native_group_norm", "group_norm")
def group_norm(walk: Walk, func: Any, args: Args, kwargs: Kwargs) -> Any:
    """Whole groups can go; with a single group its channels can."""
    x, weight, bias, groups = args[0], args[1], args[2], int(args[6])
    reason = walk.reason("group norm", "groups go whole")
    labels = _vectors(walk, walk.labels(x), 1, (weight, bias), reason)
    channel = labels.on(1)
    if weight is None and channel is not None and isinstance(walk.module, nn.GroupNorm):
        walk.attribute(walk.path, "num_channels", walk.module.num_channels, channel.ids)
    kept = _kept(walk, x, [1]) if groups == 1 else {}
    if kept:
        short = _narrow(x, kept)
        flat = {0: kept[1]}
        scale, shift = (None if v is None else _narrow(v, flat) for v in (weight, bias))
        rest = (short.shape[0], short.shape[1], args[5], 1, args[7])
        out = func(short.contiguous(), scale, shift, *rest, **kwargs)
        out = (_widen(out[0], x, kept), *out[1:])
    else:
        out = func(*args, **kwargs)
    if channel is not None and groups == 1:
        _reduced(walk, labels, [1])
    elif channel is not None and isinstance(walk.module, nn.GroupNorm):
        rows = channel.ids.reshape(groups, -1)
        walk.atoms.union(rows[:, 1:], rows[:, :1], reason)
        walk.attribute(walk.path, "num_groups", groups, rows[:, 0])
    elif channel is not None:
        walk.atoms.pin(channel.ids, walk.reason("group norm", "its groups are not on a layer"))
    walk.mark(out[0], labels)
    return out


@rule("_softmax", "softmax", "_log_softmax", "log_softmax", "_safe_softmax")
def softmax(walk: Walk, func: Any, args: Args, kwargs: Kwargs) -> Any:
    """Over one dim, kept positions only."""
    x, dim = args[0], args[1] % args[0].dim()
    labels = walk.labels(x)
    factor = labels.on(dim)
    if factor is not None and len(factor.dims) > 1:  # whole heads go, each with its own softmax
        labels = walk.algebra.keep_size(labels, dim, walk.reason("softmax", "runs over it"))
    kept = _kept(walk, x, [dim])
    out = func(_narrow(x, kept), *args[1:], **kwargs)
    out = _widen(out, x, kept)
    _reduced(walk, labels, [dim])
    walk.mark(out, Labels(labels.factors))
    return out


@rule(
    "mean",
    "sum",
    "amax",
    "amin",
    "var",
    "std",
    "var_mean",
    "std_mean",
    "aminmax",
    "any",
    "all",
    "linalg_vector_norm",
    "norm",
    "max",
    "min",
    "prod",
    "logsumexp",
)
def reduce(walk: Walk, func: Any, args: Args, kwargs: Kwargs) -> Any:
    """Reductions over some dims, kept positions only."""
    x = args[0]
    overload, name = func._overloadname, func.overloadpacket.__name__
    if name in ("max", "min") and overload == "other":
        return _binary(walk, func, args, kwargs)
    dims = _reduced_dims(x, name, args, kwargs)
    labels = walk.labels(x)
    for dim in dims:
        factor = labels.on(dim)
        if factor is not None and len(factor.dims) > 1:
            labels = walk.algebra.keep_size(labels, dim, walk.reason(name, "runs over it"))
    kept = _kept(walk, x, dims)
    out = func(_narrow(x, kept), *args[1:], **kwargs)
    _reduced(walk, labels, dims)
    results = out if isinstance(out, tuple) else (out,)
    keepdim = results[0].dim() == x.dim()
    left = Labels(tuple(f for f in labels.factors if not set(f.dims) & set(dims)))
    if not keepdim:
        stay = [d for d in range(x.dim()) if d not in dims]
        left = left.moved({d: i for i, d in enumerate(stay)})
    for result in results:
        walk.mark(result, left)
    if name in ("max", "min") and len(results) == 2:
        for factor in {id(f): f for d in dims if (f := labels.on(d)) is not None}.values():
            walk.pin_when_read(results[1], factor.ids)
    return out


def _binary(walk: Walk, func: Any, args: Args, kwargs: Kwargs) -> Any:
    out = func(*args, **kwargs)
    operands = [(walk.labels(t), tuple(t.shape)) for t in args[:2]]
    walk.mark(out, walk.algebra.elementwise(operands, out.shape, walk.reason("max", "fixed size")))
    return out


def _reduced_dims(x: torch.Tensor, name: str, args: Args, kwargs: Kwargs) -> list[int]:
    at = 2 if name in ("linalg_vector_norm", "norm") else 1
    dims = args[at] if len(args) > at else kwargs.get("dim")
    if dims is None or (isinstance(dims, list | tuple) and not dims):
        return list(range(x.dim()))
    if isinstance(dims, bool) or not isinstance(dims, int | list | tuple):
        return list(range(x.dim()))
    return [d % x.dim() for d in ([dims] if isinstance(dims, int) else dims)]


@rule(
    "max_pool1d_with_indices",
    "max_pool2d_with_indices",
    "max_pool3d_with_indices",
    "max_pool1d",
    "max_pool2d",
    "avg_pool1d",
    "avg_pool2d",
    "avg_pool3d",
    "_adaptive_avg_pool2d",
    "_adaptive_avg_pool3d",
    "adaptive_avg_pool1d",
    "adaptive_avg_pool2d",
    "adaptive_avg_pool3d",
    "adaptive_max_pool1d",
    "adaptive_max_pool2d",
    "adaptive_max_pool3d",
    "_upsample_nearest_exact1d",
    "_upsample_nearest_exact2d",
    "_upsample_nearest_exact3d",
    "upsample_nearest1d",
    "upsample_nearest2d",
    "upsample_nearest3d",
    "upsample_trilinear3d",
    "upsample_bilinear2d",
    "upsample_bicubic2d",
    "_upsample_bicubic2d_aa",
    "_upsample_bilinear2d_aa",
    "upsample_linear1d",
    "grid_sampler_2d",
    "grid_sampler_3d",
)
def pool(walk: Walk, func: Any, args: Args, kwargs: Kwargs) -> Any:
    """Per channel; spatial dims are the last ones and stay."""
    x = args[0]
    out = func(*args, **kwargs)
    results = out if isinstance(out, tuple) else (out,)
    labels = walk.labels(x)
    name = func.overloadpacket.__name__
    spatial = 1 if "1d" in name else 3 if "3d" in name else 2
    for k, dim in enumerate(range(x.dim() - spatial, x.dim())):
        if "adaptive" not in name and "pool" in name and _untouched(args, k):
            continue
        labels = walk.algebra.keep_size(labels, dim, walk.reason(name, "slides over it"))
    for result in results:
        walk.mark(result, Labels(labels.factors))
    return out


def _untouched(args: Args, k: int) -> bool:
    """Whether a pooling window of size 1, stride 1, without padding leaves spatial dim ``k`` alone."""

    def at(position: int, default: int) -> int:
        value = args[position] if len(args) > position else None
        if value is None or (isinstance(value, list | tuple) and not value):
            return default
        return int(value[k % len(value)] if isinstance(value, list | tuple) else value)

    kernel = at(1, 0)
    return kernel == 1 and at(2, kernel) == 1 and at(3, 0) == 0


@rule("_fused_rms_norm", "rms_norm")
def rms_norm(walk: Walk, func: Any, args: Args, kwargs: Kwargs) -> Any:
    """Root-mean-square norm over the last dim, kept channels only."""
    x, weight = args[0], args[2] if len(args) > 2 else None
    last = x.dim() - 1
    kept = _kept(walk, x, [last])
    if kept:
        short = _narrow(x, kept)
        scale = None if weight is None else _narrow(weight, {0: kept[last]})
        out = func(short, [short.shape[-1]], scale, *args[3:], **kwargs)
        wide = _widen(out[0] if isinstance(out, tuple) else out, x, kept)
        out = (wide, *out[1:]) if isinstance(out, tuple) else wide
    else:
        out = func(*args, **kwargs)
    reason = walk.reason("RMS norm", "its size cannot change")
    labels = _vectors(walk, walk.labels(x), last, (weight,), reason)
    _reduced(walk, labels, [last])
    walk.mark(out[0] if isinstance(out, tuple) else out, Labels(labels.factors))
    return out


@rule("_weight_norm_interface")
def weight_norm(walk: Walk, func: Any, args: Args, kwargs: Kwargs) -> Any:
    """``g * v / |v|`` with a norm per position of one dim, over all the others: of kept channels alone.

    As with a layer norm, what stays is normalised anew where channels that are read go.
    """
    v, g = args[0], args[1]
    dim = (args[2] if len(args) > 2 else kwargs.get("dim", 0)) % v.dim()
    others = [d for d in range(v.dim()) if d != dim]
    kept = _kept(walk, v, others)
    out = func(_narrow(v, kept), *args[1:], **kwargs)
    out = (_widen(out[0], v, kept), *out[1:])
    reason = walk.reason("weight norm", "its size cannot change")
    operands = [(walk.labels(v), tuple(v.shape)), (walk.labels(g), tuple(g.shape))]
    labels = walk.algebra.elementwise(operands, v.shape, reason)
    _reduced(walk, labels, others)
    walk.mark(out[0], labels)
    return out
