"""MACs of contractions that no label goes through: what they read stays whole, so they are constant.

One multiply-add is one MAC. These formulas are the trace's own; ``prunus.meter`` counts by others.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor

Args = tuple[Any, ...]


def fixed_macs(name: str, args: Args) -> int | None:
    """MACs of one call whose operands stay whole; None: it has no formula.

    Args:
        name: Of the ATen operation, without its overload.
        args: Positional arguments of the call.
    """
    formula = _FORMULAS.get(name)
    return None if formula is None else formula(args)


def _product(a: Tensor, b: Tensor) -> int:
    """Rows of the first times its columns times columns of the second (one, if that is a vector)."""
    return a.numel() * (b.shape[-1] if b.dim() > 1 else 1)


def _first_two(args: Args) -> int:
    return _product(args[0], args[1])


def _grouped(args: Args) -> int:
    """Rows, or what is summed, in runs: as one product; of columns in runs each meets one matrix."""
    a, b = args[0], args[1]
    return b.numel() * a.shape[-2] if (a.dim(), b.dim()) == (3, 2) else _product(a, b)


def _last_two(args: Args) -> int:
    return _product(args[1], args[2])


_FORMULAS: dict[str, Callable[[Args], int]] = {
    "_grouped_mm": _grouped,
    **dict.fromkeys(("_int_mm", "_scaled_mm", "mv", "dot", "vdot"), _first_two),
    **dict.fromkeys(
        ("addmm_", "baddbmm_", "addbmm", "addbmm_", "addmv", "addmv_"),
        _last_two,
    ),
}
