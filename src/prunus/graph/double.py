"""Run a network in float64, where rounding is far below what a wrong cut changes."""

import copy
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from prunus.errors import first_line
from prunus.graph.encoders import pad_plainly_
from prunus.graph.inputs import Inputs, call, cast, recast_
from prunus.graph.kept import may_keep, refresh_


class InDouble(TorchFunctionMode):
    """What a network makes or casts in float32 is float64: its constants, and norms that ask for it."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.Tensor.float:
            return args[0].double()
        args = tuple(_doubled(value) for value in args)
        out = func(*args, **{name: _doubled(value) for name, value in (kwargs or {}).items()})
        made = isinstance(out, torch.Tensor) and not any(isinstance(a, torch.Tensor) for a in args)
        return out.double() if made and out.dtype == torch.float32 else out


def _doubled(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value


def why_not_in_double(network: nn.Module, given: Inputs) -> str:
    """What a network raises in float64; empty where it runs in it."""
    dense = copy.deepcopy(network).eval()
    pad_plainly_(dense)
    refresh_(may_keep(dense))
    recast_(dense, torch.float64)
    try:
        with InDouble():
            call(dense, cast(given, torch.float64))
    except Exception as error:  # noqa: BLE001 - a user's forward may raise anything
        return first_line(error)
    return ""


def rough_caveat(reason: str) -> str:
    """What a comparison in float32 alone leaves open, where float64 was asked for; empty where it was not."""
    if not reason:
        return ""
    return (
        "outputs far below the largest agree to float32's rounding of it and no further: the network "
        f"does not run in float64 ({reason})"
    )
