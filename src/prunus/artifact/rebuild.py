"""Build a saved network again: find its constructor, cut, fill in the weights, compare outputs."""

import copy
import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from prunus.artifact.export import cpu_copy
from prunus.artifact.manifest import FactoryFile, Manifest
from prunus.artifact.weights import file_sha256
from prunus.errors import InputError, PlanMismatchError, PrunusError, first_line
from prunus.graph import Inputs, call, cut, network_shape
from prunus.graph.difference import (
    FINE,
    FIRST,
    dense_tensors,
    relative_difference,
    same_values,
    same_whole_numbers,
)
from prunus.graph.double import FLOAT64_LIMIT, InDouble
from prunus.graph.inputs import cast, recast_
from prunus.plan import Plan
from prunus.records import Source
from prunus.seeding import seeded
from prunus.zoo import load_source, without_weights
from prunus.zoo.hugging_face import INLINE
from prunus.zoo.own_code import code_sha256

# The same operations on the same weights: room for kernels that torch picks by memory alignment.
_TOLERANCE = 1e-6
_CONFIG = "config.json"


def check_source(source: object) -> None:
    """Refuse what is no source, such as its name alone.

    Raises:
        InputError: It is something else.
    """
    if not isinstance(source, Source):
        raise InputError(
            f"source is a {type(source).__name__}; give prunus.Source(model=..., arguments=...)"
        )


def note_factory(source: Source) -> FactoryFile | None:
    """Where the file of a ``file.py:factory``, or the config of an ``hf:FOLDER``, is and what it holds.

    None for other sources. Files beside a ``file.py`` that it imports are a part of its SHA-256.
    """
    path = _factory_path(source)
    if path is None or not path.is_file():
        return None
    path = path.resolve()
    digest = code_sha256(path) if path.suffix == ".py" else file_sha256(path)
    return FactoryFile(path=str(path), sha256=digest)


def find_source(manifest: Manifest, folder: Path) -> Source:
    """The source with its file where it is now: its old place, the working directory, or beside.

    Raises:
        InputError: The file is in none of these places; the message names them.
    """
    source, given = manifest.source, _factory_path(manifest.source)
    if manifest.factory is None or given is None:
        return source
    old, last = Path(manifest.factory.path), 2 if given.name == _CONFIG else 1
    own = Path(*given.parts[-last:]) if given.is_absolute() else given
    beside = folder.resolve().parent.joinpath(*old.parts[-last:])
    places = list(dict.fromkeys([old, Path.cwd() / own, beside]))
    for place in places:
        if place.is_file():
            name = source.model.rpartition(":")[2]
            model = f"hf:{place.parent}" if last == 2 else f"{place}:{name}"
            return source.model_copy(update={"model": model})
    tried = ", ".join(f"'{place}'" for place in places)
    raise InputError(
        f"the artifact '{folder}' is built by '{source.model}', whose file is not at {tried}; put "
        "it at one of these places"
    )


def rebuild(
    source: Source,
    manifest: Manifest,
    plans: Sequence[Plan],
    fill: Callable[[nn.Module], object],
) -> nn.Module:
    """The network: its constructor's, cut by each plan, filled with what was saved; in eval mode.

    Warns where the constructor's file has changed since and what it makes still fits.

    Raises:
        PrunusError: The constructor fails, or makes another network than the one that was saved; the
            message says so where its file has changed since.
    """
    try:
        network = load_source(without_weights(source))
        for name, plan in zip(manifest.plans, plans, strict=True):
            plan.source.require(network_shape(network), name)
            network = cut(network, plan)
        fill(network)
    except PrunusError as error:
        changed = _changed_file(source, manifest)
        if changed is None:
            raise
        raise type(error)(
            f"{error} ('{changed}' has changed since the artifact was saved, or a file that it imports: "
            "the SHA-256 differs)"
        ) from error
    changed = _changed_file(source, manifest)
    if changed is not None:
        warnings.warn(
            f"'{changed}' has changed since the artifact was saved, or a file that it imports (the SHA-256 "
            "differs): outputs may differ; put the old files back, or save the artifact anew",
            stacklevel=3,  # who called what loads it
        )
    return network.eval()


def _changed_file(source: Source, manifest: Manifest) -> str | None:
    """The constructor's file, where it is not the one that the artifact was saved with."""
    now = note_factory(source)
    if manifest.factory is None or now is None or now.sha256 == manifest.factory.sha256:
        return None
    return now.path


def require_same_outputs(
    network: nn.Module,
    loaded: nn.Module,
    inputs: Inputs,
    model: str,
    argument: str = "example_inputs",
) -> None:
    """Refuse a source that makes another architecture with the same tensors.

    Outputs in eval mode on the CPU must agree to the bit, or within 1e-6, small values beside large
    ones as well; where rounding exceeds that, float64 decides, within 1e-10.

    Args:
        network: As it was given.
        loaded: As the source builds it, with the same weights.
        inputs: A real batch.
        model: Name of the source.
        argument: What the user calls the batch.

    Raises:
        PlanMismatchError: They differ.
        InputError: The network does not run on the inputs.
    """
    wanted, found = (_outputs(one, inputs, argument) for one in (network, loaded))
    same = len(wanted) == len(found) and all(
        same_values(a, b) for a, b in zip(wanted, found, strict=True)
    )
    if same:
        return
    limit, difference = _TOLERANCE, _apart(wanted, found, FIRST)
    if not difference <= limit:
        try:
            with InDouble():
                mine, theirs = (
                    _outputs(one, inputs, argument, torch.float64) for one in (network, loaded)
                )
            limit, difference = FLOAT64_LIMIT, _apart(mine, theirs, FINE)
        except InputError:  # it does not run in float64: small values cannot be told from rounding
            difference = _apart(wanted, found, 1.0)
    if not difference <= limit:
        raise PlanMismatchError(
            f"source '{model}' builds another network than the one given: with the same weights its "
            f"outputs on {argument} differ by {difference:.1e}, relative to their size; name the source, "
            "with the arguments, that the network was built from"
        )


def _apart(wanted: list[Tensor], found: list[Tensor], share: float) -> float:
    """Relative difference of outputs, infinite where classes and other whole numbers differ."""
    if not same_whole_numbers(wanted, found):
        return math.inf
    return relative_difference(wanted, found, share=share)


def _outputs(
    network: nn.Module, inputs: Inputs, argument: str, dtype: torch.dtype | None = None
) -> list[Tensor]:
    """Outputs of a copy in eval mode, in the memory layout that a loaded network has.

    Args:
        network: Not touched.
        inputs: A real batch.
        argument: What the user calls it.
        dtype: The precision to run in; its own where left out.
    """
    own = cpu_copy(network)
    for parameter in own.parameters():
        parameter.data = parameter.data.contiguous()
    inputs = copy.deepcopy(inputs)  # which it may change
    with seeded(0):
        try:
            if dtype is not None:
                own, inputs = recast_(own, dtype), cast(inputs, dtype)
            return dense_tensors(call(own, inputs))
        except Exception as error:  # a user's forward may raise anything
            reason = first_line(error)
            raise InputError(
                f"{argument}: the network does not run on them: {reason}; give one real batch"
            ) from error


def _factory_path(source: Source) -> Path | None:
    """The file of a ``file.py:factory``, or the config in the folder that ``hf:`` names."""
    if source.model == INLINE:
        return None
    if source.model.startswith("hf:"):
        return Path(source.model.removeprefix("hf:")) / _CONFIG
    path, separator, _ = source.model.rpartition(":")
    return Path(path) if separator and path.endswith(".py") else None
