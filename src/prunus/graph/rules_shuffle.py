"""Label rules of operations that deal channels out: into pixels, other places, gates, pairs."""

from typing import Any

import numpy as np

from prunus.graph.labels import Factor, Labels
from prunus.graph.walk import Walk, rule
from prunus.plan import IntArray


@rule("pixel_shuffle")
def pixel_shuffle(walk: Walk, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Each run of r * r channels becomes one, of r times the height and width: a run goes whole."""
    out = func(*args, **kwargs)
    labels, ids = _channel_before_images(walk, args[0], "pixel_shuffle")
    if ids is not None:
        rows = ids.reshape(-1, int(args[1]) ** 2)
        walk.atoms.union(rows[:, 1:], rows[:, :1], walk.reason("pixel_shuffle", "runs go whole"))
        labels = _with_channel(labels, args[0].dim() - 3, rows[:, 0])
    walk.mark(out, labels)
    return out


@rule("pixel_unshuffle")
def pixel_unshuffle(walk: Walk, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Each channel becomes a run of r * r."""
    out = func(*args, **kwargs)
    labels, ids = _channel_before_images(walk, args[0], "pixel_unshuffle")
    if ids is not None:
        labels = _with_channel(labels, args[0].dim() - 3, np.repeat(ids, int(args[1]) ** 2))
    walk.mark(out, labels)
    return out


@rule("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(walk: Walk, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Groups of channels (dim 1) are dealt out: all lose the same positions, so that they stay equal."""
    out = func(*args, **kwargs)
    reason = walk.reason("channel_shuffle", "groups stay equal")
    labels, ids = walk.algebra.single(walk.labels(args[0]), 1, reason)
    if ids is not None:
        rows = ids.reshape(int(args[1]), -1)
        walk.atoms.union(rows[1:], rows[:1], reason)
        labels = _with_channel(labels, 1, rows.T.reshape(-1))
    walk.mark(out, Labels(labels.factors))
    return out


def _channel_before_images(walk: Walk, tensor: Any, name: str) -> tuple[Labels, IntArray | None]:
    """Labels without those of height and width, the last two dims, and those of the dim before."""
    labels, n = walk.labels(tensor), tensor.dim()
    for dim in (n - 2, n - 1):
        labels = walk.algebra.keep_size(labels, dim, walk.reason(name, "changes this size"))
    labels, ids = walk.algebra.single(labels, n - 3, walk.reason(name, "moves channels"))
    return Labels(labels.factors), ids


def _with_channel(labels: Labels, dim: int, ids: IntArray) -> Labels:
    return Labels((*(f for f in labels.factors if dim not in f.dims), Factor((dim,), ids)))


@rule("glu")
def glu(walk: Walk, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The first half of a dim is gated by the second: the same positions of both go."""
    out = func(*args, **kwargs)
    given = args[1] if len(args) > 1 else kwargs.get("dim", -1)
    dim = int(given) % args[0].dim()
    reason = walk.reason("glu", "gates halves")
    labels, ids = walk.algebra.single(walk.labels(args[0]), dim, reason)
    if ids is not None:
        rows = ids.reshape(2, -1)
        walk.atoms.union(rows[1], rows[0], reason)
        labels = _with_channel(labels, dim, rows[0])
    walk.mark(out, Labels(labels.factors))
    return out


@rule("view_as_complex")
def view_as_complex(walk: Walk, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Pairs along the last dim become one number each: a pair goes whole."""
    out = func(*args, **kwargs)
    last = args[0].dim() - 1
    reason = walk.reason("view_as_complex", "a number has two parts")
    walk.mark(out, walk.algebra.keep_size(walk.labels(args[0]), last, reason))
    return out


@rule("view_as_real")
def view_as_real(walk: Walk, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A last dim of two is added; labels that are fixed already (an input that a buffer turns) end."""
    out = func(*args, **kwargs)
    labels = walk.labels(args[0])
    free = tuple(f for f in labels.factors if walk.atoms.resolve(f.ids).any())
    walk.mark(out, Labels(free, labels.param))
    return out


@rule("_fft_r2c", "_fft_c2r", "_fft_c2c")
def fourier(walk: Walk, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Mixes the positions of some dims, which stay; all others each for itself.

    Its work grows with the logarithm of a size, which no count of MACs holds: it is told as uncounted.
    """
    out = func(*args, **kwargs)
    labels, n = walk.labels(args[0]), args[0].dim()
    if labels.factors and not walk.masked:
        walk.findings.unknown_ops.add(func.overloadpacket.__name__)
    for dim in args[1]:
        labels = walk.algebra.keep_size(labels, dim % n, walk.reason("fft", "mixes positions"))
    walk.mark(out, Labels(labels.factors))
    return out
