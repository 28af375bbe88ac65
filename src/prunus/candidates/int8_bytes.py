"""Numbers in bytes: one scale and one zero point for a tensor."""

import warnings
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

_LEVELS = 255


@cache
def has_kernel() -> bool:
    """Whether PyTorch rounds to bytes in one pass.

    Its quantized dtypes are on their way out, which it says at their first use in a process; nothing
    else is as fast, by a factor of ten.
    """
    if not hasattr(torch, "quantize_per_tensor"):
        return False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        torch.quantize_per_tensor(torch.zeros(1), 1.0, 0, torch.quint8)
    return True


@dataclass(frozen=True)
class Bytes:
    """How a tensor is held in bytes without sign: ``number = scale * (byte - zero)``."""

    scale: float
    zero: int

    @classmethod
    def spanning(cls, low: float, high: float) -> "Bytes":
        """For numbers from ``low`` to ``high``. 0 has a byte of its own, for padding is 0.

        The scale has three digits: machines that round float32 differently find the same.

        >>> Bytes.spanning(-1.0, 1.55)
        Bytes(scale=0.01, zero=100)
        """
        low, high = min(low, 0.0), max(high, 0.0)
        scale = float(f"{(high - low) / _LEVELS:.3g}") or 1.0
        return cls(scale, min(_LEVELS, round(-low / scale)))

    def of(self, x: Tensor) -> Tensor:
        """The bytes nearest to numbers, uint8 of the same shape; the ends for what lies beyond.

        Raises:
            RuntimeError: PyTorch has no kernel for it.
        """
        if not has_kernel():
            raise RuntimeError("this PyTorch does not round to bytes")
        made = torch.quantize_per_tensor(x.float(), self.scale, self.zero, torch.quint8)
        # PyTorch's own way to the bytes, `int_repr`, copies them one by one.
        return torch.empty(0, dtype=torch.uint8).set_(
            made.untyped_storage(), 0, made.shape, made.stride()
        )
