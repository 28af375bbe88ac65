"""A linear layer whose inputs are scaled, column by column, before its weights meet them."""

import torch
from torch import Tensor, nn
from torch.nn import functional

FACTORS = "input_factors"
"""Name of the buffer of factors."""


class SmoothedLinear(nn.Linear):
    """``y = (x * input_factors) W^T + b``; made of a linear layer by ``smooth_``."""

    input_factors: Tensor

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # as in the layer that it was
        """Outputs ``[..., out]`` of inputs ``[..., in]``."""
        return functional.linear(input * self.input_factors, self.weight, self.bias)


def smooth_(layer: nn.Module, factors: Tensor) -> None:
    """Scale the inputs of a layer and its weights against each other; all else that it has stays.

    Args:
        layer: An ``nn.Linear``, of no subclass; becomes a ``SmoothedLinear``.
        factors: Powers of 2, ``[in]``; layers that read one tensor share it.
    """
    weight = layer.get_parameter("weight")
    with torch.no_grad():
        layer.register_parameter("weight", nn.Parameter(weight / factors, weight.requires_grad))
    layer.register_buffer(FACTORS, factors)
    layer.__class__ = SmoothedLinear


def plain_(layer: nn.Linear) -> None:
    """Make a smoothed layer one of the same weights alone, which then says something else."""
    delattr(layer, FACTORS)
    layer.__class__ = nn.Linear


def read_by(layer: nn.Module, x: Tensor) -> Tensor:
    """What meets the weights of a layer that is given ``x``."""
    return x * layer.input_factors if isinstance(layer, SmoothedLinear) else x
