"""The study's methods at equal executed MACs: one cut of the dense network, then fine-tuning.

    python studies/kuzmin2024/equal_macs.py run            # the queue; killed, it goes on
    python studies/kuzmin2024/equal_macs.py run --method genetic genetic-kernels --seed 0
    python studies/kuzmin2024/equal_macs.py table          # equal_macs.json, from the cells

Table 2 compares at equal parameters, where one network may execute twice the MACs of another. Here all
execute the same share of the dense network's, which also asks what encoding connections is worth: a
kernel that is cut is zero, and executed all the same. Everything else is the study's: scale, fine-tuning,
search images, and one look at the test split for each cell, after its fine-tuning.
"""

import argparse
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import study
import torch

CELLS = study.HERE / "results" / "equal_macs"
SUMMARY = study.HERE / "results" / "equal_macs.json"
SHARE = 0.15
ROUND = 2  # one cut, one fine-tuning
METHODS = (
    "genetic",
    "genetic-kernels",
    "l2",
    "random-search",
    "random",
    "genetic-paper",
    "genetic-paper-neurons",
)


def main() -> None:
    """Run the queue, or sum its cells up."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("command", choices=["run", "table"])
    parser.add_argument("--network", choices=list(study.DENSE), nargs="+", default=["vgg16_bn"])
    parser.add_argument("--method", choices=METHODS, nargs="+", default=list(METHODS))
    parser.add_argument("--seed", type=int, nargs="+", default=list(study.SEEDS))
    parser.add_argument("--scale", choices=list(study.SCALES), default="small")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--runs", type=Path, default=study.RUNS, help="folder of the run folders")
    options = parser.parse_args()
    if options.command == "run":
        machine = study.machine_of(options.device)
        for seed in options.seed:
            for method in options.method:
                for network in options.network:
                    cut = CutToMacs(network, method, seed, options.scale, (ROUND,), machine)
                    cut.run(options.device, options.runs)
    else:
        write_summary()


@dataclass(frozen=True)
class CutToMacs(study.Chain):
    """One method with one seed, cut once to the share of executed MACs."""

    @property
    def name(self) -> str:
        """Of its run folder."""
        text = f"{self.machine}-{self.scale}-{self.network}-{self.method}-seed{self.seed}"
        return f"{text}-macs{SHARE}"

    def cell(self, number: int) -> Path:  # noqa: ARG002
        """File of the cut: there is one."""
        name = f"{self.scale}-{self.network}-{self.method}-seed{self.seed}.json"
        return CELLS / self.machine / name

    def shares(self, dense_params: int) -> list[float]:  # noqa: ARG002
        """Of the dense network's executed MACs."""
        return [SHARE]

    def target(self, share: float) -> str:
        """Of the cut."""
        return f"macs={share!r}"


def write_summary() -> None:
    """``equal_macs.json``: one line a network, scale, kind of machine and method."""
    found: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for path in sorted(CELLS.glob("*/*.json")):
        cell = study.read(path)
        key = (cell["network"], cell["scale"], path.parent.name, cell["method"])
        found.setdefault(key, []).append(cell)
    rows = []
    for (network, scale, machine, method), cells in found.items():
        row: dict[str, Any] = {"network": network, "scale": scale, "machine": machine}
        row |= {"method": method, "seeds": len(cells)}
        for name in ("params", "nonzero_params", "macs", "effective_macs"):
            row[name] = round(statistics.mean(cell[name] for cell in cells))
        top1 = [cell["top1"] for cell in cells]
        row["top1_mean"] = round(statistics.mean(top1), 5)
        row["top1_std"] = round(statistics.stdev(top1), 5) if len(top1) > 1 else None
        row["top1_by_seed"] = {str(cell["seed"]): cell["top1"] for cell in cells}
        rows.append(row)
    order = {name: k for k, name in enumerate((*study.DENSE, *METHODS))}
    rows.sort(key=lambda r: (order[r["network"]], r["scale"], r["machine"], order[r["method"]]))
    study.write(SUMMARY, rows)


if __name__ == "__main__":
    main()
