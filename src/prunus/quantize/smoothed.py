"""A linear layer whose inputs are scaled, column by column, before its weights meet them."""

import torch
from torch import Tensor, nn
from torch.nn import functional

INVERSE = "inverse"
"""Name of the buffer of factors."""


class SmoothedLinear(nn.Linear):
    """``y = (x * inverse) W^T + b``.

    Args:
        weight: ``[out, in]``.
        bias: ``[out]``, or None.
        inverse: Factors of the inputs, ``[in]``; layers that read one tensor share it.
    """

    inverse: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None, inverse: Tensor) -> None:
        super().__init__(
            weight.shape[1], weight.shape[0], bias=bias is not None, device=torch.device("meta")
        )
        self.weight = nn.Parameter(weight.detach())
        if bias is not None:
            self.bias = nn.Parameter(bias.detach())
        self.register_buffer(INVERSE, inverse)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs ``[..., out]`` of inputs ``[..., in]``."""
        return functional.linear(x * self.inverse, self.weight, self.bias)


def read_by(layer: nn.Module, x: Tensor) -> Tensor:
    """What meets the weights of a layer that is given ``x``."""
    return x * layer.inverse if isinstance(layer, SmoothedLinear) else x
