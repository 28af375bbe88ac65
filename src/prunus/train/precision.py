"""Number format and memory layout of a training, picked by a short measured trial."""

import copy
import itertools
import statistics
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from prunus.data import Inputs
from prunus.records import processor_line
from prunus.seeding import random_states_kept
from prunus.train.config import Layout, Precision, TrainConfig
from prunus.train.forward import forward_logits, placed, to_place
from prunus.train.losses import classification_loss

TRIAL_SAMPLES = 32
"""Samples per pass of the trial: enough to rank the choices, few enough for a slow CPU."""

_TRIALS = 3
_MARGIN = 0.95
"""A choice must take at most this share of the plain one's time: less is timing noise."""

_BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}  # x86 twice, then Arm


@dataclass(frozen=True)
class Execution:
    """How forward and backward run; part of what decides the weights that come out."""

    precision: Precision = "float32"
    layout: Layout = "contiguous"

    @property
    def channels_last(self) -> bool:
        """Whether images and 2-D convolutions are in that layout."""
        return self.layout == "channels_last"

    def autocast(self, device: torch.device) -> AbstractContextManager[None]:
        """Autocast to bfloat16, or nothing in float32."""
        # torch.autocast is untyped; it is a context manager without a value.
        context: AbstractContextManager[None] = torch.autocast(
            device.type, dtype=torch.bfloat16, enabled=self.precision == "bfloat16"
        )
        return context


_Choice = TypeVar("_Choice", bound=Execution)


def choose_execution(
    network: nn.Module,
    sample: tuple[Inputs, Tensor],
    config: TrainConfig,
    device: torch.device,
) -> Execution:
    """Resolve ``precision`` and ``layout`` of a configuration; what is not ``auto`` stays.

    On a CPU each remaining choice is timed, one warm-up and the median of three passes forward and
    backward over a copy; bfloat16 is tried only where the CPU computes in it, for emulating it is
    some ten times slower. On CUDA bfloat16 and channels_last are taken wherever they run. A layout
    that the network cannot run in (``view`` of a channels_last activation) is left out.

    Timing is not reproducible: pass the choice back, as ``FitResult`` tells it, to repeat a run.

    Args:
        network: Neither changed nor moved.
        sample: One batch ``(inputs, labels)``; its first samples are used.
        config: Of the training.
        device: It will run on.
    """
    choices = candidates(network, config, device)
    inputs, labels = _first_samples(*sample)
    if len(choices) == 1 or len(labels) < 2:
        return choices[0]
    if device.type == "cuda":
        # Fastest known first: it need only run.
        runs = (
            c
            for c in reversed(choices)
            if _seconds(network, inputs, labels, c, device, 0) is not None
        )
        return next(runs, choices[0])
    timed = {
        choice: seconds
        for choice in choices
        if (seconds := _seconds(network, inputs, labels, choice, device, _TRIALS)) is not None
    }
    return fastest(timed, choices[0])


def candidates(network: nn.Module, config: TrainConfig, device: torch.device) -> list[Execution]:
    """What may be chosen from, the plainest first."""
    precisions: list[Precision] = ["float32"]
    if config.precision != "auto":
        precisions = [config.precision]
    elif has_bfloat16(device):
        precisions.append("bfloat16")
    layouts: list[Layout] = ["contiguous"]
    if config.layout != "auto":
        layouts = [config.layout]
    elif any(parameter.ndim == 4 for parameter in network.parameters()):
        layouts.append("channels_last")
    return list(itertools.starmap(Execution, itertools.product(precisions, layouts)))


def fastest(seconds: Mapping[_Choice, float], plain: _Choice) -> _Choice:
    """The fastest choice, or ``plain`` unless the fastest beats it by more than timing noise."""
    best = min(seconds, key=lambda choice: seconds[choice], default=plain)
    if plain in seconds and seconds[best] > _MARGIN * seconds[plain]:
        return plain
    return best


def has_bfloat16(device: torch.device, cpu_info: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the device computes in bfloat16; unknown CPUs count as not."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    flags = processor_line("flags", "Features", file=cpu_info).split()
    return not _BFLOAT16_FLAGS.isdisjoint(flags)


def runs_in(
    network: nn.Module, sample: tuple[Inputs, Tensor], choice: Execution, device: torch.device
) -> bool:
    """Whether a network can be trained in a format and layout, by one pass; arguments as above."""
    inputs, labels = _first_samples(*sample)
    return len(labels) < 2 or _seconds(network, inputs, labels, choice, device, 0) is not None


def training_error(network: nn.Module, inputs: Inputs, device: torch.device) -> Exception | None:
    """What a network raises in a pass forward and backward in train mode, on a copy; None: nothing."""
    trial = copy.deepcopy(network).train()
    devices = [device.index] if device.type == "cuda" else []
    with random_states_kept(devices), placed(trial, device, channels_last=False):
        try:
            logits = forward_logits(trial, to_place(inputs, device, channels_last=False))
            torch.autograd.backward(logits.float().mean())
        except Exception as error:  # noqa: BLE001  # whatever the user's forward raises
            return error
    return None


def _first_samples(inputs: Inputs, labels: Tensor) -> tuple[Inputs, Tensor]:
    if isinstance(inputs, Tensor):
        return inputs[:TRIAL_SAMPLES], labels[:TRIAL_SAMPLES]
    return {k: v[:TRIAL_SAMPLES] for k, v in inputs.items()}, labels[:TRIAL_SAMPLES]


def _seconds(
    network: nn.Module,
    inputs: Inputs,
    labels: Tensor,
    choice: Execution,
    device: torch.device,
    repeats: int,
) -> float | None:
    """Median seconds of a pass after a warm-up; None where the network cannot run that way."""
    devices = [device.index] if device.type == "cuda" else []
    trial = copy.deepcopy(network).train()
    times = []
    with (
        random_states_kept(devices),
        placed(trial, device, channels_last=choice.channels_last),
    ):
        batch = to_place(inputs, device, channels_last=choice.channels_last)
        targets = labels.to(device)
        for _ in range(1 + repeats):
            begin = time.perf_counter()
            try:
                with choice.autocast(device):
                    logits = forward_logits(trial, batch)
                torch.autograd.backward(classification_loss(logits, targets))
            except RuntimeError:
                return None  # the plain choice, if it fails too, raises in the training itself
            times.append(time.perf_counter() - begin)
            trial.zero_grad(set_to_none=True)
    return statistics.median(times[1:] or times)
