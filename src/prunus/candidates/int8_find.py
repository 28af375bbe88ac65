"""Which convolutions of a network can run in int8, with the ranges of what they read."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from prunus.candidates.fold import SAME, Pair
from prunus.candidates.int8_bytes import Bytes, has_kernel
from prunus.candidates.kernels import Rectified, converted_layers, is_plain_convolution
from prunus.candidates.skeleton import Skeleton
from prunus.data import Inputs
from prunus.errors import InputError
from prunus.graph.difference import relative_difference
from prunus.graph.inputs import call
from prunus.records import int8_weight_bits
from prunus.train.forward import modes_restored


def weight_bits(network: nn.Module) -> int:
    """Bits that the weights of convolutions may have where they multiply bytes; 0: there is no int8.

    There is for float32 networks with convolutions, on CPUs that multiply bytes with kernels for it.
    """
    has_int8 = (
        any(is_plain_convolution(module) for module in network.modules())
        and all(p.device.type == "cpu" for p in network.parameters())
        and all(p.dtype == torch.float32 for p in network.parameters() if p.is_floating_point())
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and hasattr(torch.ops.onednn, "qconv2d_pointwise")
        and has_kernel()
    )
    return int8_weight_bits() if has_int8 else 0


def require_int8(network: nn.Module, bits: int, remedy: str) -> None:
    """Refuse a network or a machine without int8 for weights of so many bits.

    Raises:
        InputError: There is none; says ``remedy``.
    """
    if weight_bits(network) < bits:
        instructions = {7: "AVX2", 8: "VNNI"}[bits]
        raise InputError(
            f"precision 'int{bits}' needs a CPU that multiplies bytes ({instructions}) and a float32 "
            f"network with 2-D convolutions on it; {remedy}"
        )


@dataclass(frozen=True)
class Int8Layer:
    """A convolution that can run in int8, by module paths.

    Attributes:
        layer: Its path.
        shape: Of its input, ``[batch, channels, height, width]``, in the network that was watched.
        reads: Bytes that its input is rounded to.
        norm: Batch norm behind it that can be folded; None: none.
        relu: ReLU behind the batch norm that it can compute; None: none.
        reader: Layer of this kind that alone reads what it returns; None: others do.
    """

    layer: str
    shape: tuple[int, ...]
    reads: Bytes
    norm: str | None = None
    relu: str | None = None
    reader: str | None = None


def find_int8(
    network: nn.Module,
    calibration: Sequence[Inputs],
    pairs: Sequence[Pair],
    rectified: Sequence[Rectified],
) -> tuple[Int8Layer, ...]:
    """Convolutions with a weight of their own that are called once.

    Args:
        network: Run in evaluation mode; not changed.
        calibration: Batches that the ranges of the inputs are taken from, laid out as scored ones.
        pairs: Batch norms that are folded.
        rectified: ReLUs that convolutions compute.
    """
    plain = [
        path
        for path in converted_layers(Skeleton(network))
        if is_plain_convolution(network.get_submodule(path))
    ]
    norms = {pair.layer: pair.norm for pair in pairs}
    relus = {one.layer: one.relu for one in rectified}
    watch = _Watch(network, plain, relus)
    with modes_restored(network):
        network.eval()
        for batch in calibration:
            watch.see(batch)
    once = [
        path
        for path in plain
        if watch.calls.get(path) == len(calibration) and path not in watch.by_keyword
    ]
    links = [
        _Link(layer, norms[layer], relus[layer], reader)
        for layer, reader in watch.readers.items()
        if {layer, reader} <= set(once)
    ]
    skeleton, sample = Skeleton(network), _two(calibration[0])
    readers = {
        link.layer: link.reader
        for link in _alone(skeleton, sample, call(skeleton.module, sample), links)
    }
    return tuple(
        Int8Layer(
            path,
            watch.shapes[path],
            Bytes.spanning(*watch.ranges[path]),
            norms.get(path),
            relus.get(path),
            readers.get(path),
        )
        for path in once
    )


class _Watch:
    """What convolutions read, and from whose ReLU."""

    def __init__(self, network: nn.Module, layers: Sequence[str], relus: Mapping[str, str]) -> None:
        self._network = network
        self._layers = layers
        self._relus = relus
        self._made: dict[int, tuple[str, Tensor]] = {}
        self.ranges: dict[str, tuple[float, float]] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.calls: dict[str, int] = {}
        self.by_keyword: set[str] = set()
        self.readers: dict[str, str] = {}

    def see(self, batch: Inputs) -> None:
        """One batch."""
        module = self._network.get_submodule
        handles = [module(p).register_forward_pre_hook(self._read(p)) for p in self._layers]
        handles += [
            module(relu).register_forward_hook(self._rectify(layer))
            for layer, relu in self._relus.items()
        ]
        try:
            call(self._network, batch)
        finally:
            self._made.clear()
            for handle in handles:
                handle.remove()

    def _read(self, path: str) -> Any:
        def hook(_module: nn.Module, given: tuple[Any, ...]) -> None:
            self.calls[path] = self.calls.get(path, 0) + 1
            if not given:
                self.by_keyword.add(path)
                return
            x: Tensor = given[0]
            low, high = self.ranges.get(path, (0.0, 0.0))
            self.ranges[path] = min(low, float(x.min())), max(high, float(x.max()))
            self.shapes.setdefault(path, tuple(x.shape))
            maker = self._made.get(id(x))
            if maker is not None:
                self.readers[maker[0]] = path

        return hook

    def _rectify(self, layer: str) -> Any:
        def hook(_module: nn.Module, _given: tuple[Any, ...], out: Tensor) -> None:
            self._made[id(out)] = layer, out

        return hook


@dataclass(frozen=True)
class _Link:
    """A layer, the batch norm and the ReLU behind it, and who reads what these return."""

    layer: str
    norm: str
    relu: str
    reader: str


class _MisreadError(Exception):
    """A reader was given something else than what the layer had returned."""


_Mark = Callable[[Tensor], Tensor]
_MARKS: tuple[_Mark, ...] = (
    lambda x: torch.full_like(x, torch.nan),  # spoils whatever is computed from it
    lambda x: torch.full_like(x, 255, dtype=torch.uint8),  # bytes, which a cast turns into numbers
)


def _alone(
    skeleton: Skeleton, inputs: Inputs, reference: Any, links: Sequence[_Link]
) -> Sequence[_Link]:
    """Links whose reader alone reads what the layer returns, and as it is."""
    if not links:
        return ()
    if all(_agrees(skeleton, inputs, reference, links, mark) for mark in _MARKS):
        return links
    middle = len(links) // 2
    return [
        link
        for half in (links[:middle], links[middle:])
        if len(links) > 1
        for link in _alone(skeleton, inputs, reference, half)
    ]


def _agrees(
    skeleton: Skeleton, inputs: Inputs, reference: Any, links: Sequence[_Link], mark: _Mark
) -> bool:
    """Whether the network is as before when readers alone are given what layers return."""
    kept: dict[str, tuple[Tensor, Tensor]] = {}
    begins, ends = {link.layer: link for link in links}, {link.reader: link for link in links}
    for path in begins | ends:
        forward = _Trial(skeleton, path, begins.get(path), ends.get(path), mark, kept)
        skeleton.swap(path, forward)
    for link in links:
        skeleton.bypass(link.norm)
        skeleton.bypass(link.relu)
    try:
        return relative_difference(reference, call(skeleton.module, inputs)) <= SAME
    except Exception:  # noqa: BLE001  # whatever a network does with a tensor of NaN, or of bytes
        return False
    finally:
        skeleton.reset()


class _Trial:
    """Stands in for a layer that begins a link, ends one, or both."""

    def __init__(
        self,
        skeleton: Skeleton,
        path: str,
        begins: _Link | None,
        ends: _Link | None,
        mark: _Mark,
        kept: dict[str, tuple[Tensor, Tensor]],
    ) -> None:
        self._layer: Any = skeleton.submodule(path)
        self._norm: Any = None if begins is None else skeleton.submodule(begins.norm)
        self._begins = begins
        self._ends = ends
        self._mark = mark
        self._kept = kept  # by reader: the mark, and what it stands for

    def __call__(self, x: Tensor) -> Tensor:
        if self._ends is not None:
            mark, value = self._kept[self._ends.reader]
            if x is not mark or not torch.equal(x.nan_to_num(), self._mark(value).nan_to_num()):
                raise _MisreadError
            x = value
        layer, norm = self._layer, self._norm
        out: Tensor = layer._conv_forward(x, layer.weight, layer.bias)
        if self._begins is None:
            return out
        statistics = (norm.running_mean, norm.running_var, norm.weight, norm.bias)
        out = functional.batch_norm(out, *statistics, eps=norm.eps).relu_()
        marked = self._mark(out)
        self._kept[self._begins.reader] = marked, out
        return marked


def _two(inputs: Inputs) -> Inputs:
    if isinstance(inputs, Tensor):
        return inputs[:2]
    return {name: tensor[:2] for name, tensor in inputs.items()}
