"""What a training did: its history, and the epoch that scored best."""

from collections.abc import Sequence
from typing import Self

from prunus.plan import Record
from prunus.records import HistoryPoint
from prunus.train.config import Layout, Precision, TrainConfig
from prunus.train.precision import Execution


class FitResult(Record):
    """What a training did.

    Attributes:
        history: One point per epoch: ``train_loss`` (of the loss trained on, mean over steps),
            ``search_loss``, ``search_top1``, ``lr`` (of the last step), and ``search_f1`` where that
            is the metric; seconds since the start.
        seconds: Wall-clock time of all epochs, those before a resumption included.
        precision: Used; give it back in the configuration to repeat the run exactly.
        layout: Likewise.
        best_epoch: The epoch, from 1, with the best metric of the configuration on the search split
            (then lowest loss, then earliest).
        search_top1: On the search split, in [0, 1], of the weights the network ends with.
    """

    history: tuple[HistoryPoint, ...]
    seconds: float
    precision: Precision
    layout: Layout
    best_epoch: int
    search_top1: float

    @classmethod
    def of(cls, history: Sequence[HistoryPoint], config: TrainConfig, execution: Execution) -> Self:
        """Sum up a training of which all epochs are done."""
        chosen = best_epoch(history, config.metric)
        ends_with = chosen if config.select == "best" else len(history)
        return cls(
            history=tuple(history),
            seconds=history[-1].seconds,
            precision=execution.precision,
            layout=execution.layout,
            best_epoch=chosen,
            search_top1=history[ends_with - 1].values["search_top1"],
        )


def best_epoch(history: Sequence[HistoryPoint], metric: str = "top1") -> int:
    """Number of the first epoch with the highest metric, the lowest loss among equals."""
    key = f"search_{metric}"
    order = [(-point.values[key], point.values["search_loss"]) for point in history]
    return order.index(min(order)) + 1
