"""Seconds of an epoch of the networks of Table 4, side by side in one run.

    python studies/kuzmin2024/clock.py                       # on a machine that does nothing else
    python studies/kuzmin2024/clock.py --network vgg16_bn --repeats 5

The seconds of training that stand in a cell are worth nothing where the queue shared its cores, was
paused, or had a thread a process. So the networks whose trainings Table 4 sets against each other, those
that ``genetic`` ended its rounds with and the narrow ones, are built again by the widths in their cells
and trained a little, by the study's own training, in turns. Weights are fresh: they do not matter here.
"""

import argparse
import copy
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import study
import torch
from rich.progress import track
from torch import nn

from prunus.graph import Trace, cut, trace
from prunus.meter import measure_cost
from prunus.train import TrainConfig, fit
from prunus.zoo import build

CLOCK = study.HERE / "results" / "clock"
IMAGES = 2560  # of one timed epoch: 20 steps


def main() -> None:
    """Time what has cells of both methods."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--network", choices=list(study.DENSE), nargs="+", default=list(study.DENSE)
    )
    parser.add_argument("--scale", choices=list(study.SCALES), default="small")
    mine = study.machine_of("cpu")
    parser.add_argument("--machine", default=mine, help=f"folder in results/cells/ (here: {mine})")
    parser.add_argument("--repeats", type=int, default=5, help="turns, of which the median counts")
    options = parser.parse_args()
    if options.repeats < 1:
        parser.error(f"argument --repeats: {options.repeats} is below 1; give 1 or more")
    for network in options.network:
        cells = compared(network, options.scale, options.machine)
        if cells:
            CLOCK.mkdir(parents=True, exist_ok=True)
            name = f"{options.scale}-{network}-{options.machine}.json"
            study.write(CLOCK / name, clocked(network, cells, options.repeats))
        else:
            print(f"{network}: no round has cells of both genetic and scratch; run study.py first")


def compared(network: str, scale: str, machine: str) -> list[dict[str, Any]]:
    """Cells of ``genetic``, and of ``scratch`` one a round: its seeds have the same widths."""
    folder = study.CELLS / machine

    def found(method: str, number: int) -> list[Path]:
        return sorted(folder.glob(f"{scale}-{network}-{method}-seed*-round{number}.json"))

    paths = []
    for number in study.CUTS:
        narrow, pruned = found("scratch", number), found("genetic", number)
        if narrow and pruned:
            paths += [*pruned, narrow[0]]
    # A pruned network has been through its earlier rounds, too, also where those have no narrow one.
    last = max((study.read(p)["round"] for p in paths), default=0)
    earlier = [p for k in study.CUTS if k < last for p in found("genetic", k) if p not in paths]
    return [study.read(path) for path in [*earlier, *paths]]


def clocked(network: str, cells: list[dict[str, Any]], repeats: int) -> dict[str, Any]:
    """The record of one network: a row a cell, in the order of ``cells``."""
    started, data = study.environment_of("cpu"), study.data_of(network)
    dense = build(study.DENSE[network].model).eval()
    found = trace(dense, next(iter(data.train.batches(8)))[0])
    networks = [narrowed(dense, found, cell) for cell in cells]
    # As many evaluated images for each trained one as in the study's own epochs.
    images = min(IMAGES, len(data.train))
    train = data.train.subset(images, seed=0)
    search = data.search.subset(max(1, images * len(data.search) // len(data.train)), seed=0)
    timed: list[list[float]] = [[] for _ in cells]
    picked: list[dict[str, str]] = [{} for _ in cells]
    turns = [k for _ in range(repeats) for k in range(len(cells))]
    for k in track(turns, description=network):
        config = TrainConfig(epochs=2, lr=0.05, layout="channels_last", **picked[k])
        result = fit(copy.deepcopy(networks[k]), train, search, config, seed=0)
        first, second = (point.seconds for point in result.history)
        timed[k].append(images / (second - first))  # the first epoch warms up
        picked[k] = {"precision": result.precision}
    rows = [
        {
            **{name: cell[name] for name in ("method", "seed", "round", "params", "macs")},
            **picked[k],
            "images_per_second": round(statistics.median(timed[k]), 2),
            "least": round(min(timed[k]), 2),
            "most": round(max(timed[k]), 2),
        }
        for k, cell in enumerate(cells)
    ]
    settings = {"repeats": repeats, "images": images, "threads": torch.get_num_threads()}
    return {
        "network": network,
        "train_images": len(data.train),
        "settings": {**settings, "batch_size": config.batch_size, "layout": "channels_last"},
        "environment": started,
        "rows": rows,
    }


def narrowed(dense: nn.Module, found: Trace, cell: dict[str, Any]) -> nn.Module:
    """A network with the widths of a cell: of every group the first channels.

    Raises:
        RuntimeError: It has not the parameters that the cell tells.
    """
    convolutions = [name for name, m in dense.named_modules() if isinstance(m, nn.Conv2d)]
    widths = dict(zip(convolutions, cell["widths"], strict=True))
    choice = {}
    for group in found.cuttable:
        layer = next(
            layer
            for axis in group.axes
            if axis.role == "out" and (layer := axis.tensor.rpartition(".")[0]) in widths
        )
        choice[group.name] = np.arange(group.units) < widths[layer]
    small = cut(dense, found.plan(choice))
    example = found.example_inputs
    if (params := measure_cost(small, example).params) != cell["params"]:
        raise RuntimeError(f"widths of {cell['method']} give {params}, not {cell['params']}")
    return small


if __name__ == "__main__":
    main()
