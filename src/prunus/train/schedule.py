"""Steps of a training and the learning rate at each of them: pure functions."""

import math
from typing import Literal

from prunus.errors import InputError


def lr_at(
    step: int,
    total: int,
    *,
    peak: float,
    warmup_fraction: float,
    final_lr_fraction: float,
    schedule: Literal["one-cycle", "linear"] = "one-cycle",
) -> float:
    """Learning rate of one optimizer step.

    With ``w = round(warmup_fraction * total)``: a straight line ``peak * (step + 1) / (w + 1)``
    before step w (Goyal et al., "Accurate, Large Minibatch SGD", 2017, section 2.2), the peak at w,
    then ``final + (peak - final) * (1 + cos(pi * (step - w) / (total - w))) / 2`` (Loshchilov and
    Hutter, "SGDR", ICLR 2017, eq. 5). ``final = final_lr_fraction * peak`` belongs to
    ``step = total``, after the last step, so that even ``final = 0`` wastes no step. With
    ``schedule="linear"`` a straight line leads from the peak to ``final`` (Devlin et al., "BERT",
    NAACL 2019, appendix A.2).

    Args:
        step: Steps already done, in [0, total].
        total: Steps of the whole training.
        peak: Largest learning rate.
        warmup_fraction: In [0, 1].
        final_lr_fraction: In [0, 1].
        schedule: How the learning rate falls.

    Raises:
        InputError: ``step`` is outside [0, total].

    >>> [lr_at(s, 4, peak=1.0, warmup_fraction=0.25, final_lr_fraction=0.0) for s in (0, 1)]
    [0.5, 1.0]
    """
    if not 0 <= step <= total:
        raise InputError(f"step={step} must be in [0, {total}], the steps of the training")
    warmup = round(warmup_fraction * total)
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    if step == warmup:
        return peak
    final = final_lr_fraction * peak
    progress = (step - warmup) / (total - warmup)
    if schedule == "linear":
        return final + (peak - final) * (1 - progress)
    return final + (peak - final) * (1 + math.cos(math.pi * progress)) / 2


def steps_per_epoch(samples: int, batch_size: int) -> int:
    """Optimizer steps of one pass over ``samples``.

    A last batch of one sample beside larger ones is not trained on: batch norm has no variance
    there, and its gradient would weigh as much as that of a whole batch.

    >>> steps_per_epoch(10, 4), steps_per_epoch(9, 4), steps_per_epoch(1, 4)
    (3, 2, 1)
    """
    batches = math.ceil(samples / batch_size)
    return batches - 1 if batches > 1 and batch_size > 1 and samples % batch_size == 1 else batches
