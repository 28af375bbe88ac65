"""What every method is tried on: a tiny network, its trace, the digits. Run it for digests as JSON."""

import hashlib
import json
import sys
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

import prunus.prune  # noqa: F401  registers the methods
from prunus.compute import Compute
from prunus.data import DataSplits, load_data
from prunus.graph import Choice, Trace, trace
from prunus.method import Budget, Context, Decision, make_method, method_class, method_names
from prunus.zoo import build

# Options that make a method fast enough to be tried a dozen times; others run with their defaults.
QUICK: dict[str, dict[str, Any]] = {
    "genetic": {
        "population": 6,
        "parents": 2,
        "generations": 2,
        "images": 64,
        "recalibration_images": 64,
    },
    "magnitude-weights": {"sparsity": 0.5},
    "random-search": {"evaluations": 3, "images": 64, "recalibration_images": 64},
    "taylor": {"images": 128},
}


@cache
def splits() -> DataSplits:
    return load_data("digits")


def network() -> nn.Module:
    """A small residual CNN, its batch norms unlike each other, in eval mode."""
    made = build("digits_cnn")
    generator = torch.Generator().manual_seed(1)
    for name, tensor in made.state_dict().items():
        if "bn" in name and name.endswith(("weight", "bias", "running_mean")):
            tensor.add_(0.3 * torch.randn(tensor.shape, generator=generator))
    return made.eval()


def example() -> Tensor:
    inputs, _ = next(splits().search.batches(4))
    assert isinstance(inputs, Tensor)
    return inputs


@cache
def traced(width_step: int = 1) -> Trace:
    """Its trace, with at least ``width_step`` units in a group, and a multiple of it."""
    return trace(network(), example(), min_units=width_step, round_to=width_step)


def context(target: str = "macs=0.5", seed: int = 0, width_step: int = 1) -> Context:
    data, budget = splits(), Budget.parse(target)
    # Named, for ``auto`` is measured: another choice on a busy machine is another rounding.
    compute = Compute(precision="float32", layout="contiguous")
    return Context(
        network(), traced(width_step), budget, seed, data.train, data.search, compute=compute
    )


def decide(name: str, given: Context) -> Decision:
    return make_method(name, QUICK.get(name)).decide(given)


def unit_methods() -> list[str]:
    """Methods that choose units within a budget; those that replace or zero have their own suite."""
    return [
        name
        for name in method_names()
        if not method_class(name).edits and not make_method(name, QUICK.get(name)).sizes_itself
    ]


def digest(choice: Choice) -> str:
    text = {name: keep.astype(int).tolist() for name, keep in choice.items()}
    return hashlib.sha256(json.dumps(text, sort_keys=True).encode()).hexdigest()


def digests(seed: int) -> dict[str, str]:
    """Method name to the digest of its choice."""
    given = context(seed=seed)
    return {name: digest(decide(name, given).choice) for name in unit_methods()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.stdout.write(json.dumps(digests(int(sys.argv[1]))))
