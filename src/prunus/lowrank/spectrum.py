"""Directions of a weight by the energy they carry, plain or as the layer's inputs weigh them."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from prunus.errors import InputError

DAMPING = 0.01
"""Share of the mean second moment that is added to each input: unseen directions stay bounded."""
_ROUNDING = 1e-12  # energy that is told from nothing, as a share of all


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Orthonormal directions of one mode of a weight, the most energetic first.

    Attributes:
        energies: Squared singular values of the mode's unfolding, ``[full]``, falling.
        basis: Directions as columns, float64 ``[size, full]``.
    """

    energies: Tensor
    basis: Tensor

    @property
    def full(self) -> int:
        """The full rank."""
        return len(self.energies)

    @cached_property
    def _shares(self) -> np.ndarray:
        total = float(self.energies.sum())
        if total <= 0:  # a weight of zeros is there at any rank
            return np.ones(self.full)
        return np.asarray((self.energies.cumsum(0) / total).cpu().numpy())

    def rank_of(self, energy: float) -> int:
        """The least rank whose directions carry this share of the energy."""
        at = int(np.searchsorted(self._shares, energy * (1 - _ROUNDING)))
        return min(at + 1, self.full)


def spectrum(gram: Tensor, full: int) -> Spectrum:
    """Eigenvectors of an unfolding's Gram matrix ``A A^T``, ``[size, size]``; at most ``full``."""
    values, vectors = torch.linalg.eigh(gram)
    return Spectrum(values.flip(0)[:full].clamp(min=0), vectors.flip(1)[:, :full])


def root_of(moment: Tensor) -> Tensor:
    """The lower triangular ``L`` with ``L L^T = C + d I``: ``|X D^T| = |D L|`` up to damping.

    Args:
        moment: ``C = X^T X / n`` of a layer's inputs, ``[in, in]``.

    Raises:
        InputError: It is not finite.
    """
    if not bool(moment.isfinite().all()):
        raise InputError(
            "calibration: activations are not finite; give trained weights, or calibration=0"
        )
    damped = moment.double()
    scale = float(damped.diagonal().mean())
    eye = torch.eye(len(damped), dtype=torch.float64, device=damped.device)
    damped = damped + (DAMPING * scale if scale > 0 else 1.0) * eye
    root: Tensor = torch.linalg.cholesky(damped)
    return root


def behind_root(rows: Tensor, root: Tensor | None) -> Tensor:
    """``rows L^-1``: what reads whitened inputs, made to read the inputs themselves."""
    if root is None:
        return rows
    found: Tensor = torch.linalg.solve_triangular(root, rows, upper=False, left=False)
    return found
