"""Where something is measured."""

import torch

from prunus.errors import InputError


def require_device(device: str | torch.device) -> torch.device:
    """The device that is named.

    Raises:
        InputError: It is none that can be measured on, or not there.
    """
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise InputError(f"device={device!r} is not a device; use 'cpu' or 'cuda'") from error
    if place.type not in {"cpu", "cuda"}:
        raise InputError(f"device={str(device)!r} cannot be measured on; use 'cpu' or 'cuda'")
    if place.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device={str(device)!r} is not available here; use 'cpu'")
    return place
