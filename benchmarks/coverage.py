"""Which architectures can be cut: 50 % of every group, certified, exported, trained a step.

    python benchmarks/coverage.py            # all, about 15 minutes on two cores
    python benchmarks/coverage.py Bert Swin  # some, printed and not recorded

*Certified* means: every group that was not refused was halved at once and the cut network equals the
masked dense one, and at least half of the parameters lie in groups that can be cut.
"""

import sys
import tempfile
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from architectures import architectures, enliven
from record import write_results
from torch import nn

from prunus.artifact import export, verify_export
from prunus.graph import Inputs, Trace, certify, cut, first_sample, trace
from prunus.graph.inputs import output_tensors
from prunus.meter import count_macs, count_params

SEED = 0
RANDOM_HALVES = 3


def main(names: list[str]) -> None:
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    table = architectures()
    rows = []
    for name in names or list(table):
        started = time.perf_counter()
        row = measure(name, *table[name])
        rows.append(row)
        print(f"{name}: {time.perf_counter() - started:.0f} s {row}", flush=True)
    share = sum(row["certified"] for row in rows) / len(rows)
    print(f"certified {share:.1%} of {len(rows)}")
    if not names:
        write_results(
            "coverage", rows, seed=SEED, kept_share=0.5, samples=2, random_halves=RANDOM_HALVES
        )


def measure(name: str, source: str, build: Any, onnx: bool = True) -> dict[str, Any]:
    """One network's row. ``build(name)`` gives it and two samples; ``onnx`` tells whether to export."""
    torch.manual_seed(SEED)
    row: dict[str, Any] = {
        "name": name,
        "source": source,
        "traced": False,
        "certified": False,
        "groups_total": 0,
        "groups_refused": 0,
        "refused": {},
        "params_in_cuttable_groups": 0.0,
        "params_ratio": None,
        "macs_ratio": None,
        "predicted_equals_counted": None,
        "max_relative_difference": None,
        "backward": False,
        "onnx_max_difference": None,
        "reason": "",
    }
    try:
        network, inputs = build(name)
        enliven(network, inputs)
        given: Inputs = inputs.get("x", inputs)
        found = trace(network, given)
    except Exception as error:  # noqa: BLE001 - whatever stops an architecture is its result
        row["reason"] = f"{type(error).__name__}: {error}"[:300]
        return row
    row["traced"] = True
    try:
        small = _cut_and_check(row, network, given, found)
        if onnx:
            _export(row, small, given)
    except Exception as error:  # noqa: BLE001
        row["reason"] = f"{type(error).__name__}: {error}"[:300]
    return row


def _cut_and_check(
    row: dict[str, Any], network: nn.Module, inputs: Inputs, found: Trace
) -> nn.Module:
    refused = [g for g in found.groups if g.refused and not g.protected]
    reached = {axis.tensor for g in found.cuttable for axis in g.axes}
    sizes = {n: p.numel() for n, p in network.named_parameters()}
    share = sum(sizes[n] for n in reached if n in sizes) / sum(sizes.values())
    row["groups_total"] = len(found.cuttable) + len(refused)
    row["groups_refused"] = len(refused)
    row["refused"] = {g.name: g.refused for g in refused}
    row["params_in_cuttable_groups"] = round(share, 4)
    # Every other unit, then random halves: a missing coupling may hide behind equal positions.
    half = {g.name: np.arange(g.units) % 2 == 0 for g in found.cuttable}
    proofs = [
        certify(network, found, found.plan(choice), inputs)
        for choice in [half, *(_random_half(found, seed) for seed in range(RANDOM_HALVES))]
    ]
    row["certified"] = all(proof.passed for proof in proofs) and share >= 0.5
    differences = [(proof.eval_difference, proof.train_difference or 0.0) for proof in proofs]
    row["max_relative_difference"] = max(max(pair) for pair in differences)
    row["decided_in_float64"] = any(p.eval_difference_float64 is not None for p in proofs)
    plan = found.plan(half)
    small = cut(network, plan).eval()
    cost = found.cost(half)
    row["params_ratio"] = round(cost.params / found.cost({}).params, 4)
    row["macs_ratio"] = round(cost.macs / found.cost({}).macs, 4)
    counted = count_macs(small, first_sample(inputs))
    exact = counted.macs == cost.macs and count_params(small) == cost.params
    row["predicted_equals_counted"] = exact
    row["backward"] = _trains(small, inputs)
    return small


def _export(row: dict[str, Any], small: nn.Module, inputs: Inputs) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for dynamic in (True, False):
            path = Path(folder) / f"network-{dynamic}.onnx"
            try:
                export(small, path, inputs, "onnx", dynamic_batch=dynamic)
                row["onnx_max_difference"] = verify_export(path, small, inputs)
                row["onnx_dynamic_batch"], row["reason"] = dynamic, ""
                return
            except Exception as error:  # noqa: BLE001
                row["reason"] = f"ONNX: {type(error).__name__}: {str(error).splitlines()[0]}"[:300]


def _random_half(found: Trace, seed: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    choice = {}
    for group in found.cuttable:
        keep = np.zeros(group.units, dtype=bool)
        keep[random.permutation(group.units)[: max(1, group.units // 2)]] = True
        choice[group.name] = keep
    return choice


def _trains(network: nn.Module, inputs: Inputs) -> bool:
    """Whether a backward pass reaches finite gradients in every parameter that the forward pass uses."""
    network.train()
    output = network(**inputs) if isinstance(inputs, Mapping) else network(inputs)
    loss = torch.stack([part.square().sum() for part in output_tensors(output)]).sum()
    loss.backward()
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    network.eval()
    return bool(gradients) and all(bool(g.isfinite().all()) for g in gradients)


if __name__ == "__main__":
    main(sys.argv[1:])
