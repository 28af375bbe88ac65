"""Parameters and buffers of a network in one safetensors file; a shared tensor is stored once."""

import hashlib
from collections.abc import Container, Hashable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from prunus.errors import InputError, PlanMismatchError
from prunus.graph.difference import same_values
from prunus.graph.file_size import FILE_METADATA
from prunus.meter.params import tensor_key
from prunus.meter.size import require_storable
from prunus.plan import NetworkShape


def write_weights(network: nn.Module, path: Path) -> dict[str, str]:
    """Write the state of a network.

    Returns:
        Names that share another name's tensor, and that other name: these are not in the file.

    Raises:
        InputError: The state holds something else than dense tensors with data.
    """
    state, ties = tied_state(network)
    tensors = {
        # Layout and storage are dropped: safetensors takes contiguous tensors that share nothing.
        name: tensor.cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in state.items()
        if name not in ties
    }
    write_tensors(tensors, path, dict(FILE_METADATA))
    return ties


def write_tensors(
    tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None
) -> None:
    """Write contiguous tensors that share nothing, for whoever may read the files beside them."""
    path.touch()
    mode = path.stat().st_mode
    save_file(tensors, path, metadata=metadata)
    path.chmod(mode)  # safetensors lets its owner alone read a file


def tied_state(network: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The state of a network by name, and the names that share another name's tensor with that name.

    Raises:
        InputError: The state holds something else than dense tensors with data.
    """
    state = _state(network)
    return state, _ties(state, dict(network.named_parameters(remove_duplicate=False)))


def read_weights(path: Path, sha256: str, ties: Mapping[str, str]) -> dict[str, Tensor]:
    """Read all names of a state, the shared ones included.

    Raises:
        InputError: The file is missing, is not the one that ``sha256`` was taken of, or a tie names
            a tensor that it does not hold.
    """
    try:
        found = file_sha256(path)
        tensors = load_file(path)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except SafetensorError as error:
        raise InputError(f"{path} is damaged ({error}); save the artifact again") from error
    if found != sha256:
        raise InputError(
            f"{path} is not the file that was saved (its SHA-256 differs); save the artifact again"
        )
    for alias, name in ties.items():
        if name not in tensors:
            raise InputError(f"{path} holds no '{name}', which '{alias}' shares")
        tensors[alias] = tensors[name]
    return tensors


def unsaved_types(network: nn.Module) -> dict[str, str]:
    """Data types of floating buffers that are in no state, by name: casts of a network may leave them out."""
    state = network.state_dict()
    return {
        name: str(buffer.dtype).removeprefix("torch.")
        for name, buffer in network.named_buffers()
        if name not in state and buffer.is_floating_point()
    }


def fill_(
    network: nn.Module,
    tensors: Mapping[str, Tensor],
    ties: Mapping[str, str],
    types: Mapping[str, str] | None = None,
) -> None:
    """Give a network the tensors, with their data types, and share those that are tied.

    Args:
        network: As its constructor and plans make it.
        tensors: Its whole state.
        ties: As ``tied_state`` tells them.
        types: As ``unsaved_types`` tells them; None where they were not noted: such buffers are cast
            as the whole network was.

    Raises:
        InputError: A noted data type is none.
        PlanMismatchError: A name is missing on either side, a shape differs, or the network shares
            a tensor whose values are not the same under both names.
    """
    what = "the saved state"
    NetworkShape(tensors=_shapes(tensors)).require(
        NetworkShape(tensors=_shapes(_state(network))), what
    )
    tie_(network, ties)
    spread_(network)
    if types is None:
        _cast_unsaved_(network, tensors)
    else:
        _give_types_(network, types)
    with torch.no_grad():
        for name, current in network.state_dict(keep_vars=True).items():
            if current.dtype != tensors[name].dtype:
                current.data = current.data.to(tensors[name].dtype)
    network.load_state_dict(dict(tensors), strict=True)
    for name, tensor in network.state_dict().items():
        if not same_values(tensor, tensors[name]):
            raise PlanMismatchError(
                f"{what} is for another network: '{name}' shares its tensor with another name "
                "here, and did not when it was saved; use the constructor that it was saved with"
            )


def require_saved(network: nn.Module) -> None:
    """Refuse a network whose state cannot be written.

    Raises:
        InputError: The state holds something else than dense tensors with data.
    """
    _state(network)


def state_shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shapes of the state of a network, by name."""
    return _shapes(_state(network))


def tie_(network: nn.Module, ties: Mapping[str, str]) -> None:
    """Share the tensors that were shared when the network was saved.

    Raises:
        PlanMismatchError: A name is none of a parameter or buffer.
    """
    for alias, name in ties.items():
        _place(network, alias, _fetch(network, name))


def spread_(network: nn.Module) -> None:
    """Give every value of the state memory of its own: ``expand`` leaves many in one place, to write none."""
    for tensor in network.state_dict(keep_vars=True).values():
        if 0 in tensor.stride():
            tensor.data = tensor.data.contiguous()


def _cast_unsaved_(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Cast buffers that are in no state as the whole network was, where it was: ``half()`` and its kin."""
    state = network.state_dict(keep_vars=True)
    built = {tensor.dtype for tensor in state.values() if tensor.is_floating_point()}
    saved = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
    if len(built) != 1 or len(saved) != 1 or built == saved:
        return
    for name, buffer in network.named_buffers():
        if name not in state and {buffer.dtype} == built:
            buffer.data = buffer.data.to(next(iter(saved)))


def _give_types_(network: nn.Module, types: Mapping[str, str]) -> None:
    """Cast buffers to the data types that were noted."""
    buffers = dict(network.named_buffers())
    for name, kind in types.items():
        dtype = getattr(torch, kind, None)
        if not isinstance(dtype, torch.dtype):
            raise InputError(
                f"buffer '{name}' was saved as {kind!r}, which is no data type of this PyTorch; save the "
                "artifact again"
            )
        if name in buffers:
            buffers[name].data = buffers[name].data.to(dtype)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _state(network: nn.Module) -> dict[str, Tensor]:
    state = network.state_dict()
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise InputError(
                f"network holds '{name}' of type {type(value).__name__}: only tensors are saved, "
                "so that no file has to be unpickled; keep it in the constructor's arguments"
            )
        if value.is_meta:
            raise InputError(f"network holds no data for '{name}' (meta device); load it first")
    require_storable(state)
    return state


def _shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def _ties(state: Mapping[str, Tensor], parameters: Container[str]) -> dict[str, str]:
    """Names whose tensor came earlier under another name: same memory, seen in the same way.

    A buffer that lies in the memory of a parameter is no tie: neither can stand in the other's place.
    """
    first: dict[Hashable, str] = {}
    ties = {}
    for name, tensor in state.items():
        if tensor.numel() == 0:  # has no memory to share
            continue
        key = (tensor_key(tensor), name in parameters)
        if (owner := first.setdefault(key, name)) != name:
            ties[name] = owner
    return ties


def _fetch(network: nn.Module, name: str) -> Tensor:
    module, _, leaf = name.rpartition(".")
    tensor = getattr(network.get_submodule(module), leaf)
    if not isinstance(tensor, Tensor):
        raise PlanMismatchError(f"'{name}' of the network is not a parameter or buffer")
    return tensor


def _place(network: nn.Module, name: str, tensor: Tensor) -> None:
    if _fetch(network, name) is not tensor:
        module, _, leaf = name.rpartition(".")
        setattr(network.get_submodule(module), leaf, tensor)
