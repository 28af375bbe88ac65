"""Draw samples so that every class keeps its share."""

import torch
from torch import Tensor


def stratified_draw(labels: Tensor, n_samples: int, seed: int) -> Tensor:
    """Draw positions without replacement, every class in proportion to its size.

    The quota of a class is ``n_samples * size / total``, rounded by largest remainders, so that it
    is met within one sample.

    Args:
        labels: int64 ``[samples]``.
        n_samples: How many to draw, at most ``len(labels)``.
        seed: Decides which samples of a class are drawn.

    Returns:
        Positions in ascending order, int64 ``[n_samples]``.
    """
    generator = torch.Generator().manual_seed(seed)
    classes, sizes = torch.unique(labels, return_counts=True)
    total = len(labels)
    quotas = n_samples * sizes // total
    remainders = n_samples * sizes % total
    short = n_samples - int(quotas.sum())
    quotas[torch.argsort(remainders, descending=True, stable=True)[:short]] += 1
    drawn = []
    for label, quota in zip(classes, quotas.tolist(), strict=True):
        members = torch.nonzero(labels == label).flatten()
        drawn.append(members[torch.randperm(len(members), generator=generator)[:quota]])
    return torch.sort(torch.cat(drawn)).values
