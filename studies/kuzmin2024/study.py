"""Genetic pruning of VGG16 and ResNet-18 on CIFAR-10 in four rounds, beside honest nulls (paper K).

    python studies/kuzmin2024/study.py run                 # the queue; killed, it goes on
    python studies/kuzmin2024/study.py run --network vgg16_bn --method genetic --seed 0
    python studies/kuzmin2024/study.py run --scale full --device cuda
    python studies/kuzmin2024/study.py table               # summary.json, from the cells

A chain is one method with one seed on one network: from the shared checkpoint to the parameters of
Table 2, round by round, each going on from the last with fine-tuning between. It is a recipe with
``repeat``; its run folder (``runs/kuzmin2024``, not committed) makes it resumable. A cell is one round of a chain: its
network is looked at on the test split once, after its fine-tuning; decisions see the search split
alone. Cells of one kind of machine share a folder, so that a network's methods are compared on one:
the one with the most cells. ``scratch`` trains one narrow network per round from fresh weights, for the dense training's
epochs plus all the fine-tuning's. A queue that is cut short is valid: the tables say what is missing.
"""

import argparse
import json
import os
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import paper
import torch
from methods import METHODS
from torch import nn

import prunus
from prunus.compute import Compute
from prunus.data import DataSplits, load_data
from prunus.meter import measure_cost
from prunus.recipe import Recipe, make_recipe
from prunus.records import Environment, Source
from prunus.train import evaluate
from prunus.zoo import load_source, normalization

HERE = Path(__file__).parent
CELLS = HERE / "results" / "cells"
SUMMARY = HERE / "results" / "summary.json"
ROOT = HERE.parents[1]
RUNS = ROOT / "runs" / "kuzmin2024"
CUTS = paper.ROUNDS[1:]

DENSE = {
    "vgg16_bn": Source(model="vgg16_bn", weights="vgg16_bn-cifar10.safetensors"),
    "resnet18": Source(model="resnet18", weights="resnet18-cifar10.safetensors"),
}
DENSE_EPOCHS = {"vgg16_bn": 12, "resnet18": 10}  # of the shared checkpoints


@dataclass(frozen=True)
class Scale:
    """What fits a machine."""

    generations: int
    images: int
    epochs: int


SCALES = {"small": Scale(10, 1000, 5), "full": Scale(30, 5000, 40)}
POPULATION, PARENTS, P_C, P_MUT = 30, 5, 0.6, 0.6  # the paper's
SCRATCH_ROUNDS = (5, 3, 4, 2)
SEEDS = (0, 1, 2)


def main() -> None:
    """Run the queue, or sum its cells up."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("command", choices=["run", "table"])
    parser.add_argument("--network", choices=list(DENSE), nargs="+", default=list(DENSE))
    parser.add_argument("--method", choices=METHODS, nargs="+", default=list(METHODS))
    parser.add_argument("--seed", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--scale", choices=list(SCALES), default="small")
    parser.add_argument(
        "--shard", type=shard_of, default="1/1", help="2/8: the second of eight processes' chains"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--runs", type=Path, default=RUNS, help="folder of the run folders")
    parser.add_argument(
        "--machine", help="folder in results/cells/ (default: such as two-cores, gpu)"
    )
    options = parser.parse_args()
    options.machine = options.machine or machine_of(options.device)
    if options.command == "run":
        for network in options.network:
            look_at_dense(network, options.device)
        shard, shards = options.shard
        queue = list(_queue(options))
        for chain in queue[shard - 1 :: shards]:
            chain.run(options.device, options.runs)
    else:  # not after a queue: a tracked file that it changed would mark the cells of the next dirty
        write_summary()


def shard_of(text: str) -> tuple[int, int]:
    """``2/8`` as numbers, the first of which is at least 1 and at most the second."""
    first, _, last = text.partition("/")
    if not (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        raise argparse.ArgumentTypeError(f"'{text}' is no shard: give such as 2/8, from 1/8 to 8/8")
    return int(first), int(last)


def _queue(options: argparse.Namespace) -> "Iterator[Chain]":
    """Chains in order of priority: a seed of everything, then the next seed."""
    for seed in options.seed:
        for method in options.method:
            for network in options.network:
                what = network, method, seed, options.scale
                if method == "scratch":
                    for k in SCRATCH_ROUNDS:
                        yield Chain(*what, rounds=(k,), machine=options.machine)
                else:
                    yield Chain(*what, rounds=CUTS, machine=options.machine)


@dataclass(frozen=True)
class Chain:
    """One method with one seed on one network, through its rounds."""

    network: str
    method: str
    seed: int
    scale: str
    rounds: tuple[int, ...]
    machine: str = "two-cores"

    @property
    def name(self) -> str:
        """Of its run folder: one a kind of machine, whose chains do not go on from each other's rounds."""
        text = f"{self.machine}-{self.scale}-{self.network}-{self.method}-seed{self.seed}"
        return f"{text}-round{self.rounds[0]}" if self.method == "scratch" else text

    def cell(self, number: int) -> Path:
        """File of one round."""
        name = f"{self.scale}-{self.network}-{self.method}-seed{self.seed}-round{number}.json"
        return CELLS / self.machine / name

    def shares(self, dense_params: int) -> list[float]:
        """What stays of the dense network after each round, of what the target counts."""
        return [paper.PARAMS[self.network][k - 1] / dense_params for k in self.rounds]

    def target(self, share: float) -> str:
        """Of a cut."""
        return f"params={share!r}"

    def recipe(self, dense_params: int) -> Recipe:
        """Rounds of cutting, batch-norm statistics and fine-tuning on the labels, of which the paper says nothing."""
        scale, last = SCALES[self.scale], self.rounds[-1]
        shares = self.shares(dense_params)
        train: dict[str, Any] = {
            "epochs": scale.epochs,
            "lr": 0.05,
            "layout": "channels_last",  # pinned: a trial's noise would part the seeds
            "scratch_epochs": DENSE_EPOCHS[self.network] + scale.epochs * (last - 1),
            "scratch_lr": 0.1,
        }
        name, choices = method_and_options(self.method, scale)
        steps: list[Any] = [
            {"prune": {"method": name, "target": self.target(shares[-1]), "options": choices}},
            {"recalibrate": {"images": 1024, "augment": False}},  # as in its first cells
            {"train": train},
        ]
        if len(self.rounds) > 1:
            schedule = {"times": len(shares), "schedule": tuple(shares), "steps": steps}
            steps = [{"repeat": schedule}]
        return make_recipe({"name": self.method, "seed": self.seed, "steps": steps})

    def run(self, device: str, runs: Path) -> None:
        """Do what is not done, then write the cells of all finished rounds, also after Ctrl-C."""
        if all(self.cell(k).exists() for k in self.rounds):
            return
        data = data_of(self.network)
        started = environment_of(device)
        folder = runs / self.name
        print(f"{self.name}: begins or goes on in {folder}", flush=True)
        dense = load_source(DENSE[self.network])
        recipe = self.recipe(sum(p.numel() for p in dense.parameters()))
        try:
            prunus.compress(
                DENSE[self.network],
                recipe,
                data,
                out=folder,
                resume=True,
                device=device,
                latency=None,
                compute=compute_of(device),
            )
        finally:
            self._collect(folder, data, device, started)

    def _collect(
        self, folder: Path, data: DataSplits, device: str, started: dict[str, Any]
    ) -> None:
        for position, number in enumerate(self.rounds):
            index = 3 * position + 3
            outcome = folder / "steps" / f"{index:02d}-train.json"
            if outcome.exists() and not self.cell(number).exists():
                steps = [
                    read(folder / "steps" / f"{index + k:02d}-{name}.json")
                    for k, name in ((-2, "prune"), (-1, "recalibrate"), (0, "train"))
                ]
                network = prunus.load(folder / "steps" / f"{index:02d}-train")
                row = self._row(number, steps, network, data, device)
                row["precision"] = read(folder / "run.json")["execution"]["precision"]
                # Where the round was done: what collects it may be another machine, or commit.
                row["environment"] = steps[-1].get("environment") or started
                done = datetime.fromtimestamp(outcome.stat().st_mtime, UTC)
                row["finished"] = done.isoformat(timespec="seconds")
                self.cell(number).parent.mkdir(parents=True, exist_ok=True)
                write(self.cell(number), row)
                print(f"{self.name} round {number}: {row['top1']:.4f}", flush=True)

    def _row(
        self,
        number: int,
        steps: list[dict[str, Any]],
        network: nn.Module,
        data: DataSplits,
        device: str,
    ) -> dict[str, Any]:
        """A cell; the test split is read once, unless the run's own record has read it already."""
        cut, _, train = steps
        cost = measure_cost(network, next(iter(data.train.batches(1)))[0])
        look = train.get("look")
        if look is not None:
            top1, samples = look["score"]["value"], look["score"]["samples"]
        else:
            seen = evaluate(network, data.test, device=device)
            top1, samples = seen.top1, seen.samples
        seconds: dict[str, float] = {}
        for step in steps:
            for name, value in step["seconds"].items():
                seconds[name] = seconds.get(name, 0.0) + value
        return {
            "network": self.network,
            "method": self.method,
            "seed": self.seed,
            "round": number,
            "scale": self.scale,
            "settings": {**SCALES[self.scale].__dict__, "population": POPULATION},
            "params": cost.params,
            "nonzero_params": cost.nonzero_params,
            "macs": cost.macs,
            "effective_macs": cost.effective_macs,
            "size_bytes": cost.size_bytes,
            "top1": top1,
            "test_samples": samples,
            "test_evaluations": 1,
            "search_top1": train["history"][-1]["values"].get("search_top1"),
            "seconds": seconds,
            "certificate": cut["certificate"],
            "widths": [m.out_channels for m in network.modules() if isinstance(m, nn.Conv2d)],
            "notes": cut["notes"],
            "training": [
                {"seconds": p["seconds"], **p["values"]}
                for p in train["history"]
                if "search_top1" in p["values"]
            ],
            "search_seen_in_pretraining": self.method != "scratch",
        }


def method_and_options(method: str, scale: Scale) -> tuple[str, dict[str, Any]]:
    """The registered method behind a row's name, with the options of the study."""
    search = {"images": scale.images, "generations": scale.generations}
    genetic = {"population": POPULATION, "parents": PARENTS, "crossover": P_C, "mutation": P_MUT}
    children = (POPULATION - PARENTS) * scale.generations
    table: dict[str, tuple[str, dict[str, Any]]] = {
        "genetic": ("genetic", {**search, **genetic, "mode": "guided"}),
        "genetic-paper": ("genetic", {**search, **genetic, "mode": "paper"}),
        "genetic-paper-neurons": (
            "genetic",
            {**search, **genetic, "mode": "paper", "connections": 1.0},
        ),
        "genetic-kernels": ("genetic", {**search, **genetic, "mode": "guided", "connections": 0.9}),
        # As many evaluations as a genetic search has at most.
        "random-search": (
            "random-search",
            {"images": scale.images, "evaluations": POPULATION + children},
        ),
    }
    return table.get(method, (method, {}))


def look_at_dense(network: str, device: str) -> None:
    """Round 1, the shared checkpoint: one look at the test split, unless there is a record of it."""
    file = CELLS / f"dense-{network}.json"
    if file.exists():
        return
    started, data, dense = environment_of(device), data_of(network), load_source(DENSE[network])
    cost = measure_cost(dense, next(iter(data.train.batches(1)))[0])
    seen = evaluate(dense, data.test, device=device)
    file.parent.mkdir(parents=True, exist_ok=True)
    row: dict[str, Any] = {"params": cost.params, "macs": cost.macs}
    row["effective_macs"] = cost.effective_macs
    row |= {"network": network, "top1": seen.top1, "test_samples": seen.samples}
    write(file, row | {"test_evaluations": 1, "environment": started})


def write_summary() -> None:
    """``summary.json`` from the cells: one line a network, round and method, at the fullest scale."""
    found: dict[tuple[str, int, str], list[dict[str, Any]]] = {}
    for network in DENSE:
        for scale in SCALES:  # the fuller one replaces the smaller
            mine: dict[tuple[str, int, str], list[dict[str, Any]]] = {}
            for path in _fullest(f"{scale}-{network}-*.json"):
                row = {**read(path), "machine": path.parent.name}
                mine.setdefault((row["network"], row["round"], row["method"]), []).append(row)
            found |= mine
    order = {name: k for k, name in enumerate((*DENSE, *METHODS))}
    rows = [_dense_row(path) for path in sorted(CELLS.glob("dense-*.json"))]
    rows += [
        _summary(key, cells)
        for key, cells in sorted(
            found.items(), key=lambda item: (order[item[0][0]], item[0][1], order[item[0][2]])
        )
    ]
    write(SUMMARY, rows)


def _fullest(pattern: str) -> list[Path]:
    """Files of cells of one kind of machine: the one that has the most."""
    folders = sorted(path for path in CELLS.iterdir() if path.is_dir())
    return max((sorted(f.glob(pattern)) for f in folders), key=len, default=[])


def _dense_row(path: Path) -> dict[str, Any]:
    cell = read(path)
    network = cell["network"]
    return {
        "network": network,
        "round": 1,
        "method": "dense",
        "scale": None,
        "machine": None,
        **{name: cell[name] for name in ("params", "macs", "effective_macs")},
        "top1_mean": round(cell["top1"], 5),
        "top1_std": None,
        "seeds": 1,
        "paper_params": paper.PARAMS[network][0],
        "paper_top1": paper.TOP1[network][0],
    }


def _summary(key: tuple[str, int, str], cells: list[dict[str, Any]]) -> dict[str, Any]:
    network, number, method = key
    top1 = [cell["top1"] for cell in cells]
    return {
        "network": network,
        "round": number,
        "method": method,
        "scale": cells[0]["scale"],
        "machine": cells[0]["machine"],
        "params": round(statistics.mean(c["params"] for c in cells)),
        "macs": round(statistics.mean(c["macs"] for c in cells)),
        "effective_macs": round(statistics.mean(c["effective_macs"] for c in cells)),
        "top1_mean": round(statistics.mean(top1), 5),
        "top1_std": round(statistics.stdev(top1), 5) if len(top1) > 1 else None,
        "seeds": len(top1),
        "seconds": round(statistics.mean(sum(c["seconds"].values()) for c in cells), 1),
        "search_seconds": round(statistics.mean(c["seconds"]["search"] for c in cells), 1),
        "paper_params": paper.PARAMS[network][number - 1],
        "paper_top1": paper.TOP1[network][number - 1],
        "paper_seconds": paper.SECONDS[network][number - 1],
    }


def compute_of(device: str) -> Compute:
    """A worker for every core; on a GPU one, whose batches are large."""
    cores = torch.get_num_threads()
    if device != "cpu":
        return Compute(batch_size=256, memory_mb=4096)
    return Compute(engine="processes", workers=cores, threads=1) if cores > 1 else Compute()


def machine_of(device: str) -> str:
    """The kind of machine that cells are of: networks of one kind are compared with each other."""
    if device != "cpu":
        return "gpu"
    cores = os.cpu_count() or 1
    return "two-cores" if cores == 2 else f"{cores}-cores"


def data_of(network: str) -> DataSplits:
    """CIFAR-10 in three splits, normalized as the network's checkpoint was trained."""
    mean, std = normalization(network)
    return load_data("cifar10", mean=mean, std=std, seed=0)


def environment_of(device: str) -> dict[str, Any]:
    """Machine, versions and commit, now."""
    gpu = torch.cuda.get_device_name(device) if device.startswith("cuda") else None
    return Environment.capture(torch.get_num_threads(), gpu).model_dump()


def read(path: Path) -> dict[str, Any]:
    """A record."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def write(path: Path, content: Any) -> None:
    """Write a record in one step."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    part.replace(path)


if __name__ == "__main__":
    main()
