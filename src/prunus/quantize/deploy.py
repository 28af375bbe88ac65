"""Write a network for an engine, and load it there again."""

import copy
import inspect
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from prunus.artifact.export import ONNX_PACKAGES, root_cause
from prunus.artifact.place import UnwritableError, replace_folder, unwritable
from prunus.artifact.rebuild import check_source
from prunus.artifact.weights import file_sha256
from prunus.data import Inputs, TextTokenizer
from prunus.errors import DataError, InputError, PrunusError
from prunus.extras import require_installed
from prunus.graph import check_network
from prunus.meter import as_predictor
from prunus.plan import Plan
from prunus.progress import Progress
from prunus.quantize import onnx_runtime, open_vino, torch_engine
from prunus.quantize.fitted import fitted
from prunus.quantize.fixed_shape import padding_of, require_shape
from prunus.quantize.job import Job, Written, trial, unmatched
from prunus.quantize.options import Deployment
from prunus.quantize.session import DEPLOYED_FILE, Deployed, Session, checked_threads
from prunus.records import Source

_WRITERS = {
    "torch": torch_engine.write,
    "onnxruntime": onnx_runtime.write,
    "openvino": open_vino.write,
}
_LOADERS: dict[str, Callable[[Path, Deployed, int | None], Session]] = {
    "torch": torch_engine.TorchSession,
    "onnxruntime": onnx_runtime.OnnxSession,
    "openvino": open_vino.OpenVinoSession,
}
_ONNX = tuple((package, "onnx") for package in ONNX_PACKAGES)
_NEEDS: dict[str, tuple[tuple[str, str], ...]] = {
    "torch": (),
    "onnxruntime": _ONNX,
    "openvino": (*_ONNX, ("openvino", "openvino")),
}
_PACKAGES = ("torch", "onnx", "onnxruntime", "openvino", "nncf", "prunus")


def deploy(  # noqa: PLR0913  # all but three are options, by keyword only
    network: nn.Module,
    folder: Path | str,
    deployment: Deployment,
    *,
    inputs: Inputs,
    calibration: Iterable[Inputs] | None = None,
    source: Source | None = None,
    plans: Sequence[Plan] = (),
    dynamic_length: bool = False,
    tokenizer: TextTokenizer | None = None,
    progress: Progress | None = None,
) -> Deployed:
    """Write a network for an engine, quantized as asked for. The network is not touched.

    The folder is written beside its place and then renamed: a killed deployment leaves none. An
    older deployment in its place is replaced.

    Args:
        network: Written in float32 where it holds other floats: engines quantize no others.
        folder: New, empty, or an older deployment and nothing else.
        deployment: Engine and number formats.
        inputs: A real batch.
        calibration: Real batches that ranges of activations are measured on, where they are needed,
            and that the weights of int8 layers are fitted to.
        source: Builds the network before the first plan; needed for ``engine="torch"``.
        plans: That led from there to the network.
        dynamic_length: Whether dimension 1 of the inputs is a length that changes (texts).
        tokenizer: Of texts, kept beside the network.
        progress: Told how far the weights of int8 layers are fitted.

    Raises:
        InputError: The network cannot be written, or the folder cannot be used.
        PlanMismatchError: The source builds another network than this one.
        MissingExtraError: The engine is not installed.
    """
    check_network(network)
    if source is not None:
        check_source(source)
    _check_inputs(inputs, "inputs")
    folder = Path(folder).resolve()
    _check_place(folder)
    require_deployable(deployment, has_source=source is not None)
    require_shape(deployment, has_length=dynamic_length)
    if deployment.engine == "torch":
        torch_engine.require_own_weights(network, deployment)
    batches = _calibration(calibration, deployment)
    written_network = _network_in_float32(network)
    notes = unmatched(network, deployment)
    if written_network is not network:
        notes += ("floats of other formats than float32 are written as float32",)
    written_network, told = fitted(written_network, deployment, batches, progress)
    job = Job(
        written_network,
        deployment,
        _in_float32(inputs),
        batches,
        source,
        tuple(plans),
        dynamic_length,
    )
    part = folder.with_name(f".{folder.name}.part-{os.getpid()}")
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        written = _WRITERS[deployment.engine](job, part)
        if tokenizer is not None:
            tokenizer.save(part / "tokenizer.json")
        record = _record(part, job, written, (*told, *notes))
        record.save(part / DEPLOYED_FILE)
        if deployment.engine == "torch":  # what reads weights past int8 layers finds none there
            _require_runs(part, record, job)
        replace_folder(part, folder)
    except (OSError, SafetensorError, UnwritableError) as error:  # the last may tell of the part
        raise unwritable(folder, error) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return record


def require_deployable(deployment: Deployment, *, has_source: bool) -> None:
    """Refuse what ``deploy`` would refuse whatever the network is, before there is one.

    Args:
        deployment: Engine and number formats.
        has_source: Whether the source of the network will be known.

    Raises:
        InputError: ``engine="torch"`` has no source, or layers are excluded from a format of all.
        MissingExtraError: The engine is not installed.
    """
    if not isinstance(deployment, Deployment):
        raise InputError(
            f"deployment is a {type(deployment).__name__}; give one such as "
            "Deployment(engine='onnxruntime', weights='int8')"
        )
    # Not in ``Deployment``: records of deployments from before this was refused are still read.
    if deployment.exclude and deployment.weights in ("float16", "bfloat16"):
        raise InputError(
            f"exclude={list(deployment.exclude)} is for what int8 leaves in float32, and "
            f"weights={deployment.weights} is for all layers; leave it out, or use weights=int8"
        )
    if deployment.engine == "torch" and not has_source:
        raise InputError(torch_engine.NO_SOURCE)
    for package, extra in _NEEDS[deployment.engine]:
        require_installed(package, extra)
    if deployment.engine == "openvino" and "int8" in (deployment.weights, deployment.embeddings):
        require_installed("nncf", "openvino")


def load_deployed(folder: Path | str, threads: int | None = None) -> Session:
    """Load a deployed network in its engine. Its files are checked against their SHA-256.

    Args:
        folder: Written by ``deploy``.
        threads: CPU threads of the session; the engine's own choice where left out.

    Raises:
        InputError: There is no deployment, ``threads`` is no number from 1 up, or the engine cannot
            load it.
        DataError: A file was changed.
        MissingExtraError: The engine is not installed.
    """
    threads = checked_threads(threads)
    folder = Path(folder)
    record = read_deployed(folder)
    return _LOADERS[record.deployment.engine](folder, record, threads)


def read_deployed(folder: Path) -> Deployed:
    """The record of a deployed network, all of whose files are as they were written.

    Raises:
        InputError: There is no deployment, or its record is damaged.
        DataError: A file was changed.
    """
    file = folder / DEPLOYED_FILE
    if not file.is_file():
        raise InputError(f"'{folder}' holds no {DEPLOYED_FILE}; name a folder written by deploy")
    record = Deployed.load(file)
    for name, sha256 in record.files.items():
        path = folder / name
        if not path.is_file() or file_sha256(path) != sha256:
            state = "has changed" if path.is_file() else "is missing"
            raise DataError(f"'{path}' {state} since it was deployed; deploy the network again")
    return record


def _check_place(folder: Path) -> None:
    """Refuse a place whose replacement would lose anything but a deployment."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise InputError(f"folder={str(folder)!r} is a file; name a new folder")
    record = folder / DEPLOYED_FILE
    own = {DEPLOYED_FILE, *Deployed.load(record).files} if record.is_file() else set()
    others = sorted(entry.name for entry in folder.iterdir() if entry.name not in own)
    if others:
        raise InputError(
            f"folder={str(folder)!r} holds '{others[0]}', which is no deployment's; name a new or "
            "empty folder"
        )


def _require_runs(part: Path, record: Deployed, job: Job) -> None:
    """Refuse to leave files that cannot be loaded, or run on the inputs that they were written for.

    Raises:
        InputError: They cannot, or answer with no numbers where the network does.
    """
    try:
        session = _LOADERS[record.deployment.engine](part, record, None)
        logits = session(copy.deepcopy(job.inputs))  # which the network may change
    except PrunusError as error:
        raise InputError(
            f"engine={record.deployment.engine} has written what does not run: "
            f"{root_cause(error)}; exclude the layers whose weights the network reads past them, or "
            "use engine=onnxruntime"
        ) from error
    if bool(logits.isfinite().all()):
        return
    own = as_predictor(trial(job.network))(copy.deepcopy(job.inputs))
    if bool(own.isfinite().all()):
        asked = record.deployment
        remedy = "bfloat16" if asked.weights == "float16" else "float32"
        raise InputError(
            f"weights={asked.weights} with engine={asked.engine} answers the inputs with infinities or "
            f"NaN, where the network answers with numbers; use weights={remedy}"
        )


def _network_in_float32(network: nn.Module) -> nn.Module:
    """The network, or a copy of it in float32 where some of its parameters are other floats."""
    floats = [p.dtype for p in network.parameters() if p.is_floating_point()]
    if all(dtype == torch.float32 for dtype in floats):
        return network
    return copy.deepcopy(network).float()


def _calibration(given: Iterable[Inputs] | None, deployment: Deployment) -> tuple[Inputs, ...]:
    """Batches to measure on, whose floats are float32.

    Raises:
        InputError: They are needed and none are given, or what is given are no batches.
    """
    if isinstance(given, Tensor | Mapping):
        raise InputError("calibration is one batch; give several, as in [batch]")
    if given is not None and not isinstance(given, Iterable):
        raise InputError(
            f"calibration is of type {type(given).__name__}; give batches, as in [batch]"
        )
    batches = tuple(() if given is None else given)
    for index, batch in enumerate(batches):
        _check_inputs(batch, f"calibration[{index}]")
    if (deployment.is_calibrated or deployment.rounding == "gptq") and not batches:
        asked = "" if deployment.is_calibrated else " with rounding=gptq"
        raise InputError(
            f"calibration is missing: int8 of engine={deployment.engine}{asked} is measured on real "
            "batches; give some"
        )
    return tuple(_in_float32(batch) for batch in batches)


def _check_inputs(inputs: object, name: str) -> None:
    if not isinstance(inputs, Tensor | Mapping):
        raise InputError(
            f"{name} is a {type(inputs).__name__}; give a tensor, or tensors by the names of the "
            "network's arguments"
        )


def _in_float32(inputs: Inputs) -> Inputs:
    """Inputs on the CPU, whose floats are float32."""
    placed: Inputs = (
        _placed(inputs)
        if isinstance(inputs, Tensor)
        else {name: _placed(value) for name, value in inputs.items()}
    )
    return placed


def _placed(value: Any) -> Any:
    """A tensor there; anything else that a network is called with, as it is."""
    if not isinstance(value, Tensor):
        return value
    return value.cpu().float() if value.is_floating_point() else value.cpu()


def _record(part: Path, job: Job, written: Written, notes: Sequence[str]) -> Deployed:
    files = {p.name: file_sha256(p) for p in sorted(part.iterdir()) if p.is_file()}
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return Deployed(
        deployment=job.deployment,
        files=files,
        model_files=written.model_files,
        size_bytes=sum((part / name).stat().st_size for name in written.model_files),
        versions=versions,
        notes=(*written.notes, *notes),
        arguments=_arguments(job),
        given=tuple(job.inputs) if isinstance(job.inputs, Mapping) else (),
        padding=padding_of(job.network),
    )


def _arguments(job: Job) -> tuple[str, ...]:
    """Of the network's ``forward``, in order; those of ``**kwargs`` in the order that they were given in."""
    if isinstance(job.inputs, Tensor):
        return ()
    named = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(job.network.forward).parameters.values()
    declared = tuple(one.name for one in parameters if one.kind in named)
    return (*declared, *(name for name in job.inputs if name not in declared))
