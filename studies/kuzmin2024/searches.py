"""Seconds of the search of round 2, the longest, on a machine that does nothing else.

    python studies/kuzmin2024/searches.py run              # the queue; killed, it goes on
    python studies/kuzmin2024/searches.py run --network vgg16_bn --seed 0
    python studies/kuzmin2024/searches.py table            # searches.json, from the cells

The seconds in the study's cells shared their cores with other work, and stop where a machine is too slow
for a queue's trainings. A search needs no training before it where it starts from the dense network: what
the study's chains search first is searched again, timed, and thrown away. A cell has one search; cells of
processors with and without int8 dot products (VNNI) stand in folders of their own.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import paper
import study
from ablation import Bench
from notes import scored_in

from prunus.method import Budget, make_method

CELLS = study.HERE / "results" / "searches"
SUMMARY = study.HERE / "results" / "searches.json"
METHODS = ("genetic", "random-search")
ROUND = 2  # from the dense network


def main() -> None:
    """Run the queue, or sum its cells up."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("command", choices=["run", "table"])
    parser.add_argument(
        "--network", choices=list(study.DENSE), nargs="+", default=list(study.DENSE)
    )
    parser.add_argument("--method", choices=METHODS, nargs="+", default=list(METHODS))
    parser.add_argument("--seed", type=int, nargs="+", default=list(study.SEEDS))
    parser.add_argument("--scale", choices=list(study.SCALES), default="small")
    options = parser.parse_args()
    if options.command == "table":
        write_summary()
        return
    benches: dict[str, Bench] = {}
    for seed in options.seed:
        for method in options.method:
            for network in options.network:
                path = cell(options.scale, network, method, seed)
                if not path.exists():
                    bench = benches.setdefault(network, Bench(network))
                    path.parent.mkdir(parents=True, exist_ok=True)
                    study.write(path, searched(bench, options.scale, method, seed))


def cell(scale: str, network: str, method: str, seed: int) -> Path:
    """File of one search on this machine."""
    instructions = study.environment_of("cpu")["instructions"]
    kind = "vnni" if "avx512_vnni" in instructions else "no-vnni"
    folder = CELLS / f"{study.machine_of('cpu')}-{kind}"
    return folder / f"{scale}-{network}-{method}-seed{seed}.json"


def searched(bench: Bench, scale: str, method: str, seed: int) -> dict[str, Any]:
    """One search, as the study's chains begin, and its seconds."""
    name, choices = study.method_and_options(method, study.SCALES[scale])
    budget = Budget(quantity="params", value=paper.PARAMS[bench.name][ROUND - 1])
    context = bench.context(budget, seed, bench.data.search)
    begin = time.perf_counter()
    decision = make_method(name, choices).decide(context)
    seconds = time.perf_counter() - begin
    print(f"{bench.name} {method} seed {seed}: {seconds:.0f} s", flush=True)
    return {
        "network": bench.name,
        "method": method,
        "seed": seed,
        "round": ROUND,
        "scale": scale,
        "options": choices,
        "seconds": seconds,
        "evaluations": decision.evaluations,
        "scored_in": scored_in(decision.notes),
        "notes": list(decision.notes),
        "workers": context.compute.workers,
        "environment": bench.environment,
    }


def write_summary() -> None:
    """``searches.json``: one line a network, scale, kind of machine and method."""
    found: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for path in sorted(CELLS.glob("*/*.json")):
        row = study.read(path)
        key = (row["network"], row["scale"], path.parent.name, row["method"])
        found.setdefault(key, []).append(row)
    rows = []
    for (network, scale, machine, method), cells in sorted(found.items()):
        seconds = [row["seconds"] for row in cells]
        line: dict[str, Any] = {"network": network, "scale": scale, "machine": machine}
        line |= {"method": method, "round": cells[0]["round"], "seeds": len(cells)}
        line |= {"cpus": sorted({row["environment"]["cpu"] for row in cells})}
        line["evaluations"] = round(statistics.mean(row["evaluations"] for row in cells))
        line["scored_in"] = ", ".join(dict.fromkeys(row["scored_in"] for row in cells))
        line["seconds_mean"] = round(statistics.mean(seconds), 1)
        line["seconds_std"] = round(statistics.stdev(seconds), 1) if len(seconds) > 1 else None
        line["seconds_most"] = round(max(seconds), 1)
        line["paper_seconds"] = paper.SECONDS[network][cells[0]["round"] - 1]
        rows.append(line)
    study.write(SUMMARY, rows)


if __name__ == "__main__":
    main()
