"""Torch-Pruning's pruners, as its users write them, brought to the same MACs.

It has no MACs target: the ratio is found by bisection, each trial on a fresh copy.
"""

import copy
from collections.abc import Callable

import torch
import torch_pruning as tp
from torch import nn
from torch.nn import functional as F

from prunus.data import TrainSplit
from prunus.meter import count_macs


def prune_with_torch_pruning(
    network: nn.Module,
    example: torch.Tensor,
    importance: str,
    ignored: list[str],
    macs_limit: int,
    train: TrainSplit,
    seed: int,
    images: int = 1024,
) -> nn.Module:
    """Prune a copy globally until it has at most ``macs_limit`` MACs.

    Args:
        network: The dense network; it is not touched.
        example: One sample.
        importance: ``magnitude`` (group L2, DepGraph) or ``taylor`` (first order, squared per group).
        ignored: Names of layers whose outputs stay whole.
        macs_limit: Largest allowed MACs.
        train: Images for the Taylor gradients.
        seed: Chooses those images.
        images: How many.
    """
    gradients = _gradients(network, train, images, seed) if importance == "taylor" else {}

    def pruned(ratio: float) -> nn.Module:
        model = copy.deepcopy(network).eval()
        for name, parameter in model.named_parameters():
            parameter.grad = gradients[name].clone() if name in gradients else None
        pruner = tp.pruner.BasePruner(
            model,
            example,
            importance=_IMPORTANCE[importance](),
            global_pruning=True,
            pruning_ratio=ratio,
            max_pruning_ratio=0.9,
            ignored_layers=[model.get_submodule(name) for name in ignored],
        )
        pruner.step()
        model.zero_grad(set_to_none=True)
        return model

    low, high = 0.0, 0.9
    best: nn.Module | None = None
    for _ in range(10):
        ratio = (low + high) / 2
        model = pruned(ratio)
        if count_macs(model, example).macs <= macs_limit:
            best, high = model, ratio
        else:
            low = ratio
    if best is None:
        raise RuntimeError(f"torch-pruning cannot reach {macs_limit} MACs")
    return best


_IMPORTANCE: dict[str, Callable[[], object]] = {
    "magnitude": lambda: tp.importance.GroupMagnitudeImportance(p=2),
    "taylor": tp.importance.GroupTaylorImportance,
}


def _gradients(
    network: nn.Module, train: TrainSplit, images: int, seed: int
) -> dict[str, torch.Tensor]:
    """Gradients of the loss, summed over batches: what its Taylor importance reads."""
    model = copy.deepcopy(network).eval()
    for inputs, labels in train.subset(images, seed).batches(128):
        with torch.enable_grad():
            F.cross_entropy(model(inputs), labels).backward()
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
