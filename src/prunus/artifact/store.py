"""Save a compressed network as a folder, and load it with its own constructor. Nothing is pickled.

artifact.json        source, order of the plans, ties, data types of unsaved buffers, recipe
plan-0.json ...      what was cut, in order
model.safetensors    weights of the network as it is now
record.json          what happened in the run (optional)
tokenizer.json       splits texts into the pieces that the network knows (networks for texts)
"""

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from pydantic_core import PydanticSerializationError
from safetensors import SafetensorError
from torch import nn

from prunus.artifact.manifest import (
    MANIFEST_FILE,
    RECORD_FILE,
    TOKENIZER_FILE,
    WEIGHTS_FILE,
    Manifest,
    is_artifact_file,
    plan_file,
    read_manifest,
)
from prunus.artifact.place import replace_folder, unwritable
from prunus.artifact.rebuild import (
    check_source,
    find_source,
    note_factory,
    rebuild,
    require_same_outputs,
)
from prunus.artifact.weights import (
    file_sha256,
    fill_,
    read_weights,
    require_saved,
    state_shapes,
    tied_state,
    unsaved_types,
    write_weights,
)
from prunus.data import TextTokenizer
from prunus.errors import InputError, PlanMismatchError
from prunus.graph import Inputs, check_network, network_shape
from prunus.graph.difference import same_values
from prunus.plan import Plan
from prunus.records import RunRecord, Source
from prunus.zoo import load_source, without_weights


@dataclass(frozen=True)
class Artifact:
    """A loaded artifact. ``network`` is on the CPU, in eval mode; ``source`` names its file as found."""

    network: nn.Module
    source: Source
    plans: tuple[Plan, ...]
    recipe: dict[str, Any]
    record: RunRecord | None
    tokenizer: TextTokenizer | None = None


def save(
    folder: Path | str,
    network: nn.Module,
    *,
    source: Source,
    plans: Sequence[Plan] = (),
    recipe: Mapping[str, Any] | None = None,
    record: RunRecord | None = None,
    example_inputs: Inputs | None = None,
    tokenizer: TextTokenizer | None = None,
) -> None:
    """Write an artifact, and only one that loads: it is read back and compared before it is kept.

    The folder is written beside its place and then renamed, so that no half-written artifact ever
    stands there. An artifact that stands there already is replaced. Not saved: training mode,
    ``requires_grad``, memory layout, device, and whatever the constructor alone decides.

    Args:
        folder: New, empty, or an artifact and nothing else.
        network: The source network cut by all plans, with any weights.
        source: Builds the network before the first plan. Its ``weights`` are not needed again, and
            not kept. A ``file.py:factory`` is looked for at its present place first, then from the
            working directory, then beside the artifact.
        plans: In the order in which they were cut; none for a network that was only trained.
        recipe: The steps that made the network, JSON-able.
        record: What happened in the run.
        example_inputs: A real batch. With it the network that is read back must give the outputs of
            ``network`` in eval mode; without it parameters and buffers alone are compared, and a
            source of another architecture with the same tensors goes unnoticed.
        tokenizer: Of a network for texts.

    Raises:
        InputError: The folder holds other files or cannot be written, ``recipe`` is not JSON-able,
            or the network holds what cannot be saved.
        PlanMismatchError: The network is not what source and plans make.
    """
    check_network(network)
    check_source(source)
    require_saved(network)
    folder = Path(folder).resolve()
    _check_place(folder)
    for index, (before, after) in enumerate(pairwise(plans)):
        after.source.require(before.result, f"plans[{index + 1}]")
    if plans:
        plans[-1].result.require(network_shape(network), "the result of the last plan")
    part = folder.with_name(f".{folder.name}.part-{os.getpid()}")
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        _write(part, network, source, plans, dict(recipe or {}), record)
        if tokenizer is not None:
            tokenizer.save(part / TOKENIZER_FILE)
        loaded = load_artifact(part).network
        _compare(network, loaded)
        if example_inputs is not None:
            require_same_outputs(network, loaded, example_inputs, source.model)
        replace_folder(part, folder)
    except (OSError, SafetensorError) as error:
        raise unwritable(folder, error) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def require_source(source: Source, network: nn.Module, example_inputs: Inputs) -> None:
    """Refuse a source that could not give a network back: what ``save`` would find out, before there is any cut.

    Args:
        source: Said to build the network. Its weights are not needed.
        network: As the source builds it, with any weights.
        example_inputs: A real batch.

    Raises:
        InputError: The source cannot be built, or a name or shape of its state differs.
        PlanMismatchError: With the same state it is another network.
    """
    built = load_source(without_weights(source))
    found, wanted = state_shapes(built), state_shapes(network)
    name = next((n for n in (*wanted, *found) if found.get(n) != wanted.get(n)), None)
    if name is not None:
        there, here = (list(own[name]) if name in own else "absent" for own in (found, wanted))
        raise InputError(
            f"source '{source.model}' builds another network than the one given: '{name}' is {there} "
            f"in it and {here} in yours; give the arguments that yours was built with"
        )
    tensors, ties = tied_state(network)
    fill_(built, tensors, ties, unsaved_types(network))
    _compare(network, built)
    require_same_outputs(network, built, example_inputs, source.model)


def load(folder: Path | str) -> nn.Module:
    """Load the network of an artifact: on the CPU, in eval mode. See ``load_artifact``."""
    return load_artifact(folder).network


def load_artifact(folder: Path | str) -> Artifact:
    """Load an artifact: build its source, cut by each plan, fill in the weights.

    No file is unpickled, but the constructor that the source names is called: a ``file.py:factory``
    runs that file, and a ``UserWarning`` tells where it has changed since the artifact was saved. The
    global random state is left as it was.

    Raises:
        InputError: The folder or one of its files is missing, damaged or of a newer version, or the
            source cannot be built.
        PlanMismatchError: The constructor makes another network than the one that was saved.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    plans = tuple(Plan.load(folder / name) for name in manifest.plans)
    tensors = read_weights(folder / WEIGHTS_FILE, manifest.weights_sha256, manifest.ties)
    record = RunRecord.load(folder / RECORD_FILE) if (folder / RECORD_FILE).exists() else None
    spelled = folder / TOKENIZER_FILE
    tokenizer = TextTokenizer.read(spelled) if spelled.exists() else None
    source = find_source(manifest, folder)

    def fill(built: nn.Module) -> None:
        fill_(built, tensors, manifest.ties, manifest.buffers)

    network = rebuild(source, manifest, plans, fill)
    return Artifact(network, source, plans, manifest.recipe, record, tokenizer)


def _write(
    part: Path,
    network: nn.Module,
    source: Source,
    plans: Sequence[Plan],
    recipe: dict[str, Any],
    record: RunRecord | None,
) -> None:
    ties = write_weights(network, part / WEIGHTS_FILE)
    names = tuple(plan_file(index) for index in range(len(plans)))
    for name, plan in zip(names, plans, strict=True):
        plan.save(part / name)
    if record is not None:
        record.save(part / RECORD_FILE)
    manifest = Manifest(
        source=source.model_copy(update={"weights": None}),
        factory=note_factory(source),
        plans=names,
        ties=ties,
        buffers=unsaved_types(network),
        weights_sha256=file_sha256(part / WEIGHTS_FILE),
        recipe=recipe,
    )
    try:
        manifest.save(part / MANIFEST_FILE)
    except PydanticSerializationError as error:
        raise InputError(f"recipe or source.arguments is not JSON: {error}") from error


def _check_place(folder: Path) -> None:
    """Refuse a place whose replacement would lose anything but an artifact."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise InputError(f"folder={str(folder)!r} is a file; name a new folder")
    names = sorted(entry.name for entry in folder.iterdir())
    others = [name for name in names if not is_artifact_file(name)]
    if others or (names and MANIFEST_FILE not in names):
        raise InputError(
            f"folder={str(folder)!r} holds '{(others or names)[0]}', which is no artifact's; "
            "name a new or empty folder"
        )


def _compare(network: nn.Module, loaded: nn.Module) -> None:
    """Refuse a network that does not come back: non-persistent buffers are in no state."""
    back = dict(loaded.named_parameters()) | dict(loaded.named_buffers())
    for name, tensor in (*network.named_parameters(), *network.named_buffers()):
        if name not in back or not same_values(tensor, back[name]):
            raise PlanMismatchError(
                f"'{name}' of the network does not come back from its source and plans; name the "
                "source that it was built from, and register what the constructor does not set "
                "as a persistent buffer"
            )


def is_whole(folder: Path | str) -> bool:
    """Whether all files of an artifact are there, and its weights are those that were written."""
    folder = Path(folder)
    try:
        manifest = read_manifest(folder)
        for name in manifest.plans:
            Plan.load(folder / name)
        return file_sha256(folder / WEIGHTS_FILE) == manifest.weights_sha256
    except (InputError, OSError):
        return False
