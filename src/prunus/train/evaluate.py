"""Top-1 and loss of a network on a split."""

import torch
from pydantic import Field
from torch import nn
from torch.nn.functional import cross_entropy

from prunus.data import Split
from prunus.errors import InputError
from prunus.plan import Record
from prunus.train.forward import (
    forward_logits,
    modes_restored,
    placed,
    resolve_device,
    to_place,
)


class Evaluation(Record):
    """Quality on all samples of a split: ``top1`` in [0, 1], ``loss`` mean cross-entropy in nats."""

    top1: float = Field(ge=0, le=1)
    loss: float
    samples: int = Field(gt=0)


def evaluate(
    network: nn.Module,
    split: Split,
    *,
    batch_size: int = 256,
    device: str | torch.device = "cpu",
    channels_last: bool = False,
) -> Evaluation:
    """Run a network over a whole split in eval mode, without augmentation.

    Loss and hits are summed in float64, so that the batch size does not show in the result beyond
    the rounding of the network itself. Training flags and place of the network are given back.

    Args:
        network: Returns logits ``[samples, classes]`` (see ``forward_logits``).
        split: Any split; a test split counts this as one evaluation.
        batch_size: Samples per forward pass.
        device: ``"cpu"`` or ``"cuda"``; the network is moved there and back.
        channels_last: Give images and 2-D convolutions that layout; else leave them as they are.

    Raises:
        InputError: ``batch_size`` or ``device`` cannot be used, or the output is not logits.
    """
    if batch_size < 1:
        raise InputError(f"batch_size={batch_size} must be at least 1")
    where = resolve_device(device)
    loss = torch.zeros((), dtype=torch.float64, device=where)
    hits = torch.zeros((), dtype=torch.int64, device=where)
    samples = 0
    with (
        modes_restored(network),
        placed(network, where, channels_last=channels_last),
        torch.inference_mode(),
    ):
        network.eval()
        for batch, batch_labels in split.batches(batch_size):
            inputs = to_place(batch, where, channels_last=channels_last)
            labels = batch_labels.to(where)
            logits = forward_logits(network, inputs).double()
            loss += cross_entropy(logits, labels, reduction="sum")
            hits += (logits.argmax(dim=1) == labels).sum()
            samples += len(labels)
    return Evaluation(top1=hits.item() / samples, loss=loss.item() / samples, samples=samples)
