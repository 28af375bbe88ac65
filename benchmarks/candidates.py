"""The candidate engine beside the ways in which peers score candidates, in one run.

    python benchmarks/candidates.py run                          # the queue; killed, it goes on
    python benchmarks/candidates.py run --network resnet56 --cell full
    python benchmarks/candidates.py table                        # candidates.json from the cells

64 plans at equal MACs (``candidate_plans.py``), 2,000 search images, 256 images for batch-norm
statistics on every side. Peers are in ``candidate_peers.py``, slow references that are not timed in
``candidate_reference.py``. A cell is one measurement on one network and one file; the sides of a ratio
take turns inside it, a few plans each, so that a change of the machine's speed hits both.

full      every plan on all images: engine (one process, then one worker a core) and peer (a), by turns
peers     peers (b) and (c) on few plans, both engines beside them
search    halving on all plans, by both engines, and what opening one takes; peer (a) on few plans before and after
ablation  each trick of the engine left out, by turns
growth    candidates a second by images, workers and engine
memory    peak memory of an evaluation of the dense network, and of the engine, in fresh processes
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from candidate_peers import (
    Judge,
    PeerScore,
    check_peers,
    score_bfloat16,
    score_masked,
    score_pruned,
)
from candidate_plans import IMAGES, NETWORKS, PLANS, plans, search_images, subject
from candidate_tables import ENGINES, FOLDER, TURN, WANTED, Row, read, table
from record import RESULTS, environment, write_json

from prunus.candidates import Candidate, Engine, Scored, Scoring, ranked
from prunus.candidates.int8_find import weight_bits
from prunus.compute import Compute
from prunus.graph import Choice
from prunus.method import Budget, Context
from prunus.train import evaluate
from prunus.train.precision import has_bfloat16

PEER_TURNS = (
    ("tp-bfloat16", score_bfloat16, (range(1, 5), range(5, 9), range(9, 13), range(13, 17))),
    ("masks", score_masked, (range(1, 5),)),
)
GROWTH_TURNS = 3
SEARCHES = 3  # of either engine
SERIAL_TURNS = 3  # of the full cell that the engine in one process takes part in, too
BUDGET = Budget.parse("macs=0.5")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("command", choices=["run", "table", "peak"])
    parser.add_argument("--network", choices=list(NETWORKS), nargs="+", default=list(NETWORKS))
    parser.add_argument("--cell", choices=list(CELLS), nargs="+", default=list(CELLS))
    parser.add_argument(
        "--name", default=FOLDER.name, help="of the results: one name for each kind of machine"
    )
    parser.add_argument("--side", choices=["dense", "engine"], help="of peak: internal")
    options = parser.parse_args()
    if options.command == "peak":
        print(json.dumps(peak(options.network[0], options.side)))
        return
    if options.command == "table":
        table(RESULTS / options.name)
        return
    for cell in options.cell:  # the most telling cell of every network first
        for network in options.network:
            run_cell(network, cell, RESULTS / options.name)


def run_cell(network: str, cell: str, folder: Path = FOLDER) -> None:
    """Measure a cell that has no file yet."""
    path = folder / f"{cell}-{network}.json"
    if (known := read(folder, cell, network)) is not None:
        where = known["environment"]
        print(
            f"{path.name}: measured at {where['commit'][:8]} on {where['cpu']}; --name starts anew"
        )
        return
    if cell in ("growth", "ablation") and network != "resnet56":
        return  # the smallest network: its time is the most overhead
    bench = bench_of(network)
    started = time.perf_counter()
    found = CELLS[cell](bench)
    content = {
        "network": network,
        "cell": cell,
        "threads": torch.get_num_threads(),
        "seconds": time.perf_counter() - started,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "environment": environment(),
        **found,
    }
    write_json(path, content)
    print(f"{cell} {network}: {content['seconds']:.0f} s", flush=True)


class Bench:
    """One network with its plans, ready for both sides."""

    def __init__(self, network: str) -> None:
        self.name = network
        self.subject = subject(network)
        self.choices = plans(network, self.subject.network, self.subject.trace)
        self.images = search_images(self.subject.data)

    @cached_property
    def judge(self) -> Judge:
        """Of the peers, which are checked before the first is timed."""
        check_peers(self.subject, self.choices[1])
        return Judge(self.subject.network, self.images)

    def engine(
        self, compute: Compute | None = None, *, fold: bool = True, **scoring: Any
    ) -> Engine:
        """A fresh engine that knows nothing."""
        context = Context(
            network=self.subject.network,
            trace=self.subject.trace,
            budget=BUDGET,
            seed=0,
            train=self.subject.data.train,
            search=self.images,
            compute=compute or Compute(threads=torch.get_num_threads()),
        )
        return Engine.open(context, Scoring(**{"images": IMAGES, **scoring}), fold=fold)

    def candidates(self, numbers: Sequence[int]) -> list[Candidate]:
        """Plans as the engine takes them."""
        return [Candidate(self.choices[k]) for k in numbers]

    def peer(
        self, score: Callable[..., list[PeerScore]], numbers: Sequence[int]
    ) -> list[PeerScore]:
        """Plans as a peer takes them."""
        return score(self.subject, self.judge, [self.choices[k] for k in numbers])


@cache
def bench_of(network: str) -> Bench:
    """The one of this process."""
    return Bench(network)


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What comes out, and how long it took, in seconds."""
    begin = time.perf_counter()
    out = work()
    return out, time.perf_counter() - begin


def computes() -> dict[str, Compute]:
    """The same cores twice: all threads on one candidate, or one candidate a core."""
    cores = torch.get_num_threads()
    found = (
        Compute(threads=cores),
        Compute(engine="processes", workers=cores, threads=1),
    )
    return dict(zip(ENGINES, found, strict=True))


def full(bench: Bench) -> Row:
    """All plans on all images, both engines and peer (a) by turns."""
    rows: dict[str, list[Row]] = {"tp-float32": []}
    turns: list[Row] = []
    executions = {}
    with ExitStack() as stack:
        engines = {}
        for name, compute in computes().items():
            engines[name] = engine = stack.enter_context(bench.engine(compute))
            # Nobody pays for what only the first call pays: workers start, libraries load.
            engine.score(bench.candidates(range(PLANS - 2, PLANS)))
            engine.forget()
            executions[name], rows[name] = engine.execution, []
        bench.peer(score_pruned, [0])
        for start in range(0, PLANS, TURN):
            numbers = range(start, min(start + TURN, PLANS))
            peer = bench.peer(score_pruned, numbers)
            rows["tp-float32"] += [_peer(k, s) for k, s in zip(numbers, peer, strict=True)]
            turn: Row = {"plans": len(numbers), "tp-float32": sum(s.seconds for s in peer)}
            for name, engine in engines.items():
                if name == "serial" and len(turns) >= SERIAL_TURNS:
                    continue
                begin = time.perf_counter()
                scored = engine.score(bench.candidates(numbers))
                turn[name] = time.perf_counter() - begin
                rows[name] += [_scored(k, s) for k, s in zip(numbers, scored, strict=True)]
            turns.append(turn)
    return {"executions": executions, "turns": turns, "scores": rows}


def peers(bench: Bench) -> Row:
    """Peers (b) and (c), by turns with both engines on the same plans."""
    rows = []
    with ExitStack() as stack:
        engines = {}
        for name, compute in computes().items():
            engines[name] = engine = stack.enter_context(bench.engine(compute))
            engine.score(bench.candidates(range(PLANS - 2, PLANS)))
        for peer, score, turns in PEER_TURNS:
            bench.peer(score, [0])
            for numbers in turns:
                found = bench.peer(score, numbers)
                turn: Row = {"peer": peer, "plans": list(numbers)}
                turn["peer_s"] = sum(s.seconds for s in found)
                turn["peer_scores"] = [_peer(k, s) for k, s in zip(numbers, found, strict=True)]
                turn["engine_s"] = {}
                for name, engine in engines.items():
                    # A plan that was scored in an earlier turn would cost nothing in this one.
                    engine.forget()
                    _, seconds = timed(lambda e=engine, n=numbers: e.score(bench.candidates(n)))
                    turn["engine_s"][name] = seconds
                rows.append(turn)
        executions = {name: engine.execution for name, engine in engines.items()}
    return {"executions": executions, "turns": rows}


def search(bench: Bench) -> Row:
    """Halving over all plans from nothing, both engines by turns; peer (a) on two plans around each.

    What either side does once before its first plan is timed apart: what the dense network says of
    the images, of the engine also trials of number formats, and two plans, at which workers start.
    """
    runs = []
    for repeat in range(SEARCHES):
        for name, compute in reversed(computes().items()):
            before = bench.peer(score_pruned, [2 * repeat])
            _, peer_open = timed(lambda: Judge(bench.subject.network, bench.images))
            begin = time.perf_counter()
            with bench.engine(compute) as engine:
                engine.score(bench.candidates(range(PLANS - 2, PLANS)))
                opened = time.perf_counter() - begin
                engine.forget()
                scored, seconds = timed(
                    lambda e=engine: e.score(bench.candidates(range(PLANS)), WANTED)
                )
                execution = engine.execution
            after = bench.peer(score_pruned, [2 * repeat + 1])
            order = sorted(range(PLANS), key=lambda k, s=scored: ranked(s).index(s[k]))
            runs.append(
                {
                    "engine": name,
                    "execution": execution,
                    "engine_s": seconds,
                    "open_s": opened,
                    "peer_open_s": peer_open,
                    "peer_s_per_plan": statistics.mean(s.seconds for s in (*before, *after)),
                    "order": order,
                    "images": [s.images for s in scored],
                }
            )
    return {"runs": runs, "wanted": WANTED}


def ablation(bench: Bench) -> Row:
    """Each trick left out: full scores of 8 plans by turns, then what halving and sharing save."""
    base = Compute(threads=torch.get_num_threads(), layout="channels_last", precision="float32")
    variants: dict[str, Compute] = {
        "all": base,
        "layout": base.model_copy(update={"layout": "contiguous"}),
        "batch 128": base.model_copy(update={"batch_size": 128}),
    }
    for precision in _precisions(bench)[1:]:
        variants[precision] = base.model_copy(update={"precision": precision})
    numbers = list(range(1, 1 + TURN))
    seconds: dict[str, list[float]] = {}
    for _ in range(3):
        for name, compute in variants.items():
            with bench.engine(compute) as engine:
                _, took = timed(lambda e=engine: e.score(bench.candidates(numbers)))
            seconds.setdefault(name, []).append(took)
        with bench.engine(base, fold=False) as engine:
            _, took = timed(lambda e=engine: e.score(bench.candidates(numbers)))
        seconds.setdefault("folding", []).append(took)
    mutants = _mutants(bench, 16)
    for name, megabytes in (("sharing", 256), ("no sharing", 0)):
        compute = base.model_copy(update={"memory_mb": megabytes})
        with bench.engine(compute) as engine:
            _, took = timed(lambda e=engine: e.score(mutants))
        seconds.setdefault(name, []).append(took)
    halving = {}
    for quantity in ("kl", "loss", "accuracy"):
        with bench.engine(base, fitness=quantity) as engine:
            scored, took = timed(lambda e=engine: e.score(bench.candidates(range(PLANS)), WANTED))
        order = sorted(range(PLANS), key=lambda k, s=scored: ranked(s).index(s[k]))
        halving[quantity] = {
            "engine_s": took,
            "images": sum(s.images for s in scored),
            "order": order,
        }
    return {
        "side_seconds": seconds,
        "plans": len(numbers),
        "mutants": len(mutants),
        "halving": halving,
    }


def growth(bench: Bench) -> Row:
    """Candidates a second, by images in this process, then by engine and workers; lines by turns."""
    numbers = list(range(1, 1 + TURN))
    pinned: Row = {"layout": "channels_last", "precision": _precisions(bench)[-1]}
    lines: list[Row] = [
        {"engine": "serial", "workers": 1, "threads": torch.get_num_threads(), "images": images}
        for images in (128, 512, IMAGES)
    ]
    lines += [
        {"engine": name, "workers": workers, "threads": 1, "images": IMAGES}
        for name in ("serial", "processes", "ray")
        for workers in ((1,) if name == "serial" else (1, 2))
    ]
    seconds: list[list[float]] = [[] for _ in lines]
    for _ in range(GROWTH_TURNS):
        for line, found in zip(lines, seconds, strict=True):
            settings = {k: v for k, v in line.items() if k != "images"}
            compute = Compute.model_validate(settings | pinned)
            with bench.engine(compute, images=line["images"]) as engine:
                # A worker builds its network at its first task: that is not a rate.
                engine.score(bench.candidates([62, 63]))
                _, took = timed(lambda e=engine: e.score(bench.candidates(numbers)))
            found.append(took)
    rates = [
        {**line, "plans": len(numbers), "seconds": statistics.median(found), "turns": found}
        for line, found in zip(lines, seconds, strict=True)
    ]
    return {"rates": rates, "pinned": pinned}


def _precisions(bench: Bench) -> list[str]:
    """Number formats that this machine computes in, from the slowest to the fastest."""
    found = ["float32"]
    if has_bfloat16(torch.device("cpu")):
        found.append("bfloat16")
    if bits := weight_bits(bench.subject.network):
        found.append(f"int{bits}")
    return found


def memory(bench: Bench) -> Row:
    """Peak resident memory in a process of its own: dense evaluation, and the engine."""
    found = {}
    for side in ("dense", "engine"):
        done = subprocess.run(
            [sys.executable, __file__, "peak", "--network", bench.name, "--side", side],
            capture_output=True,
            text=True,
            check=True,
        )
        found[side] = json.loads(done.stdout.splitlines()[-1])
    return {"peak": found}


def peak(network: str, side: str) -> Row:
    """Megabytes (10^6 bytes) of this process before one side's work, and at its peak. Linux alone."""
    bench = bench_of(network)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the peak of loading
    before = _most_resident_mb()
    if side == "dense":
        evaluate(bench.subject.network, bench.images, batch_size=128)
    else:
        with bench.engine() as engine:
            engine.score([*bench.candidates(range(2)), *_mutants(bench, 4)])
    return {"before_mb": round(before, 1), "peak_mb": round(_most_resident_mb(), 1)}


def _most_resident_mb() -> float:
    status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in status if line.startswith("VmHWM")).split()[1]) * 1024 / 1e6


def _mutants(bench: Bench, count: int) -> list[Candidate]:
    """Children of one plan: each has another plan's widths from some group on."""
    generator = np.random.default_rng(0)
    names = [group.name for group in bench.subject.trace.cuttable]
    parent = bench.choices[1]
    found = []
    for k in range(count):
        at = int(generator.integers(len(names) // 3, len(names)))
        other = bench.choices[2 + k]
        child: Choice = {n: (parent if i < at else other)[n] for i, n in enumerate(names)}
        found.append(Candidate(child))
    return found


def _scored(plan: int, scored: Scored) -> Row:
    return {"plan": plan, "kl": scored.kl, "loss": scored.loss, "top1": scored.top1}


def _peer(plan: int, score: PeerScore) -> Row:
    return {
        "plan": plan,
        **score.means,
        "prune_s": score.prune_seconds,
        "recalibrate_s": score.recalibrate_seconds,
        "evaluate_s": score.evaluate_seconds,
    }


CELLS: dict[str, Callable[[Bench], Row]] = {
    "full": full,
    "search": search,
    "peers": peers,
    "memory": memory,
    "growth": growth,
    "ablation": ablation,
}


if __name__ == "__main__":
    main()
