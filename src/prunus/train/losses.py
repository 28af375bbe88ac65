"""Losses of classification: cross-entropy with label smoothing, and distillation."""

from typing import Literal

from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from prunus.errors import InputError


def classification_loss(logits: Tensor, labels: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy with smoothed labels, in nats, computed in float32 at least.

    ``(1 - e) * -log p_y + (e / K) * sum_k -log p_k`` over K classes (Szegedy et al., "Rethinking
    the Inception Architecture for Computer Vision", CVPR 2016, section 7).

    Args:
        logits: ``[samples, classes]``.
        labels: Class indices ``[samples]``.
        label_smoothing: ``e`` in [0, 1).
    """
    return cross_entropy(_at_least_float32(logits), labels, label_smoothing=label_smoothing)


def distillation_loss(
    logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    alpha: float,
    temperature: float,
    label_smoothing: float = 0.0,
    kind: Literal["kl", "mse"] = "kl",
) -> Tensor:
    """``alpha * teacher_loss + (1 - alpha) * cross-entropy``, mean over samples; see ``teacher_loss``.

    Args:
        logits: The student's, ``[samples, classes]``.
        teacher_logits: The teacher's, same shape.
        labels: Class indices ``[samples]``.
        alpha: Weight of the teacher, in [0, 1].
        temperature: ``T`` > 0.
        label_smoothing: Of the cross-entropy with the labels.
        kind: Of the teacher's loss.

    Raises:
        InputError: Student and teacher do not return the same shape.
    """
    soft = teacher_loss(logits, teacher_logits, temperature=temperature, kind=kind)
    hard = classification_loss(logits, labels, label_smoothing=label_smoothing)
    return alpha * soft + (1 - alpha) * hard


def teacher_loss(
    logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float,
    kind: Literal["kl", "mse"] = "kl",
) -> Tensor:
    """How far logits are from a teacher's, mean over samples; labels play no part.

    ``kl``: ``T^2 * KL(teacher || student)``. Both distributions are softened, ``softmax(z / T)``;
    gradients through them shrink as 1 / T^2, which the factor T^2 makes up for (Hinton, Vinyals and
    Dean, "Distilling the Knowledge in a Neural Network", 2015, section 2,
    https://arxiv.org/abs/1503.02531). ``mse``: squared differences of the logits, summed over
    classes (Tang et al., "Distilling Task-Specific Knowledge from BERT into Simple Neural Networks",
    2019, eq. 3, https://arxiv.org/abs/1903.12136).

    Args:
        logits: The student's, ``[samples, classes]``.
        teacher_logits: The teacher's, same shape.
        temperature: ``T`` > 0; of ``kl`` alone.
        kind: ``kl`` or ``mse``.

    Raises:
        InputError: Student and teacher do not return the same shape.
    """
    if logits.shape != teacher_logits.shape:
        raise InputError(
            f"teacher returned logits {list(teacher_logits.shape)}, the network "
            f"{list(logits.shape)}: give a teacher with the same classes"
        )
    if kind == "mse":
        difference = _at_least_float32(logits) - _at_least_float32(teacher_logits)
        return difference.square().sum(dim=1).mean()
    divergence = kl_div(
        log_softmax(_at_least_float32(logits) / temperature, dim=1),
        log_softmax(_at_least_float32(teacher_logits) / temperature, dim=1),
        reduction="batchmean",
        log_target=True,
    )
    return temperature**2 * divergence


def _at_least_float32(logits: Tensor) -> Tensor:
    """Under autocast logits arrive in bfloat16, too coarse for a log-softmax."""
    return logits if logits.dtype.itemsize >= 4 else logits.float()
