"""Activations of an unchanged prefix, computed once for all candidates that agree so far.

A *boundary* is a module whose output is all that later computation reads of what came before. It is
found by trial: every module that ended before it gets shapes without values (meta tensors), it
returns its true output, and the network must give the same result. Two candidates agree at a
boundary when their plans make the same of every tensor and number used up to there.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils import _pytree as pytree

from prunus.candidates.skeleton import Forward, Skeleton
from prunus.graph import Inputs
from prunus.graph.inputs import call, flat_tensors, output_tensors
from prunus.plan import KeepChannels, Plan, ReindexBuffer, SetAttribute, ZeroConnections
from prunus.seeding import host_states

LEAST_WORK = 0.1
"""Share of the multiply-adds before a boundary: for less, keeping activations costs what it saves."""


@dataclass(frozen=True)
class Boundary:
    """A module that all later computation reads through.

    Attributes:
        module: Its path.
        done: Outermost modules that ended before it began.
        owners: Paths of all modules that had begun when it ended: their tensors and numbers decide
            its output.
        work: Multiply-adds of layers up to there, as a share of all.
    """

    module: str
    done: frozenset[str]
    owners: frozenset[str]
    work: float


@dataclass(frozen=True, eq=False)
class Passed:
    """What passes a boundary on one batch: its output, and shapes of what ended before."""

    value: Any
    shapes: dict[str, Any]

    @property
    def nbytes(self) -> int:
        """Bytes of the output."""
        return sum(t.numel() * t.element_size() for t in pytree.tree_leaves(self.value) if _is(t))


class Prefix:
    """The boundaries of a network, and runs that begin or are recorded at them.

    Args:
        skeleton: In its dense shape.
        inputs: A real batch; two samples do.
        least_work: Share of all multiply-adds that a boundary must have before it.

    Attributes:
        boundaries: In forward order; each later one includes all that the earlier ones do.
        calls: Of every inner module in one forward pass.
        draws_on_host: Whether the network draws from the global states of Python or NumPy.
    """

    def __init__(
        self, skeleton: Skeleton, inputs: Inputs, *, least_work: float = LEAST_WORK
    ) -> None:
        self._skeleton = skeleton
        self._least_work = least_work
        self.calls: Mapping[str, int] = {}
        self.draws_on_host = False
        self.boundaries: tuple[Boundary, ...] = tuple(self._find(inputs))

    def signatures(self, plan: Plan) -> tuple[str, ...]:
        """A hash for each boundary of what a plan makes of all that comes up to it."""
        items = [(self._owners(name), text) for name, text in _decisions(plan)]
        found = []
        for boundary in self.boundaries:
            mine = sorted(text for owners, text in items if not boundary.owners.isdisjoint(owners))
            found.append(hashlib.sha256("\n".join(mine).encode()).hexdigest())
        return tuple(found)

    def run(
        self,
        inputs: Inputs,
        start: tuple[int, Passed] | None = None,
        record: Sequence[int] = (),
    ) -> tuple[Any, dict[int, Passed]]:
        """Run the loaded candidate.

        Args:
            inputs: A batch.
            start: A boundary, by its number, and what passes it on this batch.
            record: Boundaries after the start whose outputs are wanted.

        Returns:
            The network's output, and what passed the wanted boundaries.
        """
        watch = _Watch(
            None if start is None else (self.boundaries[start[0]], start[1]),
            {self.boundaries[index].module: index for index in record},
            self.boundaries,
        )
        with _watched(self._skeleton, watch):
            out = call(self._skeleton.module, inputs)
        return out, watch.passed

    def _owners(self, name: str) -> tuple[str, ...]:
        """Modules that a decision is about: all that hold the tensor, or the one with the number."""
        return self._skeleton.owners(name) or (name,)

    def _find(self, inputs: Inputs) -> Iterator[Boundary]:
        trail = _Trail(self._skeleton)
        before = host_states()
        with _watched(self._skeleton, trail):
            reference = output_tensors(call(self._skeleton.module, inputs))
        self.calls = trail.calls
        drawn = [a != b for a, b in zip(before, host_states(), strict=True)]
        self.draws_on_host = any(drawn[:2])
        # What is kept of one batch or drawn for it decides another: beginnings cannot be left out.
        stateful = self._skeleton.has_written() or any(drawn)
        self._skeleton.reset()
        if stateful:
            return
        trial = _Trial(self._skeleton, inputs, reference)
        found: list[Boundary] = []
        last: list[str] = []
        # Of modules with the same tensors before them the last is tried first: it saves most.
        for boundary, passed in reversed(list(trail.candidates())):
            owners = self._with_tensors(boundary.owners)
            worth = boundary.work >= self._least_work
            if worth and owners != last and trial.holds(boundary, passed):
                last = owners
                found.append(boundary)
        yield from reversed(found)

    def _with_tensors(self, owners: frozenset[str]) -> list[str]:
        def holds(module: nn.Module) -> bool:
            return any(True for _ in module.parameters(recurse=False)) or any(
                True for _ in module.buffers(recurse=False)
            )

        return [name for name in sorted(owners) if name and holds(self._skeleton.submodule(name))]


class _Trial:
    """Tries whether a module is a boundary."""

    def __init__(self, skeleton: Skeleton, inputs: Inputs, reference: list[Tensor]) -> None:
        self._skeleton = skeleton
        self._inputs = inputs
        self._others = pytree.tree_map(_turned, inputs)
        self._reference = reference

    def holds(self, boundary: Boundary, passed: Passed) -> bool:
        """Whether its output decides the rest, and its owners' tensors decide its output."""
        try:
            return self._decides_the_rest(boundary, passed) and self._is_decided(boundary, passed)
        except Exception:  # noqa: BLE001  # whatever a network does with a shape without values
            return False
        finally:
            self._skeleton.reset()

    def _decides_the_rest(self, boundary: Boundary, passed: Passed) -> bool:
        # Other samples first: what a module keeps from its last call must not count either.
        call(self._skeleton.module, self._others)
        with _watched(self._skeleton, _Watch((boundary, passed), {}, ())):
            out = output_tensors(call(self._skeleton.module, self._inputs))
        return _same(out, self._reference)

    def _is_decided(self, boundary: Boundary, passed: Passed) -> bool:
        """Its output stays as it is when every tensor of the other modules is spoiled."""
        for name in self._skeleton.names:
            if all(owner not in boundary.owners for owner in self._skeleton.owners(name)):
                value = self._skeleton.tensor(name)
                self._skeleton.put(name, _spoiled(value))
        stop = _Stop(boundary.module)
        try:
            with _watched(self._skeleton, stop):
                call(self._skeleton.module, self._inputs)
        except _StoppedError:
            pass
        return _same(list(flat_tensors(stop.value)), list(flat_tensors(passed.value)))


class _StoppedError(Exception):
    """A run has come to where it was to stop."""


class _Stop:
    """Ends a run behind a module."""

    def __init__(self, module: str) -> None:
        self._module = module
        self.value: Any = None

    def __call__(
        self, name: str, forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        out = forward(*args, **kwargs)
        if name == self._module:
            self.value = out
            raise _StoppedError
        return out


def _same(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) > 0 and all(
        x.device == y.device and torch.equal(x, y) for x, y in zip(a, b, strict=True)
    )


def _turned(value: Any) -> Any:
    """Other samples: the batch in reverse."""
    return value.flip(0) if _is(value) and value.dim() else value


def _spoiled(tensor: Tensor) -> Tensor:
    if tensor.is_floating_point():
        return torch.full_like(tensor, float("nan"))
    return torch.zeros_like(tensor)


class _Trail:
    """Notes the tree of calls of one forward pass."""

    def __init__(self, skeleton: Skeleton) -> None:
        self._skeleton = skeleton
        self._began: list[str] = []
        self._open: list[str] = []
        self._ended: list[tuple[str, frozenset[str], int, Any, int]] = []
        self._work = 0
        self._done: list[str] = []
        self._shapes: dict[str, Any] = {}

    def __call__(
        self, name: str, forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        before = frozenset(self._done)
        self._began.append(name)
        if isinstance(self._skeleton.submodule(name), nn.MultiheadAttention):
            self._began.append(f"{name}.out_proj")  # is read, and never called
        mark = len(self._done)
        out = forward(*args, **kwargs)
        del self._done[mark:]  # what ended inside is not outermost
        self._done.append(name)
        self._shapes[name] = _shapes_of(out)
        self._work += _multiply_adds(self._skeleton.submodule(name), out)
        if any(True for _ in flat_tensors(out)):
            self._ended.append((name, before, len(self._began), _copied(out), self._work))
        return out

    @property
    def calls(self) -> Mapping[str, int]:
        """How often each module was called."""
        return Counter(self._began)

    def candidates(self) -> Iterator[tuple[Boundary, Passed]]:
        """Every module that was called once, in order of ending.

        Not one behind which a batch norm from before runs again: its statistics are those of all its
        calls, so that later layers decide what it makes of the earlier ones.
        """
        calls = self.calls
        for name, done, began, value, work in self._ended:
            owners = frozenset(("", *self._began[:began]))
            again = owners.intersection(self._began[began:], self._skeleton.norms)
            if calls[name] == 1 and not again:
                shapes = {inner: self._shapes[inner] for inner in done}
                share = work / self._work if self._work else 0.0
                yield Boundary(name, done, owners, share), Passed(value, shapes)


class _Watch:
    """Begins at a boundary, and records at others."""

    def __init__(
        self,
        start: tuple[Boundary, Passed] | None,
        record: dict[str, int],
        boundaries: Sequence[Boundary],
    ) -> None:
        self._start = start
        self._record = record
        self._boundaries = boundaries
        self._shapes: dict[str, Any] = {} if start is None else dict(start[1].shapes)
        self.passed: dict[int, Passed] = {}

    def __call__(
        self, name: str, forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if self._start is not None:
            boundary, passed = self._start
            if name in boundary.done:
                return _without_values(passed.shapes[name])
            if name == boundary.module:
                self._shapes[name] = _shapes_of(passed.value)
                return _copied(passed.value)  # what follows may work in place
        out = forward(*args, **kwargs)
        if self._record:
            self._shapes[name] = _shapes_of(out)
            index = self._record.get(name)
            if index is not None:
                shapes = {inner: self._shapes[inner] for inner in self._boundaries[index].done}
                self.passed[index] = Passed(_copied(out), shapes)
        return out


@contextmanager
def _watched(skeleton: Skeleton, watcher: Any) -> Iterator[None]:
    skeleton.watcher = watcher
    try:
        yield
    finally:
        skeleton.watcher = None


def _decisions(plan: Plan) -> Iterator[tuple[str, str]]:
    """What a plan decides, each with the name of the tensor or the path of the module it is about."""
    for edit in plan.edits:
        if isinstance(edit, KeepChannels):
            for axis in edit.axes:
                yield axis.tensor, f"{axis.tensor} {axis.dim} {axis.keep.packed}"
        elif isinstance(edit, SetAttribute):
            yield edit.module, f"{edit.module} {edit.attribute} {edit.after}"
        elif isinstance(edit, ReindexBuffer):
            yield edit.buffer, f"{edit.buffer} {edit.keep.packed}"
        elif isinstance(edit, ZeroConnections):
            yield edit.tensor, f"{edit.tensor} {edit.level} {edit.keep.packed}"


def _multiply_adds(module: nn.Module, out: Any) -> int:
    """Of one layer with a weight, about: each output takes what one output channel's weights are."""
    if isinstance(module, nn.RNNBase):
        steps = next(flat_tensors(out)).numel() // (module.proj_size or module.hidden_size)
        weights = sum(
            w.numel() for w in module._parameters.values() if w is not None and w.dim() > 1
        )
        return steps * weights // (1 + module.bidirectional)
    weight = module._parameters.get("weight")
    if weight is None or weight.dim() < 2 or not _is(out) or isinstance(module, nn.Embedding):
        return 0
    return int(out.numel()) * (weight.numel() // weight.shape[0])


def _is(value: Any) -> bool:
    return isinstance(value, Tensor)


def _copied(value: Any) -> Any:
    return pytree.tree_map(lambda t: t.clone() if _is(t) else t, value)


def _shapes_of(value: Any) -> Any:
    def shape(one: Any) -> Any:
        return (one.shape, one.dtype) if _is(one) else one

    return pytree.tree_map(shape, value, is_leaf=_is_packed)


def _without_values(shapes: Any) -> Any:
    def empty(spec: Any) -> Any:
        if _is_spec(spec):
            return torch.empty(spec[0], dtype=spec[1], device="meta")
        return spec

    return pytree.tree_map(empty, shapes, is_leaf=lambda one: _is_spec(one) or _is_packed(one))


def _is_packed(value: Any) -> bool:
    """Whether it is a packed sequence, which takes nothing but tensors: it is left as it is."""
    return isinstance(value, PackedSequence)


def _is_spec(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], torch.dtype)
