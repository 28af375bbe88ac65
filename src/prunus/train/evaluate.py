"""Quality of a network on a split: accuracy, loss, F1, and the logits behind them."""

from collections.abc import Callable

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from prunus.data import Inputs, Split
from prunus.device import resolve_device
from prunus.errors import InputError
from prunus.plan import Record
from prunus.train.forward import (
    device_of,
    foreign_errors_told,
    forward_logits,
    logits_of,
    modes_restored,
    placed,
    to_place,
)

Predict = nn.Module | Callable[[Inputs], Tensor]
"""A network, or anything else that maps inputs to logits on the CPU: a deployed session."""


class Evaluation(Record):
    """Quality on all samples of a split; all but ``loss`` in [0, 1].

    Of data of two classes ``f1``, ``precision`` and ``recall`` are those of class 1; of more they are
    the plain mean over the classes that occur (macro). A ratio of nothing to nothing counts as 0, an
    answer that is no number as wrong.

    Attributes:
        top1: Share of samples in the right class (accuracy).
        loss: Mean cross-entropy in nats.
        f1: Harmonic mean of precision and recall.
        precision: Share of what is called a class that is of it.
        recall: Share of a class that is called so.
        samples: How many.
    """

    top1: float = Field(ge=0, le=1)
    loss: float
    f1: float = Field(ge=0, le=1)
    precision: float = Field(ge=0, le=1)
    recall: float = Field(ge=0, le=1)
    samples: int = Field(gt=0)


def evaluate(
    network: Predict,
    split: Split,
    *,
    batch_size: int = 256,
    device: str | torch.device = "cpu",
    channels_last: bool = False,
) -> Evaluation:
    """Run a network over a whole split in eval mode, without augmentation.

    Loss is summed in float64, so that the batch size does not show in the result beyond the rounding
    of the network itself. Training flags and place of the network are given back.

    Args:
        network: Returns logits ``[samples, classes]`` (see ``forward_logits``), or a session.
        split: Any split; a test split counts this as one evaluation.
        batch_size: Samples per forward pass.
        device: ``"cpu"`` or ``"cuda"``; a network is moved there and back.
        channels_last: Give images and 2-D convolutions that layout; else leave them as they are.

    Raises:
        InputError: ``batch_size`` or ``device`` cannot be used, the output is not logits, or a label
            is no class of them.
    """
    logits, labels = _run(network, split, batch_size, device, channels_last=channels_last)
    return evaluation_of(logits, labels, classes=split.num_classes)


def predictions(
    network: Predict,
    split: Split,
    *,
    batch_size: int = 256,
    device: str | torch.device = "cpu",
    channels_last: bool = False,
) -> Tensor:
    """Logits ``[samples, classes]`` in the order of the split, on the CPU; for the rest see ``evaluate``."""
    return _run(network, split, batch_size, device, channels_last=channels_last)[0]


def answers(logits: Tensor) -> Tensor:
    """Class that every row of logits calls, int64 ``[samples]``; -1 where it calls none.

    A row with a NaN, or whose greatest logit is infinite, calls none: ``argmax`` would name one. A
    class that a network rules out by a logit of minus infinity is no such case.
    """
    greatest, called = logits.max(dim=1)
    return torch.where(greatest.isfinite(), called, -1)


def evaluation_of(logits: Tensor, labels: Tensor, *, classes: int | None = None) -> Evaluation:
    """Quality of logits ``[samples, outputs]`` against labels ``[samples]``.

    Args:
        logits: A row that calls no class (see ``answers``) is wrong.
        labels: Right classes.
        classes: Of the data, which decide what F1 is: a network may have more outputs. None: as
            many as outputs.

    Raises:
        InputError: A label is no class of the logits.
    """
    outputs = logits.shape[1]
    if int(labels.min()) < 0 or int(labels.max()) >= outputs:
        raise InputError(
            f"labels run from {int(labels.min())} to {int(labels.max())}, the network answers with "
            f"{outputs} classes: give labels 0 to {outputs - 1} (-1, not known, cannot be judged)"
        )
    logits = logits.double()
    called = answers(logits)
    hits = torch.bincount(labels[called == labels], minlength=outputs).double()
    calls = torch.bincount(called[called >= 0], minlength=outputs).double()
    members = torch.bincount(labels, minlength=outputs).double()
    precision, recall = hits / calls.clamp(min=1), hits / members.clamp(min=1)
    f1 = 2 * hits / (calls + members).clamp(min=1)
    there, binary = calls + members > 0, (outputs if classes is None else classes) == 2

    def over_classes(values: Tensor) -> float:
        return float(values[1] if binary else values[there].mean())

    return Evaluation(
        top1=float(hits.sum()) / len(labels),
        loss=float(cross_entropy(logits, labels, reduction="sum")) / len(labels),
        f1=over_classes(f1),
        precision=over_classes(precision),
        recall=over_classes(recall),
        samples=len(labels),
    )


def _run(
    network: Predict,
    split: Split,
    batch_size: int,
    device: str | torch.device,
    *,
    channels_last: bool,
) -> tuple[Tensor, Tensor]:
    """Logits and labels in the order of the split, on the CPU; one pass."""
    if batch_size < 1:
        raise InputError(f"batch_size={batch_size} must be at least 1")
    if not isinstance(network, nn.Module):
        session = network
        return _gather(lambda inputs: logits_of(session(inputs)), split, batch_size)
    where, module = resolve_device(device), network
    with (
        modes_restored(module),
        placed(module, where, channels_last=channels_last),
        torch.no_grad(),  # not inference mode: what the network keeps is trained on
    ):
        module.eval()
        return _gather(
            lambda inputs: forward_logits(
                module, to_place(inputs, device_of(module), channels_last=channels_last)
            ),
            split.on(where),
            batch_size,
        )


def _gather(
    run: Callable[[Inputs], Tensor], split: Split, batch_size: int
) -> tuple[Tensor, Tensor]:
    """Texts come in batches of one length each; their logits are put back in the split's order."""
    logits: Tensor | None = None
    labels = torch.zeros(len(split), dtype=torch.int64)
    for positions, inputs, some in split.placed_batches(batch_size, by_length=True):
        with foreign_errors_told(f"{split.name}: on {len(some)} samples of the {split.role} split"):
            found = run(inputs).cpu()
        if logits is None:
            logits = found.new_zeros(len(split), found.shape[1])
        logits[positions] = found
        labels[positions] = some
    if logits is None:
        raise InputError(f"{split.name}: the {split.role} split has no samples")
    return logits, labels
