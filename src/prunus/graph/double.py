"""Run a network in float64, where rounding is far below what a wrong cut changes."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from prunus.errors import first_line
from prunus.graph.difference import FINE, FIRST, ROUGH
from prunus.graph.encoders import pad_plainly_
from prunus.graph.inputs import Inputs, call, cast, recast_
from prunus.graph.kept import may_keep, refresh_

FLOAT32_LIMIT = 1e-5
FLOAT64_LIMIT = 1e-10
Differences = tuple[float, float | None]


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


@dataclass(frozen=True)
class Verdict:
    """Whether two networks agree, and in which precision that was seen.

    Attributes:
        passed: They do.
        single: Differences in float32, in eval and in train mode; None: not compared.
        double: The same in float64, where float32 did not do.
        not_in_double: What the network raises in float64, where that was asked for; else empty.
    """

    passed: bool
    single: Differences
    double: Differences | None = None
    not_in_double: str = ""

    @property
    def told(self) -> str:
        """The differences, for a message on networks that disagree."""
        if not self.not_in_double:
            return f"float32 {self.single}, float64 {self.double}"
        return (
            f"float32 {self.single}, and float64 cannot tell whether that is rounding: the dense network "
            f"does not run in it ({self.not_in_double})"
        )

    @property
    def caveat(self) -> str:
        """What a comparison in float32 alone leaves open; empty where float64 was not missed."""
        if not self.not_in_double:
            return ""
        return (
            "outputs far below the largest agree to float32's rounding of it and no further: the network "
            f"does not run in float64 ({self.not_in_double})"
        )


def agreement(
    compare: Callable[[torch.dtype, float], Differences], network: nn.Module, given: Inputs
) -> Verdict:
    """Compare in float32; where rounding alone may exceed its limit, float64 decides.

    It does in a deep network, and where values are small beside others.

    Args:
        compare: The differences in a precision, with a share of the largest value: see
            ``relative_difference``.
        network: The dense one.
        given: What it runs on.
    """
    if _is_double(network):  # constants of its own, which no cast reaches, are double as well
        double = compare(torch.float64, FINE)
        return Verdict(_within(FLOAT64_LIMIT, double), double, double)
    single = compare(torch.float32, FIRST)
    if _within(FLOAT32_LIMIT, single):
        return Verdict(True, single)
    reason = _why_not_in_double(network, given)
    if reason:
        single = compare(torch.float32, ROUGH)
        return Verdict(_within(FLOAT32_LIMIT, single), single, not_in_double=reason)
    with InDouble():
        double = compare(torch.float64, FINE)
    return Verdict(_within(FLOAT64_LIMIT, double), single, double)


def _is_double(network: nn.Module) -> bool:
    floats = [p.dtype for p in network.parameters() if p.is_floating_point()]
    return bool(floats) and all(dtype == torch.float64 for dtype in floats)


def _within(limit: float, differences: Differences) -> bool:
    return all(difference is None or difference <= limit for difference in differences)


def _why_not_in_double(network: nn.Module, given: Inputs) -> str:
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
