"""Does the exported file compute what the network computes? Asked in the file's own runtime."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunus.artifact.export import (
    Inputs,
    arguments,
    cpu_copy,
    parameter_names,
    require_onnx,
    require_tensors,
    root_cause,
)
from prunus.errors import InputError
from prunus.graph import call, check_inputs, check_network, relative_difference
from prunus.graph.difference import ROUGH


def verify_export(path: Path | str, network: nn.Module, example_inputs: Inputs) -> float:
    """Largest relative difference of an exported file from its network, on the CPU.

    ``.onnx`` runs in ONNX Runtime, ``.pt2`` is loaded with ``torch.export.load``. The latter
    unpickles where a file asks for it: verify a ``.pt2`` that was exported here, never a
    stranger's. (The files of ``prunus.artifact.export`` hold raw tensors and JSON.)

    Args:
        path: The exported file.
        network: The network that was exported.
        example_inputs: As for ``export``; another batch size tests that the batch is free.

    Returns:
        The largest of ``max|a - b| / max|a|`` over the outputs, ``a`` the network's; infinite where
        a difference is not finite, or ``a`` is zero throughout and ``b`` is not.

    Raises:
        InputError: The file is missing, of another kind, cannot be run on these inputs, or gives
            another number or other shapes of outputs.
        MissingExtraError: The file is ``.onnx`` and ONNX Runtime is not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"path={str(path)!r} does not exist; name a file written by export")
    check_network(network)
    check_inputs(example_inputs)
    require_tensors(example_inputs)
    args, kwargs = arguments(example_inputs)
    args = tuple(tensor.cpu() for tensor in args)
    kwargs = {name: tensor.cpu() for name, tensor in kwargs.items()}
    with torch.no_grad():
        try:
            wanted = _tensors(call(cpu_copy(network), kwargs or args))
        except InputError:
            raise
        except Exception as error:  # a user's forward may raise anything
            raise InputError(
                f"example_inputs: the network does not run on them: {root_cause(error)}; give inputs "
                "as for export"
            ) from error
        if path.suffix == ".onnx":
            require_onnx()
            # A file's inputs have the names of the arguments, or of their places; it has none for an
            # argument that is never read.
            named = dict(zip(parameter_names(network), args, strict=False)) | kwargs
            placed = {f"input_{place}": tensor for place, tensor in enumerate(args)}
            found = _run_onnx(path, args, placed | named)
        elif path.suffix == ".pt2":
            found = _run_pt2(path, args, kwargs)
        else:
            raise InputError(f"path={str(path)!r} must end in '.onnx' or '.pt2'")
    if [t.shape for t in wanted] != [t.shape for t in found]:
        raise InputError(
            f"path={str(path)!r} gives outputs {[list(t.shape) for t in found]}, the network "
            f"{[list(t.shape) for t in wanted]}; export the network again"
        )
    pairs = [(a, b) for a, b in zip(wanted, found, strict=True) if a.numel()]
    return max((_difference(a, b) for a, b in pairs), default=0.0)


def _run_onnx(path: Path, args: Sequence[Tensor], named: Mapping[str, Tensor]) -> list[Tensor]:
    import onnxruntime  # noqa: PLC0415 (optional extra)

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors alone
    try:
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        names = [node.name for node in session.get_inputs()]
        feed = {name: named[name] for name in names if name in named}
        if len(names) == len(args) > len(feed):  # of *args
            feed = dict(zip(names, args, strict=True))
        outputs = session.run(None, {name: tensor.numpy() for name, tensor in feed.items()})
    except Exception as error:  # ONNX Runtime's errors have no common base
        raise InputError(_failed(path, error)) from error
    return [torch.as_tensor(output) for output in outputs]


def _run_pt2(path: Path, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> list[Tensor]:
    try:
        return _tensors(torch.export.load(path).module()(*args, **kwargs))
    except Exception as error:  # a damaged archive raises many kinds
        raise InputError(_failed(path, error)) from error


def _failed(path: Path, error: Exception) -> str:
    return (
        f"path={str(path)!r} cannot be run on these inputs: {root_cause(error)}; "
        "export the network again"
    )


def _tensors(output: Any) -> list[Tensor]:
    """All tensors of an output, in order: a tensor, or nested tuples, lists and mappings."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, Mapping):
        output = list(output.values())
    if isinstance(output, list | tuple):
        return [tensor for part in output for tensor in _tensors(part)]
    if output is None:
        return []
    raise InputError(f"network returns a {type(output).__name__}; only tensors can be compared")


def _difference(a: Tensor, b: Tensor) -> float:
    if not a.any() and b.any():
        return math.inf
    return relative_difference(a.double(), b.double(), share=ROUGH)
