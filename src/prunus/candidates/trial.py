"""Number format and layout of scoring, picked by a short measured trial on a real candidate."""

import itertools
import statistics
from collections.abc import Sequence

from torch import nn

from prunus.candidates.scorer import Images, Scorer, Tricks
from prunus.candidates.task import Task
from prunus.compute import Compute
from prunus.plan import Plan
from prunus.train.config import Layout, Precision
from prunus.train.forward import device_of
from prunus.train.precision import Execution, fastest, has_bfloat16

_REPEATS = 3


def choose_execution(network: nn.Module, images: Images, plan: Plan, compute: Compute) -> Execution:
    """The fastest way to score a candidate on this machine; what is not ``auto`` stays.

    Each choice scores one batch: once to warm up, then the median of three. Plain float32 in the
    usual layout stays unless another takes less than 95 % of its time. A choice that the network
    cannot run in is left out. The outcome varies with the load of the machine: it is stored and
    becomes an input of the run.
    """
    choices = _choices(network, compute)
    if len(choices) == 1:
        return choices[0]
    seconds = {}
    for choice in choices:
        try:
            seconds[choice] = _seconds(network, images, plan, compute, choice)
        except RuntimeError:
            continue  # the plain choice, if it fails too, raises in the scoring itself
    return fastest(seconds, choices[0])


def _choices(network: nn.Module, compute: Compute) -> Sequence[Execution]:
    precisions: list[Precision] = ["float32"]
    if compute.precision != "auto":
        precisions = [compute.precision]
    elif has_bfloat16(device_of(network)):
        precisions.append("bfloat16")
    layouts: list[Layout] = ["contiguous"]
    if compute.layout != "auto":
        layouts = [compute.layout]
    elif any(parameter.ndim == 4 for parameter in network.parameters()):
        layouts.append("channels_last")
    return list(itertools.starmap(Execution, itertools.product(precisions, layouts)))


def _seconds(
    network: nn.Module, images: Images, plan: Plan, compute: Compute, choice: Execution
) -> float:
    scorer = Scorer(
        network,
        images,
        execution=choice,
        batch_size=compute.batch_size,
        tricks=Tricks(memory_bytes=0),
    )
    stop = min(compute.batch_size, len(images))
    first = scorer(Task("trial", plan, 0, stop))
    task = Task("trial", plan, 0, stop, statistics=first.statistics)
    return statistics.median(scorer(task).seconds for _ in range(_REPEATS))
