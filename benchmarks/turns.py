"""What a run before a timed one does to its time: why the meter runs a network untimed first.

    python benchmarks/turns.py      # minutes, on a machine that does nothing else

A BERT of base size with random weights, in PyTorch and on other engines, float32 and int8. Each is timed
by itself, request after request; behind the four others, in turns, as the meter did before; in turns
behind one or two untimed runs of its own; and by itself behind a pause.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from record import write_results

from prunus.meter.latency import SETTLE_SECONDS
from prunus.meter.predictor import call
from prunus.quantize import Deployment, deploy, load_deployed
from prunus.zoo import build

LENGTH, WARMUP, REPEATS = 128, 3, 30
SEED = 0
PIECES = 30_000  # of the vocabulary
PAUSE_SECONDS = 1.0

Run = Callable[[], Any]


def main() -> None:
    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        runs = networks(Path(folder), threads)
        for run in runs.values():
            for _ in range(WARMUP):
                run()
        rows = [{"network": name, **row} for name in runs for row in measure(name, runs)]
    settings = {"threads": threads, "repeats": REPEATS, "batch": 1, "sequence": LENGTH}
    write_results("turns", rows, seed=SEED, **settings)


def networks(folder: Path, threads: int) -> dict[str, Run]:
    """The dense network on its engines."""
    torch.manual_seed(SEED)
    dense = build("bert_tiny", vocab_size=PIECES, layers=12, hidden=768, num_classes=2).eval()
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
    """Medians of one network, by what happens before each timed run."""
    run = runs[name]
    others = [other for key, other in runs.items() if key != name]

    def turn(lead: int) -> None:
        for other in others:
            other()
        time.sleep(SETTLE_SECONDS)
        for _ in range(lead):
            run()

    before: dict[str, Callable[[], None]] = {
        "itself": lambda: None,
        "others": partial(turn, 0),
        "others, then itself": partial(turn, 1),
        "others, then itself twice": partial(turn, 2),
        "a pause of a second": partial(time.sleep, PAUSE_SECONDS),
    }
    rows = []
    for what, prepare in before.items():
        taken = []
        for _ in range(REPEATS):
            prepare()
            begin = time.perf_counter()
            run()
            taken.append(1e3 * (time.perf_counter() - begin))
        q25, median, q75 = statistics.quantiles(taken, n=4)
        rows.append({"before": what, "median_ms": round(median, 3), "iqr_ms": round(q75 - q25, 3)})
        print(name, rows[-1], flush=True)
    return rows


if __name__ == "__main__":
    main()
