"""Networks in a run's folder: what a step leaves behind, and what the next one begins with."""

import copy
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from prunus.artifact import Manifest, read_manifest, save
from prunus.artifact.manifest import MANIFEST_FILE, TOKENIZER_FILE, WEIGHTS_FILE, plan_file
from prunus.artifact.weights import (
    file_sha256,
    fill_,
    read_weights,
    unsaved_types,
    write_weights,
)
from prunus.data import TextTokenizer
from prunus.graph import Inputs, cut
from prunus.plan import Plan
from prunus.records import Source


def save_network(
    folder: Path,
    network: nn.Module,
    plans: Sequence[Plan],
    source: Source | None,
    inputs: Inputs,
    tokenizer: TextTokenizer | None = None,
) -> None:
    """Save a network; without a source it can be resumed, but not loaded on its own."""
    if source is not None:
        save(
            folder,
            network,
            source=source,
            plans=plans,
            example_inputs=inputs,
            tokenizer=tokenizer,
        )
        return
    folder.mkdir(parents=True, exist_ok=True)
    ties = write_weights(network, folder / WEIGHTS_FILE)
    files = tuple(plan_file(index) for index in range(len(plans)))
    for file, plan in zip(files, plans, strict=True):
        plan.save(folder / file)
    Manifest(
        source=Source(model=type(network).__qualname__),
        plans=files,
        ties=ties,
        buffers=unsaved_types(network),
        weights_sha256=file_sha256(folder / WEIGHTS_FILE),
    ).save(folder / MANIFEST_FILE)
    if tokenizer is not None:
        tokenizer.save(folder / TOKENIZER_FILE)


def load_network(folder: Path, dense: nn.Module) -> tuple[nn.Module, tuple[Plan, ...]]:
    """A saved network: cut anew from the dense one, filled with the saved weights."""
    manifest = read_manifest(folder)
    plans = tuple(Plan.load(folder / file) for file in manifest.plans)
    tensors = read_weights(folder / WEIGHTS_FILE, manifest.weights_sha256, manifest.ties)
    network = copy.deepcopy(dense)
    for plan in plans:
        network = cut(network, plan)
    fill_(network, tensors, manifest.ties, manifest.buffers)
    return network.eval(), plans
