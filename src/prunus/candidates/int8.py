"""Convolutions of candidates in int8: half the time of bfloat16 where the CPU multiplies bytes.

A score tells candidates apart: it may be coarser than what is deployed. Weights have one scale per
output channel, inputs one scale and zero point per layer, from the network that plans are for: batch
norms, measured anew, bring a candidate's activations to the range that they had. Folding a batch
norm multiplies the weights' scales and leaves their bytes as they are, so that weights are rounded
once a candidate. What one layer alone reads is handed to it in bytes. The rest is float32. Weights have
8 bits, or 7 where the CPU sums products in pairs, in 16 bits, which saturate with 8.

References:
    Jacob et al., "Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference", CVPR 2018, sections 2 and 3.2.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from prunus.candidates.fold import factors
from prunus.candidates.int8_bytes import Bytes
from prunus.candidates.int8_find import Int8Layer
from prunus.candidates.numbers import are_finite
from prunus.candidates.skeleton import Skeleton


class Int8Layers:
    """The int8 layers of the plan that a skeleton has loaded.

    Args:
        skeleton: Whose layers they stand in for.
        found: Of the skeleton's network.
        bits: Of the weights.
        doubting: Look for what is no number in what is rounded, too, and not in weights and
            statistics alone: see ``Skeleton.doubtful``.
    """

    def __init__(
        self,
        skeleton: Skeleton,
        found: Sequence[Int8Layer],
        *,
        bits: int,
        doubting: bool = False,
    ) -> None:
        self._skeleton = skeleton
        self._doubting = doubting
        self._levels = 2 ** (bits - 1) - 1  # on each side of 0
        self._found = found
        self._reads = {one.layer: one.reads for one in found}
        self._running: dict[str, _Convolution] = {}

    def load(self) -> None:
        """Round the weights of a plan just loaded; batch norms and ReLUs stay for themselves."""
        self._running = {
            one.layer: _Convolution(self._skeleton.submodule(one.layer), one, self._levels)
            for one in self._found
        }
        for path, convolution in self._running.items():
            self._take(path, convolution)

    def _take(self, path: str, convolution: "_Convolution") -> None:
        """Run it in place of a layer; plain layers where its weights are no numbers."""
        if not convolution.is_finite:
            self._skeleton.plain = True
        doubted = partial(self._doubt, convolution)
        self._skeleton.hasten(path, doubted if self._doubting else convolution)

    def _doubt(self, convolution: "_Convolution", x: Tensor) -> Tensor:
        self._skeleton.doubtful |= not are_finite(x)
        return convolution(x)

    def fold(self) -> None:
        """Take batch norms, in their present statistics, and ReLUs into the layers before them."""
        for one in self._found:
            if one.norm is None:
                continue
            convolution = self._running[one.layer]
            convolution.fold(self._skeleton.submodule(one.norm))
            self._take(one.layer, convolution)
            self._skeleton.hasten(one.norm)
            if one.relu is not None:
                convolution.rectify(None if one.reader is None else self._reads[one.reader])
                self._skeleton.hasten(one.relu)


class _Convolution:
    """Stands in for the forward of a convolution."""

    def __init__(self, module: Any, found: Int8Layer, levels: int) -> None:
        self._module = module
        self._reads = found.reads
        weight: Tensor = module.weight
        scales = weight.abs().amax(dim=(1, 2, 3)) / levels
        self.is_finite = are_finite(scales, module.bias)
        self._scales = torch.where(scales > 0, scales, 1.0)
        self._zeros = torch.zeros(len(weight), dtype=torch.int32)
        self._bias: Tensor | None = module.bias
        self._attached = "none"
        self._writes = (1.0, 0, torch.float32)
        self._settings = (module.stride, module.padding, module.dilation, module.groups)
        batch, _, *size = found.shape
        # Told no shape, oneDNN lays weights out for another kernel than it runs: 30 times slower.
        shape = [batch, weight.shape[1] * module.groups, *size]
        self._packed = torch.ops.onednn.qconv_prepack(
            weight.div(self._scales[:, None, None, None]).round_().to(torch.int8),
            *(self._scales, self._reads.scale, self._reads.zero),
            *(*self._settings, shape),
        )

    def fold(self, norm: Any) -> None:
        factor, self._bias = factors(self._module, norm)
        self._scales = self._scales * factor
        self.is_finite = self.is_finite and are_finite(self._scales, self._bias)

    def rectify(self, writes: Bytes | None) -> None:
        self._attached = "relu"
        if writes is not None:
            self._writes = (writes.scale, writes.zero, torch.uint8)

    def __call__(self, x: Tensor) -> Tensor:
        out: Tensor = torch.ops.onednn.qconv2d_pointwise(
            x if x.dtype == torch.uint8 else self._reads.of(x),
            *(self._reads.scale, self._reads.zero),
            *(self._packed, self._scales, self._zeros, self._bias),
            *(*self._settings, *self._writes),
            *(self._attached, [], ""),
        )
        return out
