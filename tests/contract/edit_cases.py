"""What methods that replace, drop or zero are tried on: small networks, texts and digits."""

import copy
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
from torch import nn

import prunus.lowrank
import prunus.prune
from prunus.data import DataSplits, load_data
from prunus.graph import Inputs, trace
from prunus.method import Budget, Context
from prunus.zoo import build
from tests.recipe import texts

PACKAGES = prunus.lowrank.__name__


@dataclass(frozen=True)
class Case:
    """A method, what it is tried on, and a target that it can meet; "" where it sizes itself."""

    method: str
    network: str
    target: str = ""
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        """Name of the test."""
        return f"{self.method}-{self.network}-{self.target or 'own'}"


CASES = (
    Case("svd", "bert_tiny", "params=0.6"),
    Case("svd", "bert_tiny", "size=0.6", {"embeddings": True}),
    Case("svd", "bert_tiny", "", {"rank": 0.3, "embeddings": True}),
    Case("tucker", "digits_cnn", "macs=0.6", {"calibration": 64}),
    Case("stacked-tucker", "bert_tiny", "macs=0.6"),
    Case("stacked-tucker", "bert_tiny", "", {"rank": 0.4, "calibration": 32}),
    Case("vocabulary", "bert_tiny"),
    Case("vocabulary", "textcnn", "params=0.9"),
    Case("vocabulary", "bilstm", "size=0.9"),
    Case("layers", "bert_tiny", "macs=0.7"),
    Case("layers", "bert_tiny", "", {"keep": 2, "order": "every-other"}),
    Case("magnitude-weights", "bert_tiny", "", {"sparsity": 0.5}),
    Case("magnitude-weights", "digits_cnn", "", {"sparsity": 0.5, "scope": "layer"}),
)


@cache
def words() -> DataSplits:
    return texts.load(Path(mkdtemp()))


@cache
def digits() -> DataSplits:
    return load_data("digits")


def data_of(case: Case) -> DataSplits:
    return digits() if case.network == "digits_cnn" else words()


def network_of(case: Case) -> nn.Module:
    if case.network == "digits_cnn":
        return build("digits_cnn").eval()
    tokenizer = words().tokenizer
    assert tokenizer is not None
    sizes: dict[str, Any] = {"vocab_size": tokenizer.vocab_size, "hidden": 32}
    if case.network == "bert_tiny":
        sizes |= {"layers": 3, "max_length": 32}
    return build(case.network, **sizes).eval()


def inputs_of(case: Case, samples: int = 6) -> Inputs:
    return next(iter(data_of(case).train.batches(samples)))[0]


def context_of(case: Case, network: nn.Module, seed: int = 0) -> Context:
    data = data_of(case)
    tokenizer = data.tokenizer
    return Context(
        network=copy.deepcopy(network),
        trace=trace(network, inputs_of(case)),
        budget=Budget.parse(case.target) if case.target else Budget(quantity="params", value=1.0),
        seed=seed,
        train=data.train,
        search=data.search,
        fallback_pieces=frozenset() if tokenizer is None else tokenizer.fallback_pieces(),
    )


def tensors_equal(one: nn.Module, two: nn.Module) -> bool:
    return all(
        torch.equal(a, b)
        for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True)
    )
