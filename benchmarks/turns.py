"""What a run before a timed one does to its time: why the meter runs a network untimed first.

    python benchmarks/turns.py      # some eight minutes, on a machine that does nothing else

A BERT of base size with random weights, in PyTorch and on other engines, float32 and int8. Each is timed
behind itself, request after request; behind the four others, in turns, as the meter did before; in turns
behind one or two untimed runs of its own; and by itself behind a pause, one as short as the meter makes
between turns and a long one. A turn times each kind once, in an order that is drawn anew: the machine
gets faster and slower for minutes, and a ratio is to the same turn's time behind itself.
"""

import random
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from record import START, write_results

from prunus.meter.latency import SETTLE_SECONDS
from prunus.meter.predictor import call
from prunus.quantize import Deployment, deploy, load_deployed
from prunus.zoo import build

LENGTH, WARMUP, REPEATS = 128, 3, 24
LAYERS, WIDTH = 12, 768
SEED = 0
PIECES = 30_000  # of the vocabulary
PAUSE_SECONDS = 1.0
OWN = 2  # runs that make a network the one before, whatever the kind before ended with

Run = Callable[[], Any]


def main() -> None:
    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        runs = networks(Path(folder), threads)
        for run in runs.values():
            for _ in range(WARMUP):
                run()
        rows = [
            {"network": name, **row, **conditions(threads)}
            for name in runs
            for row in measure(name, runs)
        ]
    write_results("turns", rows, seed=SEED)


def conditions(threads: int) -> dict[str, Any]:
    """Of all figures alike; in each, so that a page can say them beside the figures."""
    return {
        "of": f"BERT of {LAYERS} layers of width {WIDTH}, random weights",
        "batch": 1,
        "tokens": LENGTH,
        "threads": threads,
        "repeats": REPEATS,
        "settle_s": SETTLE_SECONDS,
        "cpu": START.cpu,
        "cores": START.cores,
        "instructions": list(START.instructions),
    }


def networks(folder: Path, threads: int) -> dict[str, Run]:
    """The dense network on its engines."""
    torch.manual_seed(SEED)
    dense = build("bert_tiny", vocab_size=PIECES, layers=LAYERS, hidden=WIDTH, num_classes=2).eval()
    generator = torch.Generator().manual_seed(SEED)
    ids = torch.randint(5, PIECES, (4, LENGTH), generator=generator)
    inputs = {"input_ids": ids[:1], "attention_mask": torch.ones_like(ids[:1])}
    samples = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    found: dict[str, Run] = {"float32 (torch)": partial(call, dense, inputs)}
    for engine in ("onnxruntime", "openvino"):
        for weights in ("float32", "int8"):
            place = folder / f"{weights}-{engine}"
            choice = Deployment.model_validate({"engine": engine, "weights": weights})
            deploy(dense, place, choice, inputs=samples, calibration=[samples])
            found[f"{weights} ({engine})"] = partial(load_deployed(place, threads), inputs)
    return found


def measure(name: str, runs: dict[str, Run]) -> list[dict[str, Any]]:
    """Times of one network by what happens before each timed run, and their ratios turn by turn."""
    before = kinds(name, runs)
    draw = random.Random(SEED)
    taken: dict[str, list[float]] = {what: [] for what in before}
    for _ in range(REPEATS):
        for what in draw.sample(list(before), len(before)):
            before[what]()
            begin = time.perf_counter()
            runs[name]()
            taken[what].append(1e3 * (time.perf_counter() - begin))
    alone = next(iter(taken.values()))
    rows = []
    for what, times in taken.items():
        ratios = [took / base for took, base in zip(times, alone, strict=True)]
        rows.append({"before": what, **quartiles(times, "ms", 3), **quartiles(ratios, "ratio", 4)})
        print(name, rows[-1], flush=True)
    return rows


def kinds(name: str, runs: dict[str, Run]) -> dict[str, Callable[[], None]]:
    """What happens before a timed run, by its name; first the kind that the others are compared with."""
    others = [other for key, other in runs.items() if key != name]

    def own(times: int) -> None:
        for _ in range(times):
            runs[name]()

    def turn(lead: int) -> None:
        for other in others:
            other()
        time.sleep(SETTLE_SECONDS)
        own(lead)

    def pause(seconds: float) -> None:
        own(OWN)
        time.sleep(seconds)

    return {
        "itself": partial(own, OWN),
        "others": partial(turn, 0),
        "others, then itself": partial(turn, 1),
        "others, then itself twice": partial(turn, 2),
        f"a pause of {SETTLE_SECONDS:g} s": partial(pause, SETTLE_SECONDS),
        f"a pause of {PAUSE_SECONDS:g} s": partial(pause, PAUSE_SECONDS),
    }


def quartiles(values: list[float], what: str, digits: int) -> dict[str, float]:
    """Median and quartiles, named by what they are of."""
    q25, median, q75 = (round(value, digits) for value in statistics.quantiles(values, n=4))
    return {f"median_{what}": median, f"q25_{what}": q25, f"q75_{what}": q75}


if __name__ == "__main__":
    main()
