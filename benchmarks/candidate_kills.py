"""A small search killed by SIGKILL at random moments, resumed, and compared with one left alone.

    python benchmarks/candidate_kills.py --kills 50

Every run is killed once at a random moment of its search, every third one again after it was resumed,
then resumed to its end. A result is logged when it is computed, before it is stored: what the disk
holds of a dead run and is computed later was computed twice; what was computed and is not on the disk
was lost in flight.
"""

import argparse
import multiprocessing
import random
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from record import write_results

from prunus.candidates.store import STORE_FILE
from prunus.candidates.task import Result, Task
from prunus.candidates.workplace import Workplace
from prunus.compute import Compute
from prunus.data import load_data
from prunus.recipe import Prune, compress
from prunus.records import RunRecord, Source
from prunus.train import TrainConfig, fit
from prunus.zoo import build

EPOCHS = 10
IMAGES = 288
LONGEST_DELAY = 0.1  # seconds between a result and the kill: about two results
AGAIN = 3  # every so many runs are killed twice
PATIENCE = 300  # seconds in which a life must come to its end or to the moment of its death


# A server that has imported everything forks the lives: each is a process of its own.
LIVES = multiprocessing.get_context("forkserver")
LIVES.set_forkserver_preload(["prunus.recipe", "prunus.candidates.workplace"])


class Search(NamedTuple):
    """What is run, in every life."""

    weights: Path
    evaluations: int
    compute: Compute


class Range(NamedTuple):
    """Images of one candidate that a result is about."""

    key: str
    start: int
    stop: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50, help="runs that are killed")
    parser.add_argument("--evaluations", type=int, default=80, help="proposals of the search")
    parser.add_argument("--engine", default="serial", help="serial, processes or ray")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    args = parser.parse_args()
    torch.set_num_threads(1)
    compute = Compute(
        engine=args.engine,
        workers=args.workers,
        threads=1,
        precision="float32",
        layout="contiguous",
    )
    draw = random.Random(args.seed)
    with tempfile.TemporaryDirectory(prefix="prunus-kills-") as place:
        search = Search(trained(Path(place)), args.evaluations, compute)
        whole = Path(place) / "whole"
        let_live(search, whole)
        total = len(computed(whole))
        print(f"left alone: {total} results, plan {facts(whole)['plan']}", flush=True)
        rows = []
        for number in range(args.kills):
            out = Path(place) / f"run-{number}"
            row = one_run(search, out, total, draw, deaths=2 if number % AGAIN == AGAIN - 1 else 1)
            row |= {"same_as_alone": facts(out) == facts(whole)}
            rows.append({"run": number, **row})
            print(rows[-1], flush=True)
            shutil.rmtree(out)
    same = sum(row["same_as_alone"] for row in rows)
    twice = sum(row["computed_twice"] for row in rows)
    forgotten = sum(row["forgotten"] for row in rows)
    deaths = sum(len(row["killed_after_results"]) for row in rows)
    write_results(
        "candidates/kills",
        rows,
        network="digits_cnn",
        evaluations=args.evaluations,
        images=IMAGES,
        results_of_a_run=total,
        engine=args.engine,
        workers=args.workers,
        seed=args.seed,
        runs=len(rows),
        kills=deaths,
        same_as_alone=same,
        computed_twice=twice,
        forgotten=forgotten,
    )
    print(f"{deaths} kills: {same} of {len(rows)} runs end as the one left alone; {twice} twice")
    if same < len(rows) or twice or forgotten:
        raise SystemExit(1)


def trained(place: Path) -> Path:
    """Weights of a network that is worth a search."""
    network, data = build("digits_cnn"), load_data("digits")
    config = TrainConfig(
        epochs=EPOCHS, lr=0.1, batch_size=64, precision="float32", layout="contiguous"
    )
    fit(network, data.train, data.search, config, seed=0)
    path = place / "dense.pt"
    torch.save(network.state_dict(), path)
    return path


def one_run(
    search: Search, out: Path, total: int, draw: random.Random, deaths: int
) -> dict[str, Any]:
    """Kill a run so many times, resume it to the end, and count."""
    begin = time.perf_counter()
    moments: list[int] = []
    lost, twice, forgotten = [], 0, 0
    before: set[Range] = set()
    while True:
        last = len(moments) == deaths
        log_start = len(computed(out))
        if last:
            let_live(search, out)
        else:
            moment = draw.randrange(max(1, total - len(before)))
            killed = let_die(search, out, log_start + moment, draw.uniform(0, LONGEST_DELAY))
            if not killed:  # the delay outlived the run: nothing is left to be killed
                shutil.rmtree(out)
                moments, lost, twice, forgotten, before = [], [], 0, 0, set()
                continue
        now, mine = stored(out), computed(out)[log_start:]
        twice += sum(any(overlap(r, known) for known in before) for r in mine)
        forgotten += len(before - now)
        if last:
            break
        moments.append(len(mine))
        lost.append(len(set(mine) - now))
        before = now
    return {
        "killed_after_results": moments,
        "lost_in_flight": lost,
        "computed_twice": twice,
        "forgotten": forgotten,
        "results": len(now),
        "seconds": round(time.perf_counter() - begin, 1),
    }


def let_live(search: Search, out: Path) -> None:
    """Run, or go on, to the end."""
    life = begin_life(search, out)
    life.join(PATIENCE)
    if life.exitcode != 0:
        life.kill()
        raise RuntimeError(f"a life that was left alone ended with {life.exitcode}")


def let_die(search: Search, out: Path, results: int, delay: float) -> bool:
    """Run, or go on, and kill so many seconds after so many results; whether it still lived."""
    life = begin_life(search, out)
    until = time.perf_counter() + PATIENCE
    store = store_file(out)
    while life.is_alive() and not (store.exists() and len(computed(out)) >= results):
        if time.perf_counter() > until:
            life.kill()
            raise RuntimeError(f"no {results} results within {PATIENCE} s")
        time.sleep(0.01)
    time.sleep(delay)
    life.kill()
    life.join()
    return life.exitcode not in (0, 1)


def begin_life(search: Search, out: Path) -> Any:
    life = LIVES.Process(target=live, args=(search, out))
    life.start()
    return life


def live(search: Search, out: Path) -> None:
    """What happens in the process that is killed."""
    torch.set_num_threads(1)
    honest = Workplace.run

    def run(self: Workplace, tasks: Sequence[Task]) -> Iterator[Result]:
        for result in honest(self, tasks):
            with log_file(out).open("a", encoding="utf-8") as file:
                file.write(f"{result.key} {result.start} {result.stop}\n")
            yield result

    Workplace.run = run  # type: ignore[method-assign]
    options = {"evaluations": search.evaluations, "images": IMAGES, "jitter": 1.0}
    compress(
        Source(model="digits_cnn", weights=str(search.weights)),
        [Prune(method="random-search", target="macs=0.4", options=options)],
        "digits",
        out=out,
        resume=True,
        latency=None,
        compute=search.compute,
    )


def facts(out: Path) -> dict[str, Any]:
    """What must not depend on how often a run was killed."""
    record = RunRecord.load(out / "record.json")
    history = [(point.step, point.values) for point in record.history]
    return {"plan": record.plans[-1], "widths": record.widths, "history": history}


def store_file(out: Path) -> Path:
    return out / "steps" / "01-prune.search" / STORE_FILE


def log_file(out: Path) -> Path:
    return out.with_suffix(".log")


def computed(out: Path) -> list[Range]:
    """Results of all lives of a run, in order, a half-written line left out."""
    log = log_file(out)
    text = log.read_text(encoding="utf-8") if log.exists() else ""
    lines = [line.split() for line in text.split("\n")[:-1]]
    return [Range(key, int(start), int(stop)) for key, start, stop in lines]


def stored(out: Path) -> set[Range]:
    """What the disk holds of a run that is dead."""
    connection = sqlite3.connect(store_file(out))
    try:
        tables = connection.execute("SELECT name FROM sqlite_master WHERE name = 'results'")
        if tables.fetchone() is None:
            return set()
        rows = connection.execute("SELECT key, start, stop FROM results").fetchall()
        return {Range(*row) for row in rows}
    finally:
        connection.close()


def overlap(a: Range, b: Range) -> bool:
    return a.key == b.key and a.start < b.stop and b.start < a.stop


if __name__ == "__main__":
    main()
