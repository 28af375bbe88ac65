"""Blocks that a Tucker-2 decomposition makes small: a convolution, a stack of linear layers."""

from abc import abstractmethod
from functools import cached_property
from typing import NamedTuple, final

import torch
from torch import Tensor, nn

from prunus.lowrank.blocks import Block, Ranks, Shapes, rank_at
from prunus.lowrank.layers import Layer
from prunus.lowrank.spectrum import Spectrum, behind_root, root_of
from prunus.lowrank.tensors import mode_spectrum, times, tucker2
from prunus.plan import Factorize


class _Factors(NamedTuple):
    """``core`` between ``first`` ``[r_in, in]`` and ``last`` ``[out, r_out]``."""

    core: Tensor
    first: Tensor
    last: Tensor


class TuckerBlock(Block):
    """A tensor with an input and an output mode; ranks are ``(r_in, r_out)``.

    Inputs are weighed as in ``LinearBlock``, by one second moment for the whole block.
    """

    modes_cut = 2

    @property
    @abstractmethod
    def modes(self) -> tuple[int, int]:
        """Dims of inputs and of outputs."""

    @property
    @abstractmethod
    def tensor(self) -> Tensor:
        """The weights, float64."""

    @property
    @abstractmethod
    def copies(self) -> int:
        """Product of the other dims: kernel positions, or layers."""

    @property
    def sizes(self) -> tuple[int, int]:
        """Of the input and the output mode."""
        weight = self.layers[0].weight
        return int(weight.shape[1]), int(weight.shape[0])

    @property
    def full(self) -> Ranks:
        """Ranks of the two unfoldings."""
        return self._feasible(self.sizes)

    def at_energy(self, energy: float) -> Ranks:
        """By the singular values of each mode's unfolding."""
        first, last = self._spectra
        return self._feasible((first.rank_of(energy), last.rank_of(energy)))

    def widened(self, ranks: Ranks, mode: int) -> Ranks:
        """One rank more in a mode, where the other mode leaves room for it."""
        r_in, r_out = super().widened(ranks, mode)
        return self._feasible((r_in, r_out))

    def _feasible(self, ranks: tuple[int, int]) -> tuple[int, int]:
        """A core of ``r_in x r_out x copies`` has no more than ``copies`` times the other rank."""
        (r_in, r_out), (size_in, size_out) = ranks, self.sizes
        r_in = min(r_in, size_in, self.copies * r_out)
        return r_in, min(r_out, size_out, self.copies * r_in)

    @cached_property
    def _root(self) -> Tensor | None:
        found = [self.moments[la.path].double() for la in self.layers if la.path in self.moments]
        return root_of(torch.stack(found).mean(0)) if found else None

    @property
    def _weighed(self) -> Tensor:
        return (
            self.tensor if self._root is None else times(self.tensor, self._root.T, self.modes[0])
        )

    @cached_property
    def _spectra(self) -> tuple[Spectrum, Spectrum]:
        weighed, (first, last) = self._weighed, self.modes
        (full_in, full_out) = self.full
        return mode_spectrum(weighed, first, full_in), mode_spectrum(weighed, last, full_out)

    def factors(self, ranks: Ranks) -> _Factors:
        """The decomposition at some ranks."""
        r_in, r_out = ranks
        core, (first, last) = tucker2(self._weighed, self.modes, self._spectra, (r_in, r_out))
        return _Factors(core, behind_root(first.T, self._root), last)


@final
class ConvBlock(TuckerBlock):
    """A convolution as 1x1, a thinner kernel, 1x1.

    Source: Kim et al., "Compression of Deep Convolutional Neural Networks for Fast and Low Power
    Mobile Applications", ICLR 2016, section 3.1, equations 3 to 7.
    """

    @property
    def modes(self) -> tuple[int, int]:
        """Of ``[out, in, height, width]``."""
        return 1, 0

    @property
    def tensor(self) -> Tensor:
        """The kernel."""
        return self.layers[0].weight.double()

    @property
    def copies(self) -> int:
        """Positions of the kernel."""
        return self.layers[0].weight[0, 0].numel()

    def at_fraction(self, fraction: float) -> Ranks:
        """The same share of both full ranks."""
        full_in, full_out = self.full
        return self._feasible((rank_at(fraction, full_in), rank_at(fraction, full_out)))

    def shapes(self, ranks: Ranks) -> Shapes:
        """``[r_in, in, 1, 1]``, ``[r_out, r_in, h, w]``, ``[out, r_out, 1, 1]``."""
        (r_in, r_out), (size_in, size_out) = ranks, self.sizes
        path, kernel = self.layers[0].path, tuple(self.layers[0].weight.shape[2:])
        return {
            f"{path}.0.weight": (r_in, size_in, 1, 1),
            f"{path}.1.weight": (r_out, r_in, *kernel),
            f"{path}.2.weight": (size_out, r_out, 1, 1),
            **self.bias_shapes(2),
        }

    def macs(self, ranks: Ranks) -> int:
        """The first part runs on every input pixel, the others on every output pixel."""
        (r_in, r_out), (size_in, size_out) = ranks, self.sizes
        layer = self.layers[0]
        after = r_in * r_out * self.copies + r_out * size_out
        return layer.inputs * size_in * r_in + layer.outputs * after

    def edits(self, ranks: Ranks) -> tuple[Factorize, ...]:
        """Form ``tucker-conv``."""
        return (Factorize(module=self.layers[0].path, form="tucker-conv", ranks=ranks),)

    def tensors(self, ranks: Ranks) -> dict[str, Tensor]:
        """The bases as 1x1 kernels, the core as the kernel between them."""
        core, first, last = self.factors(ranks)
        path, like = self.layers[0].path, self.layers[0].weight
        return {
            f"{path}.0.weight": first[:, :, None, None].to(like),
            f"{path}.1.weight": core.to(like),
            f"{path}.2.weight": last[:, :, None, None].to(like),
        }


@final
class StackBlock(TuckerBlock):
    """Linear layers of one shape as two shared bases and a small core of each layer's own.

    ``W_l = U G_l V^T``: a Tucker-2 decomposition of the stack ``[layers, out, in]`` over its last
    two modes. Where the inputs were seen, the cores are fitted anew, each to its own layer's second
    moment ``C_l``: with ``P`` the first factor, ``G_l = U^T W_l C_l P^T (P C_l P^T)^-1`` is the
    least-squares core. Source of the shared factors: Ren et al., "Exploring Extreme Parameter
    Compression for Pre-trained Language Models", ICLR 2022, section 3.2.
    """

    @property
    def modes(self) -> tuple[int, int]:
        """Of ``[layers, out, in]``."""
        return 2, 1

    @property
    def tensor(self) -> Tensor:
        """The weights of all layers."""
        return torch.stack([la.weight.double() for la in self.layers])

    @property
    def copies(self) -> int:
        """Layers."""
        return len(self.layers)

    def at_fraction(self, fraction: float) -> Ranks:
        """The same share of a layer's full rank, its lesser side, in both modes; all of both at 1."""
        if fraction == 1:
            return self.full
        rank = rank_at(fraction, min(self.sizes))
        return self._feasible((rank, rank))

    def shapes(self, ranks: Ranks) -> Shapes:
        """``[r_in, in]`` and ``[out, r_out]`` once, ``[r_out, r_in]`` of every layer."""
        (r_in, r_out), (size_in, size_out) = ranks, self.sizes
        owner = self.layers[0].path
        cores = {f"{layer.path}.1.weight": (r_out, r_in) for layer in self.layers}
        shared = {f"{owner}.0.weight": (r_in, size_in), f"{owner}.2.weight": (size_out, r_out)}
        return {**shared, **cores, **self.bias_shapes(2)}

    def macs(self, ranks: Ranks) -> int:
        """Every layer runs all three parts."""
        (r_in, r_out), (size_in, size_out) = ranks, self.sizes
        each = size_in * r_in + r_in * r_out + r_out * size_out
        return sum(layer.outputs for layer in self.layers) * each

    def edits(self, ranks: Ranks) -> tuple[Factorize, ...]:
        """Form ``tucker-linear``; all but the first share its outer factors."""
        owner = self.layers[0].path
        shared = [""] + [owner] * (len(self.layers) - 1)
        return tuple(
            Factorize(module=la.path, form="tucker-linear", ranks=ranks, first=own, last=own)
            for la, own in zip(self.layers, shared, strict=True)
        )

    def tensors(self, ranks: Ranks) -> dict[str, Tensor]:
        """The shared factors under the first layer's name, and every core."""
        core, first, last = self.factors(ranks)
        owner, like = self.layers[0].path, self.layers[0].weight
        found = {f"{owner}.0.weight": first.to(like), f"{owner}.2.weight": last.to(like)}
        for layer, plain in zip(self.layers, core, strict=True):
            moment = self.moments.get(layer.path)
            own = plain if moment is None else _fitted(layer, moment, first, last)
            found[f"{layer.path}.1.weight"] = own.to(like)
        return found


def _fitted(layer: Layer, moment: Tensor, first: Tensor, last: Tensor) -> Tensor:
    """The core ``[r_out, r_in]`` that serves a layer's own inputs best, given the outer factors."""
    root = root_of(moment)
    read = first @ root  # P C^(1/2)
    wanted = last.T @ layer.weight.double() @ root
    core: Tensor = torch.linalg.solve(read @ read.T, read @ wanted.T).T
    return core


def is_convolution(layer: Layer) -> bool:
    """Whether a layer is a convolution."""
    return isinstance(layer.module, nn.Conv2d)
