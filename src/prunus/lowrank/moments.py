"""Second moments of what layers are given, over a few training samples."""

import copy
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from prunus.data import Inputs, TrainSplit
from prunus.graph import Reader, watch, without_padding
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

    def note(path: str, module: nn.Module) -> Reader:
        def see(given: Tensor, mask: Tensor | None) -> None:
            moment, rows = _moment(module, given.detach(), mask)
            sums[path] = moment if path not in sums else sums[path] + moment
            counts[path] = counts.get(path, 0) + rows

        return see

    modules = {layer.path: own.get_submodule(layer.path) for layer in layers}
    readers = {module: note(path, module) for path, module in modules.items()}
    progress.start("calibrate", -(-len(split) // batch_size))
    watch(own, readers, _batches(split, batch_size, torch.device(device), progress))
    progress.finish()
    return {path: total / max(counts[path], 1) for path, total in sums.items()}


def _batches(
    split: TrainSplit, batch_size: int, device: torch.device, progress: Progress
) -> Iterator[Inputs]:
    for inputs, _ in split.batches(batch_size):
        yield to_place(inputs, device, channels_last=False)
        progress.advance()


def _moment(module: nn.Module, given: Tensor, mask: Tensor | None) -> tuple[Tensor, int]:
    """Sum of outer products of the rows of a batch, and how many rows."""
    if isinstance(module, nn.Embedding):
        ids = without_padding(given, mask).flatten()
        found = torch.bincount(ids, minlength=module.num_embeddings)
        return found.to(torch.float64), ids.numel()
    if isinstance(module, nn.Conv2d):
        rows = given.movedim(-3, -1).reshape(-1, given.shape[-3])
    else:
        rows = without_padding(given, mask).reshape(-1, given.shape[-1])
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    return rows.T @ rows, len(rows)
