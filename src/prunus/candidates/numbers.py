"""What is no number, where fast kernels would hide it.

A ReLU within a convolution makes 0 of NaN, and rounding to bytes makes some byte of it: a candidate that
answers nothing but NaN would look harmless. Numbers turn into something else in few ways. Weights and
statistics that are none are seen when a candidate is loaded. Layers, sums and activation functions make
numbers of numbers, short of an overflow that would show in the statistics long before; only where a
network does more than that (it divides, takes a logarithm) activations are looked at, a pass over what
each such kernel reads.
"""

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from prunus.graph import Inputs, call

_LAYERS = """_convolution convolution mkldnn_convolution addmm mm bmm baddbmm linear matmul
native_batch_norm _native_batch_norm_legit_no_training _batch_norm_no_update cudnn_batch_norm"""
_FUNCTIONS = """relu leaky_relu hardtanh hardswish hardsigmoid sigmoid silu gelu elu celu selu mish tanh
clamp clamp_min clamp_max threshold prelu _prelu_kernel softplus _softmax _log_softmax neg abs add sub
rsub mul mean sum amax amin maximum minimum max min"""
_POOLS = """max_pool2d_with_indices max_pool1d_with_indices avg_pool2d avg_pool1d mkldnn_max_pool2d
adaptive_avg_pool2d _adaptive_avg_pool2d adaptive_max_pool2d upsample_nearest2d upsample_bilinear2d"""
_PLACES = """t transpose permute view _unsafe_view reshape expand squeeze unsqueeze slice select cat stack
split split_with_sizes unbind constant_pad_nd reflection_pad2d replication_pad2d flip roll clone detach
alias copy _to_copy lift_fresh pixel_shuffle channel_shuffle native_channel_shuffle unfold as_strided
index_select empty zeros ones zeros_like ones_like full scalar_tensor arange"""
_SOUND = frozenset(f"{_LAYERS} {_FUNCTIONS} {_POOLS} {_PLACES}".split())
"""Operations that make numbers of numbers."""


def are_finite(*tensors: Tensor | None) -> bool:
    """Whether all are numbers, by their sum; also False where that is none, which is at most slower."""
    return all(
        math.isfinite(float(tensor.sum()))
        for tensor in tensors
        if tensor is not None and tensor.is_floating_point()
    )


def may_break(network: nn.Module, inputs: Inputs) -> bool:
    """Whether a forward pass has an operation that may turn numbers into what is none.

    Args:
        network: Run as it is, without gradients.
        inputs: A real batch.
    """
    with _Watch() as watch:
        call(network, inputs)
    return bool(watch.found)


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves its types out
    """Looks for operations that are not known to be sound."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # as above
        self.found = False

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,  # as torch calls it
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        name = func.overloadpacket.__name__
        plain = name if name in _SOUND else name.removesuffix("_")
        self.found |= not (plain in _SOUND or (plain == "div" and _is_by_number(args)))
        run: Callable[..., Any] = func
        return run(*args, **(kwargs or {}))


def _is_by_number(args: tuple[Any, ...]) -> bool:
    return len(args) > 1 and isinstance(args[1], int | float) and args[1] != 0
