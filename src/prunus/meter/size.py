"""Bytes on disk. One megabyte is 10^6 bytes."""

import json
from collections.abc import Collection, Hashable, Mapping
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from prunus.errors import InputError
from prunus.graph.file_size import file_bytes
from prunus.meter.params import require_shapes, tensor_key

BYTES_PER_MB = 1_000_000


def file_size_bytes(network: nn.Module) -> int:
    """Bytes of the file of weights that an artifact holds; tied tensors are stored once.

    Raises:
        InputError: The state dict holds something else than tensors with values.
    """
    tensors = stored_tensors(network)
    laid = _file_types({tensor.dtype for tensor in tensors.values()})
    return file_bytes(
        {name: tuple(tensor.shape) for name, tensor in tensors.items()},
        {name: tensor.element_size() for name, tensor in tensors.items()},
        {name: laid[tensor.dtype] for name, tensor in tensors.items()},
    )


def _file_types(dtypes: Collection[torch.dtype]) -> dict[torch.dtype, tuple[int, str]]:
    """Where each type lies in a file and what it is called there, as a small file shows."""
    raw = safetensors.torch.save({str(dtype): torch.zeros(1).to(dtype) for dtype in dtypes})
    head = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    return {
        dtype: (head[str(dtype)]["data_offsets"][0], head[str(dtype)]["dtype"]) for dtype in dtypes
    }


def stored_tensors(network: nn.Module) -> dict[str, Tensor]:
    """What a file of a network's state dict holds: its tensors by name, tied ones once.

    Raises:
        InputError: The state dict holds something else than tensors with values.
    """
    require_shapes(network)
    tensors: dict[str, Tensor] = {}
    seen: set[Hashable] = set()
    parameters = dict(network.named_parameters(remove_duplicate=False))
    for name, tensor in network.state_dict().items():
        if not isinstance(tensor, Tensor):
            raise InputError(
                f"network's state dict holds '{name}' of type {type(tensor).__name__}, which a "
                "safetensors file cannot store; measure the exported file with path_size_bytes"
            )
        if tensor.is_meta:
            raise InputError(
                f"network's '{name}' is on the meta device, which holds no values; "
                "load its weights first"
            )
        # A buffer in the memory of a parameter is stored beside it: they come back as two.
        key = (tensor_key(tensor), name in parameters)
        if key not in seen:
            seen.add(key)
            tensors[name] = tensor.detach()
    require_storable(tensors)
    return tensors


def require_storable(tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors that are not plain, or of a type that the file's form has no name for.

    Raises:
        InputError: There is one; types are found by trying, for what the form knows grows with its
            versions.
    """
    first: dict[torch.dtype, str] = {}
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_quantized:
            kind = tensor.dtype if tensor.is_quantized else tensor.layout
            raise InputError(
                f"network's '{name}' is of {kind}, and a safetensors file stores dense tensors: register "
                "it with persistent=False where the constructor makes it, or keep it dense and convert "
                "it in forward()"
            )
        first.setdefault(tensor.dtype, name)
    for dtype, name in first.items():
        try:
            safetensors.torch.save({name: torch.zeros(1).to(dtype)})
        except KeyError as error:
            raise InputError(
                f"network's '{name}' is of {dtype}, which a safetensors file cannot store; keep it in "
                "another type, such as complex64 or float64, or in the constructor's arguments"
            ) from error


def path_size_bytes(path: Path | str) -> int:
    """Bytes of a file, or of all files in a folder and below.

    Raises:
        InputError: Nothing is there.
    """
    place = Path(path)
    if place.is_file():
        return place.stat().st_size
    if place.is_dir():
        return sum(file.stat().st_size for file in place.rglob("*") if file.is_file())
    raise InputError(f"path={str(path)!r} does not exist; give a file or a folder")


def format_bytes(size_bytes: int) -> str:
    """A size in megabytes of 10^6 bytes.

    >>> format_bytes(44_700_000)
    '44.70 MB'
    """
    return f"{size_bytes / BYTES_PER_MB:.2f} MB"
