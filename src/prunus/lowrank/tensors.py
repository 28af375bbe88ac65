"""Tucker-2: a tensor as a small core between two bases, by higher-order orthogonal iteration."""

from typing import Any

import torch
from torch import Tensor

from prunus.extras import require_extra
from prunus.lowrank.spectrum import Spectrum, spectrum

_ITERATIONS = 10
_TOLERANCE = 1e-5  # of the relative error, between two iterations
_ROOM = 2  # times the rank: the subspaces in which the bases are refined


def require_tensorly() -> None:
    """Refuse to begin without the package.

    Raises:
        MissingExtraError: tensorly is not installed.
    """
    require_extra("tensorly", "lowrank")


def mode_spectrum(tensor: Tensor, mode: int, full: int) -> Spectrum:
    """Left singular vectors of a mode's unfolding.

    Source: De Lathauwer, De Moor and Vandewalle, "A Multilinear Singular Value Decomposition", SIAM
    Journal on Matrix Analysis and Applications 2000 (HOSVD).

    Args:
        tensor: float64, of any order.
        mode: Which dimension.
        full: How many directions are kept, at most the size of the mode.
    """
    unfolded = tensor.movedim(mode, 0).flatten(1)
    return spectrum(unfolded @ unfolded.T, full)


def tucker2(
    tensor: Tensor,
    modes: tuple[int, int],
    spectra: tuple[Spectrum, Spectrum],
    ranks: tuple[int, int],
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Approximate ``tensor`` by ``core x_a U x_b V`` with orthonormal ``U`` and ``V``.

    The bases of the HOSVD are refined by higher-order orthogonal iteration (tensorly's
    ``partial_tucker``) inside the leading subspaces of twice the rank: the unfoldings that it
    decomposes are then small, whatever the size of the layers.

    Args:
        tensor: float64, of any order.
        modes: The two modes that get smaller.
        spectra: Of these modes.
        ranks: Theirs, each at most the full rank.

    Returns:
        The core, with ``ranks`` in place of the modes' sizes, and the bases ``[size, rank]``.
    """
    within = [min(_ROOM * r, s.full) for r, s in zip(ranks, spectra, strict=True)]
    outer = [s.basis[:, :w] for s, w in zip(spectra, within, strict=True)]
    inside = tensor
    for mode, basis in zip(modes, outer, strict=True):
        inside = times(inside, basis.T, mode)
    if tuple(within) == ranks:  # nothing is left out that could be chosen better
        return inside, (outer[0], outer[1])
    start = [torch.eye(w, r, dtype=tensor.dtype, device=tensor.device)
             for w, r in zip(within, ranks, strict=True)]  # fmt: skip
    core, inner = _iterate(inside, modes, ranks, start)
    return core, (outer[0] @ inner[0], outer[1] @ inner[1])


def times(tensor: Tensor, matrix: Tensor, mode: int) -> Tensor:
    """The mode product: ``matrix`` ``[new, size]`` applied along one mode."""
    product: Tensor = torch.tensordot(tensor, matrix, dims=([mode], [1]))
    return product.movedim(-1, mode)


def _iterate(
    tensor: Tensor, modes: tuple[int, int], ranks: tuple[int, int], start: list[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    tensorly = require_extra("tensorly", "lowrank")
    decomposition = require_extra("tensorly.decomposition", "lowrank")
    if modes[0] > modes[1]:  # tensorly skips by the order of the modes
        core, (second, first) = _iterate(tensor, modes[::-1], ranks[::-1], start[::-1])
        return core, [first, second]
    core = tensor
    for mode, factor in zip(modes, start, strict=True):
        core = times(core, factor.T, mode)
    # tensorly's back end is global by default: here it is this thread's, and put back.
    with tensorly.backend_context("pytorch", local_threadsafe=True):
        found: Any = decomposition.partial_tucker(
            tensor,
            rank=list(ranks),
            modes=list(modes),
            n_iter_max=_ITERATIONS,
            tol=_TOLERANCE,
            init=(core, start),
            random_state=0,
        )
    (core, factors), _ = found
    return core, list(factors)
