"""Importance of units by the name of a criterion, for methods that need one."""

from typing import Literal

from prunus.errors import InputError
from prunus.method import Context
from prunus.prune.magnitude import magnitude_scores
from prunus.prune.scores import FloatArray
from prunus.prune.taylor import TaylorOptions, finite_scores

Importance = Literal["l2", "taylor"]


def importance_scores(context: Context, criterion: Importance) -> dict[str, FloatArray]:
    """Importance of every unit that can be cut, at least 0, by group.

    ``l2``: norm of its filters; ``taylor``: first-order effect on the loss of training images.

    Raises:
        InputError: Taylor without training images, or gradients that are not finite.
    """
    if criterion == "l2":
        return magnitude_scores(context.network, context.trace, norm="l2", axes="out")
    if context.train is None:
        raise InputError("importance=taylor needs training data; give the context train=")
    return finite_scores(context, context.train, TaylorOptions())
