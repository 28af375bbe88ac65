"""One forward pass under observation: every ATen operation carries labels from inputs to outputs.

The same walk serves twice. *Tracing* unites atoms and notes what each operation costs. A *masked run*
is given which atoms stay: it changes no label, and multiplies by zero (or leaves out of a reduction)
whatever the plan removes, at full width. See ``certify``.
"""

from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from prunus.graph.config import HEAD_COUNTS
from prunus.graph.findings import AttributeUse, Findings, MacTerm
from prunus.graph.fixed_macs import fixed_macs
from prunus.graph.inputs import flat_tensors
from prunus.graph.labels import NONE, Algebra, Factor, Labels
from prunus.graph.traced_numbers import Origin, SizeUse, TracedInt, traced_int
from prunus.plan import BoolArray, IntArray

Rule = Callable[["Walk", Any, tuple[Any, ...], dict[str, Any]], Any]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register the rule of some ATen operations (names without ``aten::``)."""

    def register(function: Rule) -> Rule:
        for name in names:
            if name in RULES:
                raise ValueError(f"two rules for {name}")
            RULES[name] = function
        return function

    return register


WRITTEN = "is given a size that is a number in the code"


class Walk(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it bare
    """Walks labels through whatever runs inside the ``with`` block on ``network``'s tensors."""

    def __init__(
        self,
        network: nn.Module,
        algebra: Algebra,
        findings: Findings,
        keep: BoolArray | None = None,
        *,
        literal: bool = True,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it bare
        self.algebra = algebra
        self.atoms = algebra.atoms
        self.findings = findings
        self.keep = keep
        self._literal = literal
        self._labels: MutableMapping[torch.Tensor, Labels] = WeakIdKeyDictionary()
        self._positions: MutableMapping[torch.Tensor, tuple[IntArray, str]] = WeakIdKeyDictionary()
        self._stack: list[str] = [""]
        self.split_sizes: list[int] = []
        self.scalars: list[Origin] = []
        self._network = network
        tensors = [*network.named_parameters(), *network.named_buffers()]
        self._names = {id(tensor): name for name, tensor in tensors}
        self._held = [tensor for _, tensor in tensors]  # ids stay valid while we hold the tensors
        self._modules = dict(network.named_modules())

    # -- where we are -------------------------------------------------------------------------

    @contextmanager
    def follow_modules(self) -> Iterator[None]:
        """Keep ``module`` at the innermost module that runs."""
        handles = []
        for path, module in self._network.named_modules():
            handles.append(module.register_forward_pre_hook(self._enter(path)))
            handles.append(module.register_forward_hook(self._leave, always_call=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, path: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            self._stack.append(path)

        return hook

    def _leave(self, *_: Any) -> None:
        if len(self._stack) > 1:
            self._stack.pop()

    @property
    def path(self) -> str:
        """Path of the innermost module."""
        return self._stack[-1]

    @property
    def module(self) -> nn.Module:
        """The innermost module."""
        innermost: nn.Module = self._modules[self.path]
        return innermost

    @property
    def masked(self) -> bool:
        """Whether this is a masked run (else a tracing walk)."""
        return self.keep is not None

    # -- labels -------------------------------------------------------------------------------

    def labels(self, tensor: Any) -> Labels:
        """Labels of a tensor; a parameter met for the first time gets fresh atoms."""
        if not isinstance(tensor, torch.Tensor):
            return NONE
        known = self._labels.get(tensor)
        if known is not None:
            return self.algebra.simplify(known)
        name = self._names.get(id(tensor))
        if name is None:
            return NONE
        labels = self._introduce(name, tensor)
        self._labels[tensor] = labels
        return labels

    def _introduce(self, name: str, tensor: torch.Tensor) -> Labels:
        from_dims = []
        owner = self._modules.get(name.rpartition(".")[0])
        channels = 2 if isinstance(owner, nn.modules.conv._ConvNd) else tensor.dim()
        for dim, size in enumerate(tensor.shape[:channels]):
            if size > 1:
                if (name, dim) not in self.findings.axes:
                    if self.masked:
                        continue
                    weak = not isinstance(tensor, nn.Parameter)
                    self.findings.axes[name, dim] = self.atoms.new(size, weak=weak)
                    self.findings.owners.append(
                        (int(self.findings.axes[name, dim][0]), (name, dim))
                    )
                from_dims.append((dim, self.findings.axes[name, dim]))
        return Labels(tuple(Factor((d,), ids) for d, ids in from_dims), name)

    def name_of(self, tensor: torch.Tensor) -> str | None:
        """The parameter or buffer that this very tensor is."""
        return self._names.get(id(tensor))

    def mark(self, tensor: Any, labels: Labels) -> None:
        """Attach labels to a result."""
        if isinstance(tensor, torch.Tensor):
            labels = _without_ones(labels, tensor.shape)
            self._labels[tensor] = labels
            if not self.masked:
                self.findings.joints += [f.ids for f in labels.factors if len(f.dims) > 1]

    def contracted(self, labels: Labels, ids: IntArray | None) -> None:
        """Note that a parameter's axes are read by a contraction over ``ids``."""
        if labels.param is None or ids is None or self.masked:
            return
        starts = np.array([start for start, _ in self.findings.owners])
        for k in np.unique(np.searchsorted(starts, ids.ravel(), side="right") - 1):
            if k >= 0:
                self.findings.contracted.add(self.findings.owners[k][1])

    def note_mixed(self, ids: IntArray | None) -> None:
        """Note that activations are summed over these channels without a weight that could be zero."""
        if ids is not None and not self.masked:
            self.findings.reduced.append(ids)

    def note_aligned(self, ids: IntArray | None) -> None:
        """Note that a kernel takes only multiples of ``ALIGNED`` of these channels."""
        if ids is not None and not self.masked:
            self.findings.aligned.append(ids)

    def pin_when_read(
        self,
        tensor: torch.Tensor,
        ids: IntArray,
        reason: str = "positions on it are told by number",
    ) -> None:
        """Note a result that is right only while none of ``ids`` goes: as long as nothing reads it.

        Such as the positions of a maximum, or a channel that is picked for its shape alone.
        """
        if not self.masked:
            self._positions[tensor] = ids, reason

    def read(self, tensors: Iterable[torch.Tensor]) -> None:
        """Note that tensors are read."""
        for tensor in tensors if self._positions else ():
            known = self._positions.get(tensor)
            if known is not None:
                self.atoms.pin(*known)

    def count(self, op: str, dims: list[tuple[int, IntArray | None]]) -> None:
        """Note MACs: the product of sizes, labelled where ids are given."""
        if self.masked:
            return
        constant = int(np.prod([size for size, ids in dims if ids is None], dtype=np.int64))
        labelled = tuple(ids for _, ids in dims if ids is not None)
        self.findings.macs.append(MacTerm(self.path, op, constant, labelled))

    def attribute(self, module: str, name: str, value: int, ids: IntArray | None) -> None:
        """Note that a module's number is the size of a dim."""
        if not self.masked:
            self.findings.attributes.append(AttributeUse(module, name, value, ids))

    def dim_labels(self, tensor: torch.Tensor, dim: int) -> IntArray | None:
        """Labels of one dim, its own axis first; None where it carries none."""
        factor = self.labels(tensor).on(dim) if tensor.dim() else None
        return None if factor is None else np.moveaxis(factor.ids, factor.dims.index(dim), 0)

    def size_used(self, use: SizeUse) -> None:
        """A traced number arrived at a function that made a dim of that size."""
        ids, size = self.dim_labels(use.tensor, use.dim), int(use.tensor.shape[use.dim])
        alike = use.constant or (use.fresh and use.tensor.stride(use.dim) == 0)
        if isinstance(use.origin, tuple):
            if ids is None and alike and size > 1:
                ids = self._constant(use.tensor, use.dim)
            self.attribute(*use.origin, size, ids if size > 1 else None)
        elif size > 1:
            if ids is None and alike and self.algebra.own_column(use.origin) is None:
                # Which of joint dims goes is not known yet.
                ids = self._constant(use.tensor, use.dim)
            self._follow(use, ids)

    def rows_used(self, whole: TracedInt, tensor: torch.Tensor, dim: int) -> None:
        """A dim and the next one were made of one number, ``heads, width // heads``: it follows both."""
        labels = self.labels(tensor)
        factor = labels.on(dim + 1)
        if factor is None or self.masked:
            return
        if tensor.shape[dim] == 1:  # one head is all of it
            ids = np.moveaxis(factor.ids, factor.dims.index(dim + 1), 0)
        elif dim in factor.dims:
            axes = factor.dims.index(dim), factor.dims.index(dim + 1)
            both = np.moveaxis(factor.ids, axes, (0, 1))
            ids = both.reshape(int(whole), *both.shape[2:])
        else:
            return
        self.sizes_compared(traced_int(int(whole), ids, self), whole)

    def multiple_used(self, number: TracedInt, ids: IntArray) -> None:
        """A dim was viewed as several times a number, as the ``3 * d`` of queries, keys and values."""
        if isinstance(number.origin, tuple) and not self.masked:
            for piece in np.split(ids, len(ids) // int(number)):
                use = AttributeUse(*number.origin, int(number), piece)
                self.findings.multiples.append(use)

    def size_inferred(self, tensor: torch.Tensor, dim: int) -> None:
        """A view left a head count open: what the module says of it follows the cut all the same.

        Nothing in the forward pass reads these numbers, so only their names and values tell. A number
        that is read after all (as ``view(b, t, self.num_heads, -1)`` does) tells of itself.
        """
        factor = self.labels(tensor).on(dim) if tensor.dim() else None
        if factor is None or self.masked or dim not in factor.dims:
            return
        heads = np.moveaxis(factor.ids, factor.dims.index(dim), 0)
        known = vars(self.module)
        # Heads stand before their width: last, behind as many heads, it is a width of the same size.
        width = dim == factor.dims[-1] and heads.shape[0] in tensor.shape[:dim]
        for name in HEAD_COUNTS:
            if known.get(name) == heads.shape[0] and not width:
                use = AttributeUse(self.path, name, heads.shape[0], heads)
                self.findings.presumed.append(use)
        if heads.ndim > 1 and known.get("all_head_size") == heads.size:
            use = AttributeUse(self.path, "all_head_size", heads.size, factor.ids.reshape(-1))
            self.findings.presumed.append(use)

    def sizes_written(self, tensor: torch.Tensor, dims: Sequence[int]) -> None:
        """A view was given plain numbers for some dims: of those made of one, the others are cut.

        Where all of them are plain, one of the numbers may have been computed from what follows a cut;
        and so may any of them, by what forgets where numbers came from. See ``follow`` for ``literal``.
        """
        labels = known = self.labels(tensor)
        for factor in known.factors:
            written = [dim for dim in factor.dims if dim in dims]
            if written and len(written) < len(factor.dims):
                self.findings.written = True
                for dim in written if self._literal else ():
                    reason = self.reason("view", WRITTEN)
                    labels = self.algebra.keep_size(labels, dim, reason)
        if labels is not known:
            self.mark(tensor, labels)

    def _constant(self, made: torch.Tensor, dim: int) -> IntArray:
        """What is alike along a dim of a size that a module names follows what reads it there.

        Such as a state to begin with, which follows what is written into it as well, or a mask that
        is expanded to all heads. A masked run knows no labels of it, and masks where it is read.
        """
        ids = self.atoms.new(made.shape[dim], weak=True)
        known = self.labels(made)
        self.mark(made, Labels((*known.factors, Factor((dim,), ids)), known.param))
        return ids

    def _follow(self, use: SizeUse, ids: IntArray | None) -> None:
        """A dim was made as long as another labelled one."""
        origin = use.origin
        if isinstance(origin, tuple):
            return
        column = self.algebra.own_column(origin)
        if ids is None and use.fresh and column is not None:
            # A constant (or an expanded one) as long as a labelled dim follows that dim.
            known = self.labels(use.tensor)
            self.mark(use.tensor, Labels((*known.factors, Factor((use.dim,), column)), known.param))
        elif ids is not None and origin.shape[0] == ids.shape[0]:
            self.findings.same_size.append((origin, ids))
        else:
            self.findings.whole.append(origin)

    def sizes_compared(self, one: TracedInt, other: TracedInt) -> None:
        """The network compared two sizes: after a cut the outcome has to be the same.

        Equal sizes go on being equal. Where they are not, what one of them is must not change; of two
        numbers on modules the plan keeps apart what a cut would make equal.
        """
        origins = (one.origin, other.origin)
        dims = [origin for origin in origins if not isinstance(origin, tuple)]
        attributes = [origin for origin in origins if isinstance(origin, tuple)]
        if int(one) != int(other):
            self.findings.whole += dims
            if len(attributes) == 2:
                first, second = (
                    AttributeUse(*origin, int(number), None)
                    for origin, number in zip(attributes, (one, other), strict=True)
                )
                self.findings.unequal.append((first, second))
        elif len(dims) == 2:
            self.findings.same_size.append((dims[0], dims[1]))
        elif dims and attributes and int(one) > 1:
            self.attribute(*attributes[0], int(one), dims[0])

    def scalar_used(self, origin: Origin) -> None:
        """A formula computed with a traced number."""
        self.scalars.append(origin)

    def expect_split(self, sizes: list[int]) -> None:
        """The next split has these sizes, traced ones among them."""
        self.split_sizes = sizes

    # -- masks --------------------------------------------------------------------------------

    def stays(self, ids: IntArray) -> BoolArray:
        """Which positions stay, in a masked run."""
        if self.keep is None:
            raise RuntimeError("only a masked run knows what stays")
        return self.keep[ids]

    def mask(self, tensor: torch.Tensor, dim: int) -> torch.Tensor:
        """In a masked run, zero what is removed along ``dim``; else the tensor itself."""
        factor = self.labels(tensor).on(dim) if self.masked else None
        if factor is None:
            return tensor
        stays = self.stays(factor.ids)
        if stays.all():
            return tensor
        shape = [1] * tensor.dim()
        for d, size in zip(factor.dims, stays.shape, strict=True):
            shape[d] = size
        return tensor * torch.from_numpy(stays.reshape(shape)).to(tensor)

    # -- dispatch -----------------------------------------------------------------------------

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        # A scripted function's operations come here with the watch over sizes on, as no others do: it
        # must not take what the rules ask of shapes for questions of the network.
        with torch._C.DisableTorchFunction():
            return self._followed(func, args, kwargs or {})

    def _followed(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The result of an operation, with labels."""
        name = func.overloadpacket.__name__
        self.read(flat_tensors((args, kwargs)))
        known = RULES.get(name)
        if known is not None:
            return known(self, func, args, kwargs)
        out = func(*args, **kwargs)
        macs = fixed_macs(name, args)
        if macs is not None:
            self.count(name, [(macs, None)])
        reason = f"operation '{name}' in '{self.path or 'the network'}' has no rule"
        for tensor in flat_tensors((args, kwargs)):
            labels = self.labels(tensor)
            if labels.factors:
                if macs is None and not self.masked:  # a masked run may take other kernels
                    self.findings.unknown_ops.add(name)
                self.algebra.pin_all(labels, reason)
        return out

    def reason(self, op: str, why: str) -> str:
        """A sentence that names the operation and the module."""
        return f"{op} in '{self.path or 'the network'}': {why}"


def _without_ones(labels: Labels, shape: torch.Size) -> Labels:
    """Dims of size 1 carry no labels, nor do those of nothing at all."""
    factors = []
    for f in labels.factors:
        axes = [axis for axis, d in enumerate(f.dims) if shape[d] > 1]
        if len(axes) == len(f.dims):
            factors.append(f)
        elif axes and all(shape[d] for d in f.dims):
            ids = f.ids.squeeze(tuple(a for a in range(len(f.dims)) if a not in axes))
            factors.append(Factor(tuple(f.dims[a] for a in axes), ids))
    return Labels(tuple(factors), labels.param)
