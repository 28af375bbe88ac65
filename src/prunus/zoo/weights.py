"""Load a checkpoint into a network: tensors only, nothing is unpickled."""

import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from prunus.errors import InputError
from prunus.sound import REMEDY, fault

_TORCH_SUFFIXES = (".pt", ".pth", ".th")
_WRAPPERS = ("state_dict", "model_state_dict", "model")
_DATA_PARALLEL = "module."


def load_weights(network: nn.Module, path: str | Path) -> None:
    """Load a checkpoint in place, cast to the network's own types (float16 files become float32).

    Reads ``.safetensors``, and ``.th``, ``.pt``, ``.pth`` files of plain tensors, unwraps
    ``{"state_dict": ...}`` and strips the ``module.`` of data-parallel training. Every tensor must
    be there with its shape, save for ``num_batches_tracked``, which old files lack, and names tied
    to a tensor that is there. On failure the network is left untouched.

    Args:
        network: Receives the weights.
        path: A file; a bare name is also looked for in ``$PRUNUS_DATA/checkpoints``.

    Raises:
        InputError: The file is missing, of another kind or unreadable, or a tensor is missing,
            unexpected, of another shape, or holds what no network can compute with.
    """
    file = find_weights(path)
    tensors = _read(file)
    expected = network.state_dict(keep_vars=True)
    if all(name.startswith(_DATA_PARALLEL) for name in tensors) and not all(
        name.startswith(_DATA_PARALLEL) for name in expected
    ):
        tensors = {name.removeprefix(_DATA_PARALLEL): value for name, value in tensors.items()}
    _require_match(expected, tensors, file)
    _require_sound(expected, tensors, file)
    network.load_state_dict(tensors, strict=False)


def find_weights(name: str | Path) -> Path:
    """The file itself, or the one of that name among the data's checkpoints.

    Raises:
        InputError: There is neither.
    """
    path = Path(name)
    places = [path]
    data = os.environ.get("PRUNUS_DATA")
    if data and path.name == str(path):
        places.append(Path(data) / "checkpoints" / path)
    for place in places:
        if place.is_file():
            return place
    looked = " and ".join(f"'{place}'" for place in places)
    remedy = "" if data else "; or set PRUNUS_DATA to the folder that holds checkpoints/"
    raise InputError(
        f"weights '{path}' not found, looked at {looked}: give an existing file{remedy}"
    )


def _read(file: Path) -> dict[str, Tensor]:
    suffix = file.suffix.lower()
    if suffix == ".safetensors":
        try:
            return load_file(file)
        except (SafetensorError, OSError) as error:
            raise InputError(
                f"weights '{file}' is not a readable safetensors file ({error}): "
                "fetch or save it again"
            ) from error
    if suffix not in _TORCH_SUFFIXES:
        raise InputError(
            f"weights '{file}' has the suffix '{suffix}': "
            f"use .safetensors, {', '.join(_TORCH_SUFFIXES)}"
        )
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # bytes that are no checkpoint may end in any error of the unpickler
        raise InputError(
            f"weights '{file}' cannot be read as plain tensors: save network.state_dict() "
            "with safetensors.torch.save_file and use that"
        ) from error
    return _unwrap(content, file)


def _unwrap(content: Any, file: Path) -> dict[str, Tensor]:
    for key in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    if not isinstance(content, dict) or not content:
        raise InputError(
            f"weights '{file}' holds {type(content).__name__}, not named tensors: "
            "save network.state_dict()"
        )
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise InputError(
                f"weights '{file}' holds {type(value).__name__} under '{name}', not a tensor: "
                "save network.state_dict()"
            )
        if value.is_meta or value.layout != torch.strided:
            kind = "on the meta device, without values" if value.is_meta else f"of {value.layout}"
            raise InputError(
                f"weights '{file}' hold a tensor '{name}' {kind}: save dense tensors (to_dense())"
            )
    return content


def _require_match(expected: dict[str, Tensor], found: dict[str, Tensor], file: Path) -> None:
    """Refuse a checkpoint of another network, naming the first tensor that differs."""
    remedy = "build the network with the model name, num_classes and width it was trained with"
    present = {id(expected[name]) for name in found if name in expected}
    for name, tensor in expected.items():
        if name not in found:
            tied = id(tensor) in present
            if not tied and name.rpartition(".")[2] != "num_batches_tracked":
                raise InputError(f"weights '{file}' lack the tensor '{name}': {remedy}")
        elif found[name].shape != tensor.shape:
            raise InputError(
                f"weights '{file}' have '{name}' of shape {list(found[name].shape)}, the network "
                f"needs {list(tensor.shape)}: {remedy}"
            )
    for name in found:
        if name not in expected:
            raise InputError(f"weights '{file}' have an unexpected tensor '{name}': {remedy}")


def _require_sound(expected: dict[str, Tensor], found: dict[str, Tensor], file: Path) -> None:
    """Refuse what is not finite in the network's own types, or a variance below 0, by name."""
    for name, value in found.items():
        wrong = fault(name, expected[name], value.to(expected[name].dtype))
        if wrong:
            raise InputError(f"weights '{file}': tensor '{name}' {wrong}: {REMEDY}")
