"""Write a network for another runtime: ONNX, or PyTorch's own exported program (``.pt2``)."""

import copy
import hashlib
import inspect
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.jit._trace import TracerWarning

from prunus.artifact.place import unwritable
from prunus.errors import InputError
from prunus.extras import require_extra
from prunus.graph import check_inputs, check_network
from prunus.graph.eager import write_attention_out_

Inputs = Tensor | tuple[Tensor, ...] | Mapping[str, Tensor]
"""Inputs of one call: a tensor, positional arguments, or keyword arguments by name."""

Format = Literal["onnx", "pt2"]
ONNX_PACKAGES = ("onnx", "onnxruntime", "onnxscript")
"""What writing ONNX takes: the extra ``onnx``."""

_RECURRENT_OPSET = 17
_LARGEST_ONNX_BYTES = 2_000_000_000  # protobuf ends at 2^31; the graph itself needs a little room


def export(
    network: nn.Module,
    path: Path | str,
    example_inputs: Inputs,
    format: Format = "onnx",
    *,
    dynamic_batch: bool = True,
    dynamic_length: bool = False,
) -> None:
    """Write a network, in eval mode and on the CPU, as one file that needs no code of its own.

    The network itself is left as it is. The example inputs give shapes and data types and are not
    stored. Weights above 2 GB go to a second file, ``path`` with ``.data`` added, for ONNX.

    Args:
        network: Any network that ``torch.export`` can trace.
        path: File to write; its suffix is that of the format.
        example_inputs: Dimension 0 of every tensor is the batch.
        format: ``"onnx"`` or ``"pt2"``.
        dynamic_batch: Leave the batch size free; else it is that of the example inputs.
        dynamic_length: Leave dimension 1 free as well, the length of texts.

    Raises:
        InputError: Format or suffix is another, the network cannot be traced, or the file cannot be
            written.
        MissingExtraError: ``format`` is ``"onnx"`` and its packages are not installed.
    """
    check_network(network)
    check_inputs(example_inputs)
    path = Path(path)
    if format not in ("onnx", "pt2"):
        raise InputError(f"format={format!r} is not known; use 'onnx' or 'pt2'")
    if path.suffix != f".{format}":
        raise InputError(f"path={str(path)!r} must end in '.{format}' for format={format!r}")
    if path.is_dir():
        raise InputError(f"path={str(path)!r} is a folder; name a file")
    if format == "onnx":
        require_onnx()
    free = [*([0] if dynamic_batch else []), *([1] if dynamic_length else [])]
    example_inputs = _in_order(network, example_inputs)
    require_tensors(example_inputs)
    try:
        with _quiet():
            _write(network, path, example_inputs, free)
    except OSError as error:
        raise unwritable(path, error, "path") from error


def _write(network: nn.Module, path: Path, example_inputs: Inputs, free: Sequence[int]) -> None:
    """Write the file; its suffix is that of the format."""
    recurrent = any(isinstance(module, nn.RNNBase) for module in network.modules())
    if recurrent and path.suffix == ".onnx":
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_recurrent(network, path, example_inputs, free)
        return
    program = _trace(network, example_inputs, free)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".pt2":
        archive = io.BytesIO()  # torch ends the process where it cannot write to a file
        torch.export.save(program, archive)
        with _part_of(path) as part:
            part.write_bytes(archive.getbuffer())
        return
    _write_onnx(program, path)
    if _shares_parameters(network):
        store_once(path)


def require_onnx() -> None:
    """Refuse where the packages of the ``onnx`` extra are missing.

    Raises:
        MissingExtraError: Holds the command that installs them.
    """
    for package in ONNX_PACKAGES:
        require_extra(package, "onnx")


def arguments(inputs: Inputs) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """Inputs of a call as positional and keyword arguments."""
    if isinstance(inputs, Tensor):
        return (inputs,), {}
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return tuple(inputs), {}


def parameter_names(network: nn.Module) -> list[str]:
    """Names of the arguments of a network's ``forward``, in order; those of ``**kwargs`` are unknown."""
    return list(inspect.signature(network.forward).parameters)


def _in_order(network: nn.Module, inputs: Inputs) -> Inputs:
    """Keyword arguments in the order in which the network declares them, which is that of the file's."""
    if not isinstance(inputs, Mapping):
        return inputs
    declared = parameter_names(network)
    first = [name for name in declared if name in inputs]
    return {name: inputs[name] for name in (*first, *(n for n in inputs if n not in declared))}


def require_tensors(inputs: Inputs) -> None:
    """Refuse what a file does not take.

    Raises:
        InputError: An input is no tensor.
    """
    args, kwargs = arguments(inputs)
    for name, value in (*enumerate(args), *kwargs.items()):
        if not isinstance(value, Tensor):
            raise InputError(
                f"example_inputs[{name!r}] is a {type(value).__name__}: a file takes tensors alone; "
                "wrap the network in a module that gives it the rest"
            )


def cpu_copy(network: nn.Module) -> nn.Module:
    """A copy on the CPU, in eval mode: what is deployed."""
    return copy.deepcopy(network).cpu().eval()


def root_cause(error: BaseException) -> str:
    """Kind and cause of an error in one line; exporters wrap theirs in pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _trace(network: nn.Module, example_inputs: Inputs, free: Sequence[int]) -> ExportedProgram:
    args, kwargs = arguments(example_inputs)
    args = tuple(_example(tensor, free) for tensor in args)
    kwargs = {name: _example(tensor, free) for name, tensor in kwargs.items()}
    shapes: Any = None
    if free:
        # Unlike AUTO, an error where the network fixes the size.
        sizes = dict.fromkeys(free, Dim.DYNAMIC)
        shapes = dict.fromkeys(kwargs, sizes) if kwargs else tuple(sizes for _ in args)
    try:
        with torch.no_grad():
            deployed = cpu_copy(network)
            # Runtimes fuse it themselves; the fused operation's strides break ONNX's decomposition
            # where heads were cut (T5, Swin).
            write_attention_out_(deployed)
            program = torch.export.export(deployed, args, kwargs, dynamic_shapes=shapes)
    except Exception as error:  # a user's forward may raise anything in the tracer
        remedy = "; export with dynamic_batch=False and dynamic_length=False may do" if free else ""
        raise InputError(f"network cannot be exported: {root_cause(error)}{remedy}") from error
    program.example_inputs = None  # they would be stored: a user's data has no place in the file
    return program


def _example(tensor: Tensor, free: Sequence[int]) -> Tensor:
    """On the CPU, each free size at least two: the tracer takes a size of 1 for a constant."""
    tensor = tensor.cpu()
    for dim in free:
        if dim < tensor.ndim and tensor.shape[dim] == 1:
            tensor = torch.cat([tensor, tensor], dim)
    return tensor


def _shares_parameters(network: nn.Module) -> bool:
    seen = [id(p) for m in network.modules() for p in m._parameters.values() if p is not None]
    return len(set(seen)) < len(seen)


def store_once(path: Path) -> None:
    """Store equal constants of an ONNX file once: the exporter writes some shared weights twice."""
    onnx = import_module("onnx")
    if path.with_name(path.name + ".data").exists():
        return  # too large to be read into memory as a whole
    model = onnx.load(str(path))
    if any(a.HasField("g") or a.graphs for node in model.graph.node for a in node.attribute):
        return  # branches and loops read constants by name, too
    first: dict[bytes, str] = {}
    renamed: dict[str, str] = {}
    for constant in model.graph.initializer:
        content = onnx.TensorProto.FromString(constant.SerializeToString())
        content.ClearField("name")
        key = hashlib.sha256(content.SerializeToString(deterministic=True)).digest()
        renamed[constant.name] = first.setdefault(key, constant.name)
    for node in model.graph.node:
        for position, name in enumerate(node.input):
            node.input[position] = renamed.get(name, name)
    kept = [c for c in model.graph.initializer if renamed[c.name] == c.name]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    with _part_of(path) as part:
        onnx.save(model, str(part))


def _write_recurrent(
    network: nn.Module, path: Path, example_inputs: Inputs, free: Sequence[int]
) -> None:
    """Write a network with an LSTM as one operation of ONNX.

    The exporter of ``torch.export`` unrolls it, a step for each position, so that its length is
    fixed and its file large. PyTorch's older exporter keeps it whole.
    """
    args, kwargs = arguments(example_inputs)
    names = list(kwargs) or [f"input_{i}" for i in range(len(args))]
    axes = {name: {dim: f"dim_{dim}" for dim in free} for name in names}
    with _part_of(path) as part:
        try:
            with torch.no_grad(), warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always", TracerWarning)
                torch.onnx.export(
                    cpu_copy(network),
                    tuple(_example(tensor, free) for tensor in args),
                    str(part),
                    kwargs={name: _example(tensor, free) for name, tensor in kwargs.items()},
                    dynamo=False,
                    input_names=names,
                    output_names=["logits"],
                    dynamic_axes={**axes, "logits": {0: "dim_0"}} if free else None,
                    opset_version=_RECURRENT_OPSET,
                )
        except OSError:  # a disk that is full
            raise
        except Exception as error:  # a user's forward may raise anything in the tracer
            raise InputError(
                f"network cannot be exported to ONNX: {root_cause(error)}; try format='pt2'"
            ) from error
        fixed = next((w for w in told if _fixes(w)), None)
        if fixed is not None:
            raise InputError(
                f"network cannot be exported to ONNX: line {fixed.lineno} of {fixed.filename} makes a "
                "number of Python of a tensor, which the file would hold as it is for these inputs; "
                "compute with tensors there"
            )


@contextmanager
def _part_of(path: Path) -> Iterator[Path]:
    """A file beside its place, which goes there when it is whole, and away where it is not."""
    part = path.with_name(path.name + ".part")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _fixes(told: warnings.WarningMessage) -> bool:
    """Whether the tracer took a value for a constant, elsewhere than in PyTorch's own checks of inputs."""
    is_own = Path(told.filename).is_relative_to(Path(torch.__file__).parent)
    return issubclass(told.category, TracerWarning) and not is_own


def _write_onnx(program: ExportedProgram, path: Path) -> None:
    size = sum(t.numel() * t.element_size() for t in program.state_dict.values())
    try:
        onnx_program = torch.onnx.export(program, dynamo=True, verbose=False)
    except Exception as error:  # the exporter's errors are private to it
        raise InputError(
            f"network cannot be exported to ONNX: {root_cause(error)}; try format='pt2'"
        ) from error
    if onnx_program is None:
        raise InputError("network cannot be exported to ONNX; try format='pt2'")
    if size > _LARGEST_ONNX_BYTES:
        onnx_program.save(path, external_data=True)
        return
    with _part_of(path) as part:
        onnx_program.save(part, external_data=False)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporters' own notes (deprecations inside them, passes they skip) from the user."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        silent = io.StringIO()  # of the pages of graph that go with a failure
        with warnings.catch_warnings(), redirect_stdout(silent), redirect_stderr(silent):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
