"""The device that something runs on."""

import torch

from prunus.errors import InputError


def resolve_device(device: str | torch.device) -> torch.device:
    """The device of that name, with its index.

    Raises:
        InputError: It is neither the CPU nor a CUDA device of this machine.
    """
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise InputError(f"device={device!r} is not a device; use 'cpu' or 'cuda'") from error
    if found.type == "cpu":
        return found
    if found.type != "cuda":
        raise InputError(f"device={device!r} is not supported; use 'cpu' or 'cuda'")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    index: int | None = found.index  # None for a bare "cuda"
    if (index or 0) >= count:
        raise InputError(f"device={device!r}: {count} CUDA devices are available; use 'cpu'")
    return torch.device("cuda", torch.cuda.current_device() if index is None else index)
