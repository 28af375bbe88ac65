"""Peak memory of one forward pass, beyond what was held before it."""

import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from prunus.device import resolve_device
from prunus.errors import InputError
from prunus.meter.predictor import NetworkPredictor, call, eval_mode, no_garbage_collection

Predict = Callable[[Any], Any]

_LOG_LEVEL = "KINETO_LOG_LEVEL"


def peak_memory_bytes(predict: Predict, inputs: Any, device: str | torch.device = "cpu") -> int:
    """Most bytes that were alive at once during one forward pass: activations and the output.

    Parameters and inputs lie there before and are left out. On CUDA it is what PyTorch's allocator
    had handed out at most, less what it held before (``torch.cuda.max_memory_allocated``). On the
    CPU every allocation and release that PyTorch's profiler saw is summed up in order; scratch
    memory that libraries (oneDNN, MKL) take for themselves is not seen. One pass is run before, so
    that one-time allocations do not count.

    Args:
        predict: A network (run in eval mode, its modes given back) or any callable on ``inputs``.
        inputs: What it is called on, already on ``device``.
        device: "cpu" or a CUDA device.

    Raises:
        InputError: The device is neither, or not there, or ``predict`` runs outside of PyTorch, whose memory
            cannot be seen.
    """
    place = resolve_device(device)
    network = predict.network if isinstance(predict, NetworkPredictor) else predict
    if isinstance(network, nn.Module):
        with eval_mode(network):
            return _peak(lambda given: call(network, given), inputs, place)
    peak = _peak(predict, inputs, place)
    if peak == 0:
        raise InputError(
            "predict took no memory from PyTorch: it runs in another engine, whose memory cannot "
            "be seen; give the PyTorch network"
        )
    return peak


def _peak(predict: Predict, inputs: Any, place: torch.device) -> int:
    with torch.no_grad():  # see NetworkPredictor
        predict(inputs)
        if place.type == "cuda":
            return _cuda_peak(predict, inputs, place)
        return _cpu_peak(predict, inputs)


def _cuda_peak(predict: Predict, inputs: Any, place: torch.device) -> int:
    torch.cuda.synchronize(place)
    torch.cuda.reset_peak_memory_stats(place)
    before = torch.cuda.memory_allocated(place)
    predict(inputs)
    torch.cuda.synchronize(place)
    return torch.cuda.max_memory_allocated(place) - before


def _cpu_peak(predict: Predict, inputs: Any) -> int:
    # Memory of before that a collection let go of inside would be told to the user as a warning.
    with (
        no_garbage_collection(),
        _quiet_profiler(),
        profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler,
    ):
        # Held until the profiler stops: the output is alive at the end of the pass.
        output = predict(inputs)
    del output
    with tempfile.TemporaryDirectory() as folder:
        # The exported trace is the profiler's documented way to single allocations with addresses.
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        trace = json.loads(path.read_text(encoding="utf-8"))
    events = [event for event in trace["traceEvents"] if event.get("name") == "[memory]"]
    events.sort(key=lambda event: (event["ts"], event["args"]["Ev Idx"]))
    return _most_alive(event["args"] for event in events)


@contextmanager
def _quiet_profiler() -> Iterator[None]:
    """Keep the profiler from writing its log to stderr, unless a level is set for it.

    It reads the variable when it first runs in a process; other tools may profile there later.
    """
    if _LOG_LEVEL in os.environ:
        yield
        return
    os.environ[_LOG_LEVEL] = "99"
    try:
        yield
    finally:
        os.environ.pop(_LOG_LEVEL, None)


def _most_alive(events: Iterable[Mapping[str, int]]) -> int:
    """Peak of live bytes over allocations and releases in order of time.

    A release of memory that was taken before the first event is not of this pass, and left out.
    """
    alive: dict[int, int] = {}
    now = peak = 0
    for event in events:
        address, size = event["Addr"], event["Bytes"]
        if size >= 0:
            alive[address] = size
            now += size
            peak = max(peak, now)
        else:
            now -= alive.pop(address, 0)
    return peak
