"""Batch-norm statistics from images as they are, against augmented ones, before any fine-tuning.

    python benchmarks/recalibration.py      # about a quarter of an hour on one core

Of each network the dense form and cuts by ``l2`` have their statistics measured anew, from as many
training images of either kind; beside them stands the kind that the step ``recalibrate`` picks by the
dense network's own statistics. Judged on the search split, for a default is a decision; the checkpoints
have seen that split in their training.
"""

import copy
import statistics
from typing import Any

import torch
from record import write_results

import prunus.prune  # noqa: F401 - registers the methods
from prunus.data import load_data
from prunus.graph import cut, trace
from prunus.method import Budget, Context, make_method
from prunus.train import evaluate, recalibrate_batch_norm_, statistics_are_augmented
from prunus.zoo import build, load_weights, normalization

NETWORKS = {
    "resnet20": "resnet20-12fca82f.th",
    "vgg16_bn": "vgg16_bn-cifar10.safetensors",
}
SHARES = (1.0, 0.8, 0.5)
IMAGES = (256, 1024)
SEEDS = (0, 1, 2)
JUDGES = 1000


def main() -> None:
    rows = [row for name, weights in NETWORKS.items() for row in measure(name, weights)]
    settings = {"seeds": SEEDS, "samples": JUDGES, "batch_size": 64, "split": "search"}
    write_results("recalibration", rows, **settings, search_seen_in_pretraining=True)


def measure(name: str, weights: str) -> list[dict[str, Any]]:
    """A row a share of MACs, a number of images, and a kind of them."""
    mean, std = normalization(name)
    data = load_data("cifar10", mean=mean, std=std, seed=0)
    dense = build(name)
    load_weights(dense, weights)
    dense.eval()
    found = trace(dense, next(iter(data.train.batches(8)))[0])
    judges = data.search.subset(JUDGES, seed=0)
    own = [statistics_are_augmented(dense, data.train, seed=seed) for seed in SEEDS]
    rows = []
    for share in SHARES:
        budget = Budget(quantity="macs", value=share)
        context = Context(dense, found, budget, 0, data.train, data.search)
        network = cut(dense, found.plan(make_method("l2").decide(context).choice))
        row: dict[str, Any] = {"network": name, "macs_share": share}
        row["own_augmented"] = own
        row["top1_as_cut"] = evaluate(network, judges).top1
        for images in IMAGES:
            for augment in (False, True):
                top1 = []
                for seed in SEEDS:
                    small = copy.deepcopy(network)
                    recalibrate_batch_norm_(
                        small, data.train, images=images, augment=augment, seed=seed
                    )
                    top1.append(evaluate(small, judges).top1)
                spread = {"mean": statistics.mean(top1), "std": statistics.stdev(top1)}
                told = {f"top1_{key}": round(value, 5) for key, value in spread.items()}
                rows.append(
                    {**row, "images": images, "augment": augment, **told, "seeds": len(top1)}
                )
                print(rows[-1], flush=True)
    return rows


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
