"""Networks small enough to know by hand, and what tests of the graph ask of a trace."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from prunus.graph import Trace
from prunus.plan import Axis, Bits, BoolArray, Edit, KeepChannels, Plan


class Wired(nn.Module):
    """Layers (or whole numbers) by name, wired by a function of the module and its inputs."""

    def __init__(self, wiring: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self.wiring = wiring

    def forward(self, *inputs: Any) -> Any:
        return self.wiring(self, *inputs)


class FusedAttention(nn.Module):
    """One linear layer for queries, keys and values; the head count is a number on the module."""

    def __init__(self, heads: int, width: int = 8, features: int = 6) -> None:
        super().__init__()
        self.heads, self.head_width = heads, width // heads
        self.qkv = nn.Linear(features, 3 * width)
        self.out = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        split = self.qkv(x).view(batch, tokens, 3, self.heads, self.head_width)
        q, k, v = split.permute(2, 0, 3, 1, 4)
        y = functional.scaled_dot_product_attention(q, k, v)
        y = y.transpose(1, 2).reshape(batch, tokens, -1)
        out: Tensor = self.out(y).mean(dim=1)
        return out


class Biased(nn.Module):
    """Four heads over five tokens; a bias for each distance, looked up once in evaluation as LeViT's."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = 4
        self.qkv = nn.Linear(6, 36)
        self.out = nn.Linear(12, 3)
        self.biases = nn.Parameter(torch.randn(4, 5))
        place = torch.arange(5)
        self.register_buffer("distance", (place[:, None] - place).abs())
        self.cache: dict[str, Tensor] = {}

    def train(self, mode: bool = True) -> "Biased":
        super().train(mode)
        if mode:
            self.cache = {}
        return self

    def bias(self) -> Tensor:
        if self.training or "cpu" not in self.cache:
            looked_up = self.biases[:, self.get_buffer("distance")] / 3
            if self.training:
                return looked_up
            self.cache["cpu"] = looked_up
        return self.cache["cpu"]

    def forward(self, x: Tensor) -> Tensor:
        made = self.qkv(x).view(*x.shape[:2], 3, self.heads, 3)
        q, k, v = made.permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-2, -1) * 3**-0.5 + self.bias()
        said = scores.softmax(-1) @ v
        out: Tensor = self.out(said.transpose(1, 2).reshape(*x.shape[:2], self.heads * 3))
        return out


class GroupedQueries(nn.Module):
    """Four query heads of width 3 on two key and value heads."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(6, 12), nn.Linear(6, 6), nn.Linear(6, 6)
        self.out = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        q, k, v = (
            layer(x).view(batch, tokens, -1, 3).transpose(1, 2)
            for layer in (self.q, self.k, self.v)
        )
        y = functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        out: Tensor = self.out(y.transpose(1, 2).reshape(batch, tokens, -1)).mean(dim=1)
        return out


class KeptTable(nn.Module):
    """A linear layer, times 1 and 2 in turn: a table that `forward` makes for its largest batch and keeps."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.head = nn.Linear(inputs, outputs)
        self.table = torch.empty(0, 1)

    def forward(self, x: Tensor) -> Tensor:
        if len(self.table) < len(x):
            self.table = torch.arange(len(x)).remainder(2).add(1.0).unsqueeze(1)
        out: Tensor = self.head(x.flatten(1)) * self.table[: len(x)]
        return out


class Pick(nn.Module):
    """Channels in another order, held in an index buffer."""

    order: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("order", torch.arange(channels).flip(0))

    def forward(self, x: Tensor) -> Tensor:
        return x.index_select(1, self.order)


def chain() -> nn.Sequential:
    """Conv 3 to 4, batch norm, ReLU, conv 4 to 5, mean over 6x6, linear 5 to 2; input [3, 8, 8]."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 5, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(5, 2),
    )


def pooled(network: nn.Module) -> nn.Module:
    """The network with its image output averaged to a vector."""
    return nn.Sequential(network, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def enliven_(network: nn.Module, seed: int = 0) -> nn.Module:
    """Random scales, shifts and statistics for all norms, in place: a leaked constant must show."""
    generator = torch.Generator().manual_seed(seed)

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator)

    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.dim() == 1:
                parameter.copy_((1.0 if name.endswith("weight") else 0.0) + 0.2 * noise(parameter))
        for name, buffer in network.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.2 * noise(buffer))
            elif name.endswith("running_var"):
                buffer.copy_(noise(buffer).abs() + 0.5)
    return network.eval()


def images(*shape: int, seed: int = 0) -> Tensor:
    """Normal values from a generator of their own."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def axes_of(trace: Trace, group: str) -> dict[str, list[int]]:
    """``tensor:dim`` to the units along that dim."""
    return {f"{a.tensor}:{a.dim}": a.units.tolist() for a in trace.by_name[group].axes}


def random_choice(trace: Trace, seed: int, share: float = 0.6) -> dict[str, BoolArray]:
    """Units kept at random in every cuttable group, at least one in each."""
    rng = np.random.default_rng(seed)
    choice = {}
    for group in trace.cuttable:
        keep = rng.random(group.units) < share
        keep[rng.integers(group.units)] = True
        choice[group.name] = keep
    return choice


def all_but(units: int, *removed: int) -> BoolArray:
    """All units but some."""
    keep = np.ones(units, dtype=bool)
    keep[list(removed)] = False
    return keep


def with_edits(plan: Plan, change: Callable[[Edit], Edit | None]) -> Plan:
    """A plan with each edit changed, or dropped where ``change`` gives None."""
    changed = [change(edit) for edit in plan.edits]
    return plan.model_copy(update={"edits": tuple(e for e in changed if e is not None)})


def rolled_axis(plan: Plan, tensor: str, dim: int) -> Plan:
    """A plan that keeps, on one dim of one tensor, the neighbors of the right positions."""

    def change(edit: Edit) -> Edit:
        if not isinstance(edit, KeepChannels):
            return edit
        axes = tuple(
            Axis(tensor=a.tensor, dim=a.dim, keep=Bits.pack(np.roll(a.keep.unpack(), 1)))
            if (a.tensor, a.dim) == (tensor, dim)
            else a
            for a in edit.axes
        )
        return edit.model_copy(update={"axes": axes})

    return with_edits(plan, change)
