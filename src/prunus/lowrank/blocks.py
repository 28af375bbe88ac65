"""What is factorized together: one layer, or layers that share factors."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property
from typing import ClassVar, Literal, final

import numpy as np
import torch
from torch import Tensor

from prunus.lowrank.layers import Layer
from prunus.lowrank.moments import Moments
from prunus.lowrank.spectrum import Spectrum, behind_root, root_of, spectrum
from prunus.plan import Factorize

Ranks = tuple[int, ...]
Shapes = Mapping[str, tuple[int, ...]]
Cost = Literal["macs", "params"]


def elements(shapes: Shapes) -> int:
    """Values that tensors of these shapes hold."""
    return sum(int(np.prod(shape, dtype=np.int64)) for shape in shapes.values())


class Block(ABC):
    """One or more layers whose factors are decided together.

    Attributes:
        layers: In the order of the network; the first owns what is shared.
        moments: Second moments of their inputs, empty where all directions count alike.
        modes_cut: Along how many modes a decomposition leaves energy out.
    """

    modes_cut: ClassVar[int] = 1

    def __init__(self, layers: tuple[Layer, ...], moments: Moments) -> None:
        self.layers = layers
        self.moments = moments

    @property
    @abstractmethod
    def full(self) -> Ranks:
        """Ranks that lose nothing."""

    @abstractmethod
    def at_fraction(self, fraction: float) -> Ranks:
        """Ranks at a share of the full ones."""

    @abstractmethod
    def at_energy(self, energy: float) -> Ranks:
        """The least ranks that carry a share of the energy, each in its own mode."""

    @final
    def keeping(self, energy: float) -> Ranks:
        """Ranks at which the whole block keeps a share of the energy.

        What it loses is at most the sum of what its modes leave out (De Lathauwer et al., "A
        multilinear singular value decomposition", SIAM J. Matrix Anal. Appl. 21, 2000, property 10).
        """
        return self.at_energy(1 - (1 - energy) / self.modes_cut)

    @abstractmethod
    def shapes(self, ranks: Ranks) -> Shapes:
        """Names and shapes of all tensors of the chains, shared ones once."""

    @abstractmethod
    def macs(self, ranks: Ranks) -> int:
        """Of the chains, for one sample."""

    @abstractmethod
    def edits(self, ranks: Ranks) -> tuple[Factorize, ...]:
        """What a plan says of it, in the order of the layers."""

    @abstractmethod
    def tensors(self, ranks: Ranks) -> dict[str, Tensor]:
        """The factors by their names in the network that comes out, biases left out."""

    def widened(self, ranks: Ranks, mode: int) -> Ranks:
        """One rank more in a mode; the same ranks where there is no more."""
        wider = list(ranks)
        wider[mode] = min(wider[mode] + 1, self.full[mode])
        return tuple(wider)

    @cached_property
    def dense_shapes(self) -> Shapes:
        """Names and shapes of the tensors of the whole layers."""
        return {
            f"{layer.path}.{leaf}": tuple(parameter.shape)
            for layer in self.layers
            for leaf, parameter in layer.module.named_parameters()
        }

    @cached_property
    def dense_macs(self) -> int:
        """Of the whole layers, for one sample."""
        return sum(la.outputs * la.weight.numel() for la in self.layers)

    def dense_cost(self, quantity: Cost) -> int:
        """What the whole layers cost."""
        return self.dense_macs if quantity == "macs" else elements(self.dense_shapes)

    def cost(self, ranks: Ranks, quantity: Cost) -> int:
        """What the chains cost."""
        return self.macs(ranks) if quantity == "macs" else elements(self.shapes(ranks))

    def is_smaller(self, ranks: Ranks, quantity: Cost) -> bool:
        """Whether the chains cost less than the whole layers."""
        return self.cost(ranks, quantity) < self.dense_cost(quantity)

    def bias_shapes(self, last: int) -> dict[str, tuple[int, ...]]:
        """Of the biases, which part number ``last`` of each chain has."""
        return {
            f"{layer.path}.{last}.bias": tuple(layer.bias.shape)
            for layer in self.layers
            if layer.bias is not None
        }


class AloneBlock(Block):
    """One matrix, cut to a rank by its singular vectors."""

    @property
    def layer(self) -> Layer:
        """The layer."""
        return self.layers[0]

    @property
    def full(self) -> Ranks:
        """The lesser side of the matrix."""
        return (min(self.layer.weight.shape),)

    def at_fraction(self, fraction: float) -> Ranks:
        """A share of the lesser side, at least 1."""
        return (rank_at(fraction, self.full[0]),)

    def at_energy(self, energy: float) -> Ranks:
        """By the singular values, as the inputs weigh them."""
        return (self.spectrum.rank_of(energy),)

    @property
    @abstractmethod
    def spectrum(self) -> Spectrum:
        """Of the side on which the matrix is projected."""


@final
class LinearBlock(AloneBlock):
    """A linear layer as two.

    With ``C = L L^T`` the second moment of the inputs, ``|X (W - W')^T| = |(W - W') L|`` is least
    where ``W' L`` is the truncated SVD of ``W L`` (Eckart-Young). Source: Chen et al., "DRONE:
    Data-aware Low-rank Compression for Large NLP Models", NeurIPS 2021, section 3.2.
    """

    @property
    def _by_rows(self) -> bool:
        rows, columns = self.layer.weight.shape
        return rows <= columns

    @cached_property
    def _root(self) -> Tensor | None:
        moment = self.moments.get(self.layer.path)
        return None if moment is None else root_of(moment)

    @cached_property
    def _weighed(self) -> Tensor:
        return _weighed(self.layer.weight, self._root)

    @cached_property
    def spectrum(self) -> Spectrum:
        """Left singular vectors of ``W L`` where ``out <= in``, else the right ones."""
        a = self._weighed
        return spectrum(a @ a.T if self._by_rows else a.T @ a, self.full[0])

    def shapes(self, ranks: Ranks) -> Shapes:
        """``[r, in]`` and ``[out, r]``."""
        rows, columns = self.layer.weight.shape
        path, (rank,) = self.layer.path, ranks
        weights = {f"{path}.0.weight": (rank, columns), f"{path}.1.weight": (rows, rank)}
        return {**weights, **self.bias_shapes(1)}

    def macs(self, ranks: Ranks) -> int:
        """``n r (in + out)``."""
        return self.layer.outputs * ranks[0] * sum(self.layer.weight.shape)

    def edits(self, ranks: Ranks) -> tuple[Factorize, ...]:
        """Form ``linear``."""
        return (Factorize(module=self.layer.path, form="linear", ranks=ranks),)

    def tensors(self, ranks: Ranks) -> dict[str, Tensor]:
        """Both factors carry the root of the singular values, so that they train alike."""
        basis = self.spectrum.basis[:, : ranks[0]]
        sizes = self.spectrum.energies[: ranks[0]].sqrt()
        # A direction of no energy has no scale to share.
        tiny = torch.finfo(sizes.dtype).eps * float(sizes.max())
        scale = torch.where(sizes > tiny, sizes, torch.ones_like(sizes)).sqrt()
        weight = self.layer.weight.double()
        if self._by_rows:
            first, last = (basis.T @ weight) / scale[:, None], basis * scale
        else:
            first = scale[:, None] * behind_root(basis.T, self._root)
            last = (self._weighed @ basis) / scale
        path, like = self.layer.path, self.layer.weight
        return {f"{path}.0.weight": first.to(like), f"{path}.1.weight": last.to(like)}


@final
class EmbeddingBlock(AloneBlock):
    """An embedding table as a thinner one and a linear layer.

    Rows are weighed by how often their piece is seen, where that was counted: the right singular
    vectors of ``diag(p)^(1/2) W`` span the best subspace, on which every row is projected. Source:
    Lan et al., "ALBERT", ICLR 2020, section 3.1, for the shape.
    """

    @cached_property
    def spectrum(self) -> Spectrum:
        """Right singular vectors of the weighed table."""
        weight = self.layer.weight.double()
        seen = self.moments.get(self.layer.path)
        if seen is None:
            return spectrum(weight.T @ weight, self.full[0])
        shares = seen.to(weight) + 1 / len(seen)  # a piece that is not seen may come later
        return spectrum(weight.T @ (weight * shares[:, None]), self.full[0])

    def shapes(self, ranks: Ranks) -> Shapes:
        """``[pieces, r]`` and ``[width, r]``."""
        rows, columns = self.layer.weight.shape
        path, (rank,) = self.layer.path, ranks
        return {f"{path}.0.weight": (rows, rank), f"{path}.1.weight": (columns, rank)}

    @cached_property
    def dense_macs(self) -> int:
        """A lookup multiplies nothing."""
        return 0

    def macs(self, ranks: Ranks) -> int:
        """Those of the linear layer: ``n r width``."""
        return self.layer.inputs * ranks[0] * self.layer.weight.shape[1]

    def edits(self, ranks: Ranks) -> tuple[Factorize, ...]:
        """Form ``embedding``."""
        return (Factorize(module=self.layer.path, form="embedding", ranks=ranks),)

    def tensors(self, ranks: Ranks) -> dict[str, Tensor]:
        """The projected rows, and the orthonormal directions."""
        basis = self.spectrum.basis[:, : ranks[0]]
        path, like = self.layer.path, self.layer.weight
        table = like.double() @ basis
        return {f"{path}.0.weight": table.to(like), f"{path}.1.weight": basis.to(like)}


def rank_at(fraction: float, full: int) -> int:
    """The whole number nearest to a share of a rank, at least 1."""
    return max(1, int(fraction * full + 0.5))


def _weighed(weight: Tensor, root: Tensor | None) -> Tensor:
    plain = weight.double()
    return plain if root is None else plain @ root.to(plain.device)
