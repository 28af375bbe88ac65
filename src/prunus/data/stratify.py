"""Draw samples so that every class keeps its share."""

import torch
from torch import Tensor

from prunus.errors import InputError


def stratified_draw(labels: Tensor, n_samples: int, seed: int, *, leave: int = 0) -> Tensor:
    """Draw positions without replacement, every class in proportion to its size.

    The quota of a class is ``n_samples * size / total``, rounded by largest remainders, so that it
    is met within one sample. Equal remainders are ranked by chance: in the order of their numbers,
    the same few of many classes would be drawn with every seed.

    Args:
        labels: int64 ``[samples]``.
        n_samples: How many to draw, at most ``len(labels)`` less what is left.
        seed: Decides which samples of a class are drawn.
        leave: Samples of every class that are never drawn; others make up for them.

    Returns:
        Positions in ascending order, int64 ``[n_samples]``.

    Raises:
        InputError: There are not as many.
    """
    generator = torch.Generator().manual_seed(int(seed))  # of NumPy, too
    classes, sizes = torch.unique(labels, return_counts=True)
    members = [torch.nonzero(labels == label).flatten() for label in classes]
    mixed = [each[torch.randperm(len(each), generator=generator)] for each in members]
    quotas = _quotas(n_samples, sizes, sizes - leave, generator)
    drawn = [each[:quota] for each, quota in zip(mixed, quotas.tolist(), strict=True)]
    return torch.sort(torch.cat(drawn)).values


def spare(labels: Tensor) -> int:
    """How many samples can be drawn so that every class keeps one."""
    return len(labels) - len(torch.unique(labels))


def _quotas(n_samples: int, sizes: Tensor, most: Tensor, generator: torch.Generator) -> Tensor:
    """Samples of every class, in proportion to ``sizes`` and at most ``most``, int64 ``[classes]``."""
    total = int(sizes.sum())
    if n_samples > int(most.sum()):
        raise InputError(f"n_samples={n_samples}: at most {int(most.sum())} samples can be drawn")
    quotas = torch.minimum(n_samples * sizes // total, most)
    chance = torch.randperm(len(sizes), generator=generator)
    ranked = chance[
        torch.argsort((n_samples * sizes % total)[chance], descending=True, stable=True)
    ]
    while (short := n_samples - int(quotas.sum())) > 0:
        room = ranked[quotas[ranked] < most[ranked]]
        quotas[room[:short]] += 1
    return quotas
