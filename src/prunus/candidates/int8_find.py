"""Which convolutions of a network can run in int8, with the ranges of what they read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunus.candidates.fold import SAME, Pair
from prunus.candidates.int8_bytes import Bytes, has_kernel
from prunus.candidates.kernels import Rectified, converted_layers, is_plain_convolution
from prunus.candidates.skeleton import Skeleton
from prunus.data import Inputs
from prunus.graph.certify import relative_difference
from prunus.graph.inputs import call
from prunus.records import processor_line
from prunus.train.forward import modes_restored

_INSTRUCTIONS = {"avx512_vnni", "avx_vnni"}
"""Without them a CPU adds two products of bytes in 16 bits, which saturate."""


def has_int8(network: nn.Module) -> bool:
    """Whether a network has convolutions, on a CPU that multiplies bytes, and PyTorch the kernels."""
    return (
        any(is_plain_convolution(module) for module in network.modules())
        and all(parameter.device.type == "cpu" for parameter in network.parameters())
        and not _INSTRUCTIONS.isdisjoint(processor_line("flags").split())
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and hasattr(torch.ops.onednn, "qconv2d_pointwise")
        and has_kernel()
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
    once = [path for path in plain if watch.calls.get(path) == len(calibration)]
    links = [
        _Link(relus[layer], layer, reader)
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
            x: Tensor = given[0]
            low, high = self.ranges.get(path, (0.0, 0.0))
            self.ranges[path] = min(low, float(x.min())), max(high, float(x.max()))
            self.shapes.setdefault(path, tuple(x.shape))
            self.calls[path] = self.calls.get(path, 0) + 1
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
    """A ReLU behind a layer, and who reads what it returns."""

    relu: str
    layer: str
    reader: str


def _alone(
    skeleton: Skeleton, inputs: Inputs, reference: Any, links: Sequence[_Link]
) -> Sequence[_Link]:
    """Links whose reader alone reads what the ReLU returns."""
    if not links:
        return ()
    for link in links:
        _spoil_for_others_(skeleton, link)
    out = call(skeleton.module, inputs)
    skeleton.reset()
    if relative_difference(reference, out) <= SAME:
        return links
    middle = len(links) // 2
    return [
        link
        for half in (links[:middle], links[middle:])
        if len(links) > 1
        for link in _alone(skeleton, inputs, reference, half)
    ]


def _spoil_for_others_(skeleton: Skeleton, link: _Link) -> None:
    """Give no numbers to whoever reads what a ReLU returns, but for one layer."""
    kept: list[Tensor] = []
    layer: Any = skeleton.submodule(link.reader)

    def spoil(x: Tensor) -> Tensor:
        kept.append(torch.relu(x))
        return torch.full_like(x, torch.nan)

    def read(_spoiled: Tensor) -> Tensor:
        out: Tensor = layer._conv_forward(kept[-1], layer.weight, layer.bias)
        return out

    skeleton.swap(link.relu, spoil)
    skeleton.swap(link.reader, read)


def _two(inputs: Inputs) -> Inputs:
    if isinstance(inputs, Tensor):
        return inputs[:2]
    return {name: tensor[:2] for name, tensor in inputs.items()}
