"""ResNet-56 on CIFAR-10 at 2.10 x fewer MACs: every method and Torch-Pruning, same fine-tuning.

    python benchmarks/resnet56.py cut                        # what every method keeps; no training
    python benchmarks/resnet56.py tune                       # once: the recipe, on L1, by the search split
    python benchmarks/resnet56.py run --epochs 20            # the queue; killed and started again, it goes on
    python benchmarks/resnet56.py run --epochs 20 --workers 12    # so many cells at once: they fill a GPU
    python benchmarks/resnet56.py run --epochs 1 --images 20000   # a scale that fits a small machine
    python benchmarks/resnet56.py run --methods scratch --scratch-epochs 40    # fewer than it is due
    python benchmarks/resnet56.py table                      # summary and README table from the cells

In-block channels only: the residual stream keeps its width. A cell is one method and one seed at one
scale (epochs, images of an epoch); its record is written when it ends, behind a look at the test split
after fine-tuning, and counts the looks of killed runs and of fewer epochs before. The seed varies data
order, augmentation and the methods' own draws; cells of one seed see the same order, so seeds are paired.
Cuts are the same at every scale and stored, those of Torch-Pruning as the plan that gives its network,
parameter for parameter.
"""

import argparse
import copy
import json
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peers import prune_with_torch_pruning
from record import RESULTS, environment, write_json
from resnet56_tables import table
from torch import nn

import prunus.prune  # noqa: F401 - registers the methods
from prunus.data import DataSplits, load_data
from prunus.graph import Choice, Trace, certify, cut, trace
from prunus.meter import count_macs, count_params
from prunus.method import Budget, Context, make_method
from prunus.recipe.fresh import reinitialize_
from prunus.train import TrainConfig, evaluate, fit, recalibrate_batch_norm_
from prunus.zoo import build, load_weights, normalization

SPEED_UP = 2.10
IGNORED = ["conv1", "layer*.conv2"]
PEERS = {"tp-magnitude": "magnitude", "tp-taylor": "taylor"}
# Most telling first: a queue that is cut short still compares the best of both sides.
DENSE_EPOCHS = 200  # of the checkpoint, as its authors state
METHODS = [
    "taylor",
    "tp-taylor",
    "group-l2",
    "tp-magnitude",
    "l1",
    "random",
    "l2-global",
    "bn-scale",
    "random-search",
    "l2",
    "l1-global",
    "scratch",
]
FOLDER = RESULTS / "resnet56"
CUTS = FOLDER / "cuts"
RECIPE = "recipe.json"
LOOKS = ".part.looks"  # of a cell that has looked at the test split and is not written
TUNED = "l1"  # the method that the recipe is tuned on, by a seed that no cell has
TUNING_SEED = 100


def asked() -> argparse.Namespace:
    """What the command line says, checked before any compute."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("command", choices=["cut", "tune", "run", "table"])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--images", type=int, default=0, help="train images used; 0: all 45,000")
    parser.add_argument(
        "--scratch-epochs", type=int, default=0, help="0: the dense training's, too"
    )
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--shard", type=shard_of, default="1/1", help="2/8: the second of eight processes' cells"
    )
    parser.add_argument("--workers", type=int, default=1, help="processes of run, a cell each")
    parser.add_argument("--one-of", type=int, default=1, help=argparse.SUPPRESS)  # of the workers
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, default=128, help="of tune: images a step")
    parser.add_argument("--lr", type=float, nargs="+", default=[0.01, 0.03], help="of tune")
    parser.add_argument("--alpha", type=float, nargs="+", default=[0.0, 0.5], help="of tune")
    left = "of tune; of run, where the recipe leaves it open"
    parser.add_argument(
        "--precision", choices=["auto", "float32", "bfloat16"], default="auto", help=left
    )
    parser.add_argument(
        "--layout", choices=["auto", "contiguous", "channels_last"], default="auto", help=left
    )
    options = parser.parse_args()
    if options.scratch_epochs < 0:
        parser.error(f"--scratch-epochs is {options.scratch_epochs}; give 1 or more")
    if options.scratch_epochs and "scratch" not in options.methods:
        parser.error("--scratch-epochs is of method scratch alone; add it to --methods")
    return options


def shard_of(text: str) -> tuple[int, int]:
    """``2/8`` as numbers, the first of which is at least 1 and at most the second."""
    first, _, last = text.partition("/")
    if not (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        raise argparse.ArgumentTypeError(f"'{text}' is no shard: give such as 2/8, from 1/8 to 8/8")
    return int(first), int(last)


def main() -> None:
    options = asked()
    torch.set_num_threads(options.threads)
    if options.command == "table":
        table(FOLDER, SPEED_UP)
        return
    if options.command == "run" and options.workers > 1:
        run_at_once(options)
        table(FOLDER, SPEED_UP)
        return
    shard, shards = options.shard
    execution = {"precision": options.precision, "layout": options.layout}
    bench = Bench(options.device, options.images, max(options.one_of, shards), execution)
    if options.command == "tune":
        grid = [
            {"lr": lr, "distill_alpha": alpha, "batch_size": options.batch, **execution}
            for alpha in options.alpha
            for lr in options.lr
        ]
        for config in grid[shard - 1 :: shards]:
            bench.trial(config, options.epochs)
        bench.freeze(grid, options.epochs)
        return
    queue = [(method, seed) for seed in options.seeds for method in options.methods]
    if options.command == "cut":
        for method, seed in [(TUNED, TUNING_SEED), *queue][shard - 1 :: shards]:
            bench.cut(method, seed)
        return
    for method, seed in queue[shard - 1 :: shards]:
        bench.cell(method, seed, options.epochs, options.scratch_epochs)
    if max(options.one_of, shards) == 1:
        table(FOLDER, SPEED_UP)


def run_at_once(options: argparse.Namespace) -> None:
    """The queue in processes of their own, one a cell; records are looked at when all have ended.

    A network this small leaves most of a GPU idle. On one where the server of CUDA MPS runs, the
    kernels of several processes run side by side.
    """

    def cell(of: tuple[str, int]) -> None:
        method, seed = of
        given = {
            "--epochs": options.epochs,
            "--images": options.images,
            "--scratch-epochs": options.scratch_epochs if method == "scratch" else 0,
            "--methods": method,
            "--seeds": seed,
            "--threads": options.threads,
            "--device": options.device,
            "--precision": options.precision,
            "--layout": options.layout,
            "--one-of": options.workers,
        }
        words = [str(word) for pair in given.items() for word in pair]
        subprocess.run([sys.executable, __file__, "run", *words], check=True)

    queue = [(method, seed) for seed in options.seeds for method in options.methods]
    with ThreadPoolExecutor(options.workers) as pool:
        list(pool.map(cell, queue))


class Bench:
    """The dense network, its data and trace, shared by all cells.

    ``workers``: processes that share the queue, for the records: they share the machine as well, unless
    shards were given to several. ``execution``: number format and layout of trainings that the recipe
    leaves to a trial, whose outcome would part the cells of a scale.
    """

    def __init__(
        self, device: str, images: int, workers: int, execution: Mapping[str, str]
    ) -> None:
        mean, std = normalization("resnet56")
        data = load_data("cifar10", mean=mean, std=std, seed=0)
        self.images = images or len(data.train)
        self.data: DataSplits = data
        self.train = data.train if not images else data.train.subset(images, seed=0)
        self.device, self.workers, self.execution = device, workers, execution
        self.dense = build("resnet56")
        load_weights(self.dense, "resnet56-4bfd9763.th")
        self.dense.eval()
        self.example = next(iter(data.train.batches(8)))[0]
        self.trace: Trace = trace(self.dense, self.example, ignore=IGNORED)
        self.budget = Budget(quantity="macs", value=1 / SPEED_UP)

    def recipe(self, epochs: int) -> TrainConfig:
        """The frozen fine-tuning recipe, in the formats that were asked for where it leaves them open.

        Raises:
            SystemExit: There is none, or it has frozen another format.
        """
        path = FOLDER / self.scale(epochs) / RECIPE
        if not path.exists():
            raise SystemExit(
                "no recipe at this scale: run 'python benchmarks/resnet56.py tune' first"
            )
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["config"]
        for name, asked_for in self.execution.items():
            if asked_for != "auto" and config.setdefault(name, asked_for) != asked_for:
                raise SystemExit(
                    f"--{name} {asked_for}: {path} has frozen {config[name]}; leave it out"
                )
        return TrainConfig(epochs=epochs, **config)

    def scale(self, epochs: int) -> str:
        """Name of the folder of cells that share a budget of training; recipes are tuned for each."""
        return f"epochs{epochs}-images{self.images}"

    def cut(self, method: str, seed: int) -> tuple[nn.Module, dict[str, Any]]:
        """The cut network, not yet trained, with what is known of the cut; decided once."""
        path = CUTS / f"{method}-seed{seed}.json"
        if not path.exists():
            record = self.decided(method, seed)
            write_json(path, record)
            print(f"{method} seed {seed}: cut in {record['seconds_search']:.0f} s", flush=True)
        record = json.loads(path.read_text(encoding="utf-8"))
        kept = {name: np.array(list(bits)) == "1" for name, bits in record.pop("kept").items()}
        small = cut(self.dense, self.trace.plan(kept))
        counted = count_macs(small, self.example[:1]).macs
        if (counted, count_params(small)) != (record["macs"], record["params"]):
            raise RuntimeError(f"{method}: the stored cut is of another network")
        if method not in PEERS and make_method(method).reinitialize:
            reinitialize_(small, seed)
        return small, record

    def decided(self, method: str, seed: int) -> dict[str, Any]:
        """What a method keeps, certified; by all train images, whatever the scale trains on."""
        started = time.perf_counter()
        if method in PEERS:
            ignored = [
                n for n, _ in self.dense.named_modules() if n == "conv1" or n.endswith(".conv2")
            ]
            limit = self.budget.limit(self.trace.macs({}))
            theirs = prune_with_torch_pruning(
                self.dense,
                self.example[:1],
                PEERS[method],
                [*ignored, "linear"],
                limit,
                self.data.train,
                seed,
            )
            choice = choice_of(theirs, self.dense, self.trace)
        else:
            context = Context(
                self.dense, self.trace, self.budget, seed, self.data.train, self.data.search
            )
            choice = make_method(method).decide(context).choice
        seconds = time.perf_counter() - started
        plan = self.trace.plan(choice)
        proof = certify(self.dense, self.trace, plan, self.example)
        small = cut(self.dense, plan)
        if method in PEERS:
            require_same(small, theirs)
        macs, dense = count_macs(small, self.example[:1]).macs, self.trace.macs({})
        if self.trace.macs(choice) != macs:
            raise RuntimeError(f"{method}: predicted and counted MACs differ")
        return {
            "macs": macs,
            "macs_ratio": dense / macs,
            "params": count_params(small),
            "certificate": proof.model_dump(),
            "seconds_search": seconds,
            "cut_environment": environment(),
            # One digit a channel of each group, in the network's order.
            "kept": {n: "".join("01"[int(k)] for k in keep) for n, keep in choice.items()},
        }

    def cell(self, method: str, seed: int, epochs: int, scratch_epochs: int) -> None:
        """Run one cell, unless a record of it is there, of as many epochs."""
        config = self.recipe(epochs)
        due = epochs
        if method == "scratch":
            # The small network from scratch is due the dense training's epochs as well.
            due = DENSE_EPOCHS + epochs
            lr = 0.1 * config.batch_size / 128
            config = config.model_copy(update={"epochs": scratch_epochs or due, "lr": lr})
        scale = self.scale(epochs)
        path = FOLDER / scale / f"{method}-seed{seed}.json"
        if path.exists() and trained_epochs(path) >= config.epochs:
            return
        small, record = self.cut(method, seed)
        recalibrate_batch_norm_(small, self.train, images=1024, seed=seed)
        before = evaluate(small, self.data.search, device=self.device)
        record["search_top1_after_recalibration"] = before.top1
        started = time.perf_counter()
        checkpoint = path.with_suffix(".part.pt")
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        result = fit(
            small,
            self.train,
            self.data.search,
            config,
            seed=seed,
            checkpoint=checkpoint,
            teacher=copy.deepcopy(self.dense) if config.distill_alpha else None,
            device=self.device,
        )
        looks = count_look(path)
        after = evaluate(small, self.data.test, device=self.device)
        record |= {
            "method": method,
            "seed": seed,
            "finetune_epochs": epochs,
            "epochs_due": due,
            "train_images": self.images,
            "top1": after.top1,
            "loss": after.loss,
            "test_samples": after.samples,
            "search_top1": result.search_top1,
            "seconds_training": time.perf_counter() - started,
            "test_evaluations": {"after_training": looks},
            "search_seen_in_pretraining": True,
            "config": config.model_dump(),
            "precision": result.precision,
            "layout": result.layout,
            "workers": self.workers,
            "environment": environment(),
        }
        write_json(path, record)
        for left in (checkpoint, path.with_suffix(LOOKS)):
            left.unlink(missing_ok=True)
        print(
            f"{scale} {method} seed {seed}: {after.top1:.4f} ({record['seconds_training']:.0f} s)",
            flush=True,
        )

    def trial(self, given: dict[str, Any], epochs: int) -> None:
        """Fine-tune the tuned method's network with one setting, unless that has been done."""
        path = self.trial_path(given, epochs)
        if path.exists():
            return
        small, _ = self.cut(TUNED, TUNING_SEED)  # one draw for all: only the settings differ
        config = TrainConfig(epochs=epochs, weight_decay=5e-4, **given)
        path.parent.mkdir(parents=True, exist_ok=True)
        checkpoint = path.with_suffix(".part.pt")
        started = time.perf_counter()
        result = fit(
            small,
            self.train,
            self.data.search,
            config,
            seed=TUNING_SEED,
            teacher=copy.deepcopy(self.dense) if config.distill_alpha else None,
            checkpoint=checkpoint,
            device=self.device,
        )
        # What the trial run picked is frozen too: cells of one seed must differ in nothing else.
        picked = {"precision": result.precision, "layout": result.layout}
        trial = {
            "config": {"weight_decay": 5e-4, **given, **picked},
            "search_top1": result.search_top1,
            "seconds": time.perf_counter() - started,
            "workers": self.workers,
            "environment": environment(),
        }
        write_json(path, trial)
        checkpoint.unlink(missing_ok=True)
        print(trial["config"], trial["search_top1"], f"{trial['seconds']:.0f} s", flush=True)

    def trial_path(self, given: dict[str, Any], epochs: int) -> Path:
        """Where the record of a trial is."""
        name = "-".join(f"{key}{given[key]:g}" for key in ("batch_size", "lr", "distill_alpha"))
        return FOLDER / self.scale(epochs) / "trials" / f"{name.replace('_', '')}.json"

    def freeze(self, grid: list[dict[str, Any]], epochs: int) -> None:
        """Write the recipe once all trials are there: the best by the search split."""
        paths = [self.trial_path(given, epochs) for given in grid]
        target = FOLDER / self.scale(epochs) / RECIPE
        if target.exists() or not all(path.exists() for path in paths):
            return
        trials = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
        best = max(trials, key=lambda t: t["search_top1"])
        frozen = {
            "config": best["config"],
            "search_top1": best["search_top1"],
            "trials": [{k: t[k] for k in ("config", "search_top1")} for t in trials],
            "tuned_on": f"{TUNED}, seed {TUNING_SEED}, search split",
            "epochs": epochs,
            "train_images": self.images,
        }
        write_json(target, frozen)


def trained_epochs(cell: Path) -> int:
    """How many epochs the network of a cell was trained."""
    epochs: int = json.loads(cell.read_text(encoding="utf-8"))["config"]["epochs"]
    return epochs


def count_look(cell: Path) -> int:
    """Count a look at the test split before it is taken: a run that is killed behind it has looked.

    Returns:
        How many looks there are with this one; those of the cell that will be replaced are among them.
    """
    counted = cell.with_suffix(LOOKS)
    before = json.loads(counted.read_text(encoding="utf-8")) if counted.exists() else 0
    if cell.exists():
        told = json.loads(cell.read_text(encoding="utf-8"))["test_evaluations"]["after_training"]
        before = max(before, told)
    write_json(counted, before + 1)
    return int(before) + 1


def choice_of(small: nn.Module, dense: nn.Module, found: Trace) -> Choice:
    """Which units of every group a network keeps that is cut out of the dense one.

    Raises:
        RuntimeError: A filter of it is none of the dense network's, or is there twice.
    """
    choice = {}
    for group in found.cuttable:
        axis = next(a for a in group.axes if a.role == "out" and a.tensor.endswith("conv1.weight"))
        rows = dense.get_parameter(axis.tensor).detach().flatten(1)
        # In-block filters read the whole residual stream: their rows are as long as before.
        kept = small.get_parameter(axis.tensor).detach().flatten(1)
        same = (kept[:, None] == rows[None]).all(dim=2)
        if not (same.sum(dim=1) == 1).all():
            raise RuntimeError(f"filters of '{axis.tensor}' are not among the dense network's")
        keep = np.zeros(group.units, dtype=np.bool_)
        keep[axis.units[same.int().argmax(dim=1).numpy()]] = True
        choice[group.name] = keep
    return choice


def require_same(ours: nn.Module, theirs: nn.Module) -> None:
    """Refuse two networks that differ in a parameter.

    Raises:
        RuntimeError: They do.
    """
    mine, other = dict(ours.named_parameters()), dict(theirs.named_parameters())
    if mine.keys() != other.keys() or not all(torch.equal(mine[n], other[n]) for n in mine):
        raise RuntimeError("the plan and torch-pruning keep different parameters")


if __name__ == "__main__":
    main()
