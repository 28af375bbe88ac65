"""Networks that force the counter off its usual way."""

import torch
from torch import Tensor, nn


class NeedsValues(nn.Module):
    """Cannot run on meta: reads a value, and changes a buffer on the way."""

    seen: Tensor

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        if x.sum().item() > 1e9:
            raise ValueError("too large")
        out: Tensor = self.inner(x)
        return out


class UnderInferenceMode(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        with torch.inference_mode():
            out: Tensor = self.inner(x)
        return out
