"""Second moments of what layers are given, over a few training samples."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from prunus.data import TrainSplit
from prunus.graph import call
from prunus.lowrank.layers import Layer
from prunus.progress import Progress
from prunus.train.forward import to_place

Moments = Mapping[str, Tensor]


def input_moments(
    network: nn.Module,
    layers: Sequence[Layer],
    split: TrainSplit,
    *,
    batch_size: int,
    device: str,
    progress: Progress,
) -> Moments:
    """``X^T X / n`` of the inputs of every layer, by path.

    Rows of ``X`` are positions: tokens (padding left out), pixels. ``[in, in]`` for linear layers
    and, over channels, for convolutions; the frequencies of the pieces ``[pieces]`` for embeddings.

    Args:
        network: Not touched.
        layers: Whose inputs count.
        split: All its samples are used, without augmentation.
        batch_size: Samples at a time.
        device: That the network runs on.
        progress: Told of every batch.
    """
    own = copy.deepcopy(network).to(device).eval()
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    mask: list[Tensor | None] = [None]

    def note(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: Any) -> None:
            given = next(v for v in (*args, *kwargs.values()) if isinstance(v, Tensor))
            moment, rows = _moment(module, given.detach(), mask[0])
            sums[path] = moment if path not in sums else sums[path] + moment
            counts[path] = counts.get(path, 0) + rows

        return hook

    handles = [
        own.get_submodule(layer.path).register_forward_pre_hook(note(layer.path), with_kwargs=True)
        for layer in layers
    ]
    progress.start("calibrate", -(-len(split) // batch_size))
    for inputs, _ in split.batches(batch_size):
        placed = to_place(inputs, torch.device(device), channels_last=False)
        mask[0] = placed.get("attention_mask") if isinstance(placed, dict) else None
        call(own, placed)
        progress.advance()
    progress.finish()
    for handle in handles:
        handle.remove()
    return {path: total / max(counts[path], 1) for path, total in sums.items()}


def _moment(module: nn.Module, given: Tensor, mask: Tensor | None) -> tuple[Tensor, int]:
    """Sum of outer products of the rows of a batch, and how many rows."""
    if isinstance(module, nn.Embedding):
        ids = _seen(given, mask, given.shape).flatten()
        found = torch.bincount(ids, minlength=module.num_embeddings)
        return found.to(torch.float64), ids.numel()
    if isinstance(module, nn.Conv2d):
        rows = given.movedim(-3, -1).reshape(-1, given.shape[-3])
    else:
        rows = _seen(given, mask, given.shape[:-1]).reshape(-1, given.shape[-1])
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    return rows.T @ rows, len(rows)


def _seen(given: Tensor, mask: Tensor | None, positions: torch.Size) -> Tensor:
    """What is no padding, where the mask is one of these positions."""
    return given if mask is None or mask.shape != positions else given[mask.bool()]
