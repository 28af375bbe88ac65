"""Time of one forward pass, as a caller waits for it."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from prunus.device import resolve_device
from prunus.errors import InputError
from prunus.meter.predictor import NetworkPredictor, call, eval_mode, no_garbage_collection
from prunus.records import Latency

Predict = Callable[[Any], Any]

NANOSECONDS_PER_MILLISECOND = 1_000_000

SETTLE_SECONDS = 0.1
"""Idle threads of an engine look for work, on the cores of the next one, for a while after a run, those
of ONNX Runtime longest."""

LEAD = 1
"""Untimed runs before each timed one, where several take turns. The first run after a pause or after
another network is slower, int8 in OpenVINO most (``benchmarks/turns.py``): caches hold other weights
and a core that was idle has to wake. Requests that follow each other find neither."""


def measure_latency(
    predict: Predict,
    inputs: Any,
    *,
    batch: int,
    warmup: int = 10,
    repeats: int = 30,
    threads: int | None = None,
    device: str | torch.device = "cpu",
    engine: str = "torch",
) -> Latency:
    """Time one predictor alone. For a ratio between two, use `measure_latencies`.

    Args:
        predict: A network (run in eval mode, its modes given back) or any callable on ``inputs``.
        inputs: What it is called on, already on ``device``. A network takes a tensor, a tuple of
            positional or a mapping of keyword arguments.
        batch: Samples in ``inputs``, for the record.
        warmup: Untimed passes before.
        repeats: Timed passes; 30 or more for a percentile worth reporting.
        threads: CPU threads of PyTorch during the measurement; None leaves them as they are.
            A session of another engine sets its own threads when it is made.
        device: Where the work runs; on CUDA the clock is read after the device is done.
        engine: Name of what runs it, for the record.

    Raises:
        InputError: A count is out of range, or the device is not there.
    """
    found = measure_latencies(
        {"only": (predict, inputs)},
        batch=batch,
        warmup=warmup,
        repeats=repeats,
        threads=threads,
        device=device,
        engine=engine,
    )
    return found["only"]


def measure_latencies(
    named: Mapping[str, tuple[Predict, Any]],
    *,
    batch: int,
    warmup: int = 10,
    repeats: int = 30,
    threads: int | None = None,
    device: str | torch.device = "cpu",
    engine: str | Mapping[str, str] = "torch",
) -> dict[str, Latency]:
    """Time several predictors round robin, so that a slow minute of the machine hits all alike.

    Each is timed as it runs alone, request after request, as it is deployed: in its turn it runs
    ``LEAD`` times untimed, then once timed. Where several have threads of their own, which only
    PyTorch's networks share, a turn begins ``SETTLE_SECONDS`` after the one before.

    Args:
        named: Name to predictor and its inputs; see `measure_latency`, also for the rest.
        batch: Samples in the inputs, the same for all.
        warmup: Untimed rounds before.
        repeats: Timed rounds.
        threads: CPU threads of PyTorch; None leaves them as they are.
        device: Where the work runs.
        engine: One name for all, or a name for each candidate.

    Raises:
        InputError: A count is out of range, the device or an engine's name is missing.
    """
    _require_counts(batch=(batch, 1), warmup=(warmup, 0), repeats=(repeats, 1))
    place = resolve_device(device)
    engines = {name: engine if isinstance(engine, str) else engine.get(name) for name in named}
    unnamed = [name for name, found in engines.items() if found is None]
    if unnamed:
        raise InputError(f"engine names none for {unnamed}; give one for each of {list(named)}")
    nanoseconds: dict[str, list[int]] = {name: [] for name in named}
    with ExitStack() as stack:
        used_threads = stack.enter_context(_threads(threads))
        runs = {}
        for name, (predict, inputs) in named.items():
            # A predictor walks all modules at every call, to set their modes: not what is timed.
            network = predict.network if isinstance(predict, NetworkPredictor) else predict
            if isinstance(network, nn.Module):
                stack.enter_context(eval_mode(network))
                runs[name] = partial(call, network, inputs)
            else:
                runs[name] = partial(predict, inputs)
        stack.enter_context(torch.no_grad())  # see NetworkPredictor
        # A collection inside a timed pass would be charged to whoever runs at that moment.
        stack.enter_context(no_garbage_collection())
        apart = len(named) > 1 and set(engines.values()) != {"torch"}
        lead = LEAD if len(named) > 1 else 0
        for _ in range(warmup):
            for run in runs.values():
                run()
        for _ in range(repeats):
            for name, run in runs.items():
                if apart:
                    time.sleep(SETTLE_SECONDS)
                for _ in range(lead):
                    run()
                nanoseconds[name].append(_timed(run, place))
    return {
        name: _summary(
            found,
            warmup=warmup,
            lead=lead,
            batch=batch,
            threads=used_threads,
            device=str(place),
            engine=str(engines[name]),
        )
        for name, found in nanoseconds.items()
    }


def _timed(run: Callable[[], Any], device: torch.device) -> int:
    """Nanoseconds of one run; on CUDA from an idle device to an idle device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter_ns()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter_ns() - start


def _summary(
    nanoseconds: list[int],
    *,
    warmup: int,
    lead: int,
    batch: int,
    threads: int,
    device: str,
    engine: str,
) -> Latency:
    times_ms = np.asarray(nanoseconds, dtype=np.float64) / NANOSECONDS_PER_MILLISECOND
    q25, median, q75, p95 = np.percentile(times_ms, [25, 50, 75, 95])
    return Latency(
        median_ms=float(median),
        p95_ms=float(p95),
        iqr_ms=float(q75 - q25),
        repeats=len(nanoseconds),
        warmup=warmup,
        lead=lead,
        batch=batch,
        threads=threads,
        device=device,
        engine=engine,
    )


def _require_counts(**counts: tuple[int, int]) -> None:
    for name, (value, least) in counts.items():
        if value < least:
            raise InputError(f"{name}={value} is too small; use {least} or more")


@contextmanager
def _threads(threads: int | None) -> Iterator[int]:
    """Set PyTorch's threads inside the block; yields how many are used."""
    before = torch.get_num_threads()
    if threads is None:
        yield before
        return
    _require_counts(threads=(threads, 1))
    torch.set_num_threads(threads)
    try:
        yield threads
    finally:
        torch.set_num_threads(before)
