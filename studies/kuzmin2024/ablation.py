"""What each part of the genetic search adds, before any fine-tuning.

    python studies/kuzmin2024/ablation.py run              # the queue; killed, it goes on
    python studies/kuzmin2024/ablation.py run --network vgg16_bn --variant guided paper --seed 0
    python studies/kuzmin2024/ablation.py run --equal macs # a cut to equal executed MACs
    python studies/kuzmin2024/ablation.py table            # of both

One cut from the dense network to the parameters of round 3, with at most as many evaluations for every
variant: parameters are equal then, executed MACs are not. Or one to the share of executed MACs that
``equal_macs.py`` cuts to. The winner is cut and judged on the part of the search split that no search saw, by its
batch-norm statistics measured anew: KL to the dense network, top-1. Nothing looks at the test split.
"""

import argparse
import copy
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import paper
import torch
from equal_macs import SHARE
from notes import scored_in
from study import (
    DENSE,
    HERE,
    PARENTS,
    POPULATION,
    SCALES,
    compute_of,
    data_of,
    environment_of,
    read,
    write,
)
from torch.nn.functional import log_softmax

import prunus.prune  # noqa: F401  registers the methods
from prunus.data import DataSplits, SearchSplit
from prunus.graph import Trace, certify, cut, trace
from prunus.method import Budget, Context, make_method
from prunus.train import recalibrate_batch_norm_
from prunus.zoo import load_source

RESULTS = HERE / "results"
EQUAL = {"params": "ablation", "macs": "ablation_macs"}
"""What all variants have as much of, and the folder of its cells, which has the name of their summary."""
ROUND = 3  # whose parameters are left
SEARCHED = SCALES["small"].images
UNSEEN = 2000
SCORED_IN: dict[str, Any] = {"precision": "int8", "layout": "channels_last"}
"""Pinned, for a processor with VNNI: what a trial picks would part the seeds' pairs."""

_BASE: dict[str, Any] = {
    "population": POPULATION,
    "parents": PARENTS,
    "generations": SCALES["small"].generations,
    "images": SEARCHED,
}
EVALUATIONS = POPULATION + (POPULATION - PARENTS) * SCALES["small"].generations
_NEURONS = {**_BASE, "mode": "paper", "connections": 1.0, "fitness": "kl"}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    # Each of the first six adds one thing to the one before it.
    "paper": ("genetic", {**_BASE, "mode": "paper"}),
    "paper, by KL": ("genetic", {**_BASE, "mode": "paper", "fitness": "kl"}),
    "paper, neurons alone, by KL": ("genetic", _NEURONS),
    "+ importance sampling": ("genetic", {**_NEURONS, "sampling": "importance"}),
    "+ layers mixed one by one": (
        "genetic",
        {**_NEURONS, "sampling": "importance", "mixing": "uniform"},
    ),
    "guided": ("genetic", _BASE),  # and shares that move between layers
    "guided, no generations": ("genetic", {**_BASE, "population": EVALUATIONS, "generations": 0}),
    "random-search": ("random-search", {"images": SEARCHED, "evaluations": EVALUATIONS}),
    "guided by taylor": ("genetic", {**_BASE, "importance": "taylor"}),
    "guided, most important units": ("genetic", {**_BASE, "temperature": 0.0, "swaps": 0.0}),
    "guided, 90 % of kernels": ("genetic", {**_BASE, "connections": 0.9}),
    "l2": ("l2", {}),
    "taylor": ("taylor", {}),
}
STEPS = list(VARIANTS)[: list(VARIANTS).index("guided") + 1]
AGAINST = {"paper": None, **dict(zip(STEPS[1:], STEPS, strict=False))}
"""What a variant is set against: each step against the one before it; all others against ``guided``."""


def main() -> None:
    """Run the queue, or sum it up."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("command", choices=["run", "table"])
    parser.add_argument("--network", choices=list(DENSE), nargs="+", default=["vgg16_bn"])
    parser.add_argument("--variant", choices=list(VARIANTS), nargs="+", default=list(VARIANTS))
    parser.add_argument("--seed", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--equal", choices=list(EQUAL), default="params")
    options = parser.parse_args()
    if options.command == "run":
        for network in options.network:
            bench = None
            for seed in options.seed:
                for variant in options.variant:
                    path = cell_file(network, variant, seed, options.equal)
                    if path.exists():
                        continue
                    bench = bench or Bench(network)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    write(path, bench.cell(variant, seed, options.equal))
    else:  # as in the study: a queue changes no file that is tracked
        for name in EQUAL.values():
            write_summary(name)


def cell_file(network: str, variant: str, seed: int, equal: str) -> Path:
    """File of one variant with one seed."""
    return RESULTS / EQUAL[equal] / f"{network}-{_slug(variant)}-seed{seed}.json"


def budget_of(network: str, equal: str) -> Budget:
    """What all variants are cut to."""
    if equal == "params":
        return Budget(quantity="params", value=paper.PARAMS[network][ROUND - 1])
    return Budget(quantity="macs", value=SHARE)


class Bench:
    """A dense network with its data and its trace."""

    def __init__(self, network: str) -> None:
        self.name = network
        self.data: DataSplits = data_of(network)
        self.dense = load_source(DENSE[network]).eval()
        self.example = next(iter(self.data.train.batches(8)))[0]
        self.trace: Trace = trace(self.dense, self.example)
        self.environment = environment_of("cpu")
        inputs, labels = next(iter(self.data.search.batches(len(self.data.search))))
        # The engine takes the search images in an order of its own; what it takes is left out here.
        self.inputs, self.labels = cast(torch.Tensor, inputs), labels

    def context(self, budget: Budget, seed: int, search: SearchSplit) -> Context:
        """What a method decides by, on all cores."""
        return Context(
            network=copy.deepcopy(self.dense),
            trace=self.trace,
            budget=budget,
            seed=seed,
            train=self.data.train,
            search=search,
            source=DENSE[self.name],
            compute=compute_of("cpu"),
        )

    def cell(self, variant: str, seed: int, equal: str) -> dict[str, Any]:
        """One variant with one seed."""
        name, choices = VARIANTS[variant]
        # Half of the search split is for the search, by a fixed draw; the other half judges.
        searched = self.data.search.subset(len(self.data.search) - UNSEEN, seed=0)
        context = self.context(budget_of(self.name, equal), seed, searched)
        context = replace(context, compute=context.compute.model_copy(update=SCORED_IN))
        begin = time.perf_counter()
        decision = make_method(name, choices).decide(context)
        seconds = time.perf_counter() - begin
        plan = self.trace.plan(decision.choice, decision.connections)
        proof = certify(self.dense, self.trace, plan, self.example)
        small = cut(self.dense, plan)
        recalibrate_batch_norm_(small, self.data.train, images=1024, seed=seed)
        row = {
            "network": self.name,
            "variant": variant,
            "seed": seed,
            "equal": equal,
            "options": choices,
            "params": self.trace.params(plan.channels),
            "macs": self.trace.macs(plan.channels),
            "evaluations": decision.evaluations,
            "seconds": seconds,
            "certificate": proof.model_dump(),
            "notes": list(decision.notes),
            "environment": self.environment,
            **self._judge(small, searched),
        }
        print(f"{self.name} {variant} seed {seed}: {row['kl']:.4f} {row['top1']:.4f}", flush=True)
        return row

    def _judge(self, small: torch.nn.Module, searched: Any) -> dict[str, Any]:
        """KL(dense || cut), nats, and top-1 on search images that no search saw."""
        seen = {x.numpy().tobytes() for inputs, _ in searched.batches(500) for x in inputs}
        unseen = [k for k, x in enumerate(self.inputs) if x.numpy().tobytes() not in seen]
        kl, hits = [], []
        with torch.inference_mode():
            for at in np.array_split(np.array(unseen), max(1, len(unseen) // 250)):
                dense = log_softmax(self.dense(self.inputs[at]).double(), dim=1)
                mine = log_softmax(small(self.inputs[at]).double(), dim=1)
                kl += (dense.exp() * (dense - mine)).sum(dim=1).tolist()
                hits += (mine.argmax(dim=1) == self.labels[at]).tolist()
        return {
            "kl": statistics.mean(kl),
            "top1": sum(hits) / len(hits),
            "images": len(hits),
            "split": "search, not seen by the search",
        }


def write_summary(name: str) -> None:
    """``ablation.json``, or that of equal MACs: one line a network and variant."""
    rows = []
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for path in sorted((RESULTS / name).glob("*.json")):
        row = read(path)
        found.setdefault((row["network"], row["variant"]), []).append(row)
    for (network, variant), cells in found.items():
        line: dict[str, Any] = {"network": network, "variant": variant, "seeds": len(cells)}
        line["against"] = AGAINST.get(variant, "guided")
        line["kl_by_seed"] = {str(cell["seed"]): round(cell["kl"], 5) for cell in cells}
        line["scored_in_by_seed"] = {str(cell["seed"]): scored_in(cell["notes"]) for cell in cells}
        for figure in ("kl", "top1", "seconds", "evaluations", "params", "macs"):
            values = [cell[figure] for cell in cells]
            line[figure] = round(statistics.mean(values), 5)
            if figure in ("kl", "top1"):
                spread = round(statistics.stdev(values), 5) if len(cells) > 1 else None
                line[f"{figure}_std"] = spread
        rows.append(line)
    order = {name: k for k, name in enumerate(VARIANTS)}
    rows.sort(key=lambda r: (r["network"], order[r["variant"]]))
    write(RESULTS / f"{name}.json", rows)


def _slug(variant: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in variant.lower()).strip("-")


if __name__ == "__main__":
    main()
