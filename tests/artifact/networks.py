"""Tiny networks in a user's file, and plans for them written by hand."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from prunus.graph import cut
from prunus.plan import Axis, Bits, KeepChannels, NetworkShape, Plan
from prunus.records import Cost, Environment, RunRecord, Source
from prunus.zoo import load_source

KEEP = [True, False, True, True]
"""Which of the four channels stay."""
FILE = """
import torch
from torch import nn


class Tiny(nn.Module):
    def __init__(self, width, classes):
        super().__init__()
        self.conv = nn.Conv2d(1, width, 3)
        self.bn = nn.BatchNorm2d(width)
        self.fc = nn.Linear(width, classes)

    def forward(self, x):
        return self.fc(self.bn(self.conv(x)).relu().mean((2, 3)))


class Pair(nn.Module):
    def __init__(self, tied):
        super().__init__()
        self.first = nn.Linear(3, 3, bias=False)
        self.second = nn.Linear(3, 3, bias=False)
        if tied:
            self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(self.first(x).relu())


class Scaled(nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.fc = nn.Linear(2, 2)
        self.register_buffer("scale", torch.tensor(scale), persistent=False)

    def forward(self, x):
        return self.fc(x) * self.scale


class Viewed(nn.Module):
    # A buffer in the memory of a parameter, in the module above it or in another one.
    def __init__(self, beside):
        super().__init__()
        self.first = nn.Linear(3, 3, bias=False)
        self.holder = nn.Module()
        owner = self if beside else self.holder
        owner.register_buffer("table", self.first.weight.data)

    def forward(self, x):
        return self.first(x) @ getattr(self, "table", getattr(self.holder, "table", None))


class Noting(nn.Linear):
    def get_extra_state(self):
        return {"note": 1}

    def set_extra_state(self, state):
        pass


def noting():
    return Noting(2, 2)


def factory(width=4, classes=3):
    return Tiny(width, classes)


def pair(tied=True):
    return Pair(tied)


def viewed(beside=False):
    return Viewed(beside)


def scaled(scale=1.0):
    return Scaled(scale)
"""


def write_file(folder: Path) -> Path:
    """Write the user's file."""
    path = folder / "net.py"
    path.write_text(FILE, encoding="utf-8")
    return path


def tiny_shape(width: int, classes: int = 3) -> NetworkShape:
    """Shapes of ``Tiny``, written by hand."""
    per_channel = ("conv.bias", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")
    return NetworkShape(
        tensors={
            "conv.weight": (width, 1, 3, 3),
            "bn.num_batches_tracked": (),
            "fc.weight": (classes, width),
            "fc.bias": (classes,),
            **dict.fromkeys(per_channel, (width,)),
        }
    )


def tiny_plan(keep: Sequence[bool], classes: int = 3) -> Plan:
    """A plan that keeps these channels of ``Tiny``."""
    bits = Bits.pack(keep)
    names = (
        "conv.weight",
        "conv.bias",
        "bn.weight",
        "bn.bias",
        "bn.running_mean",
        "bn.running_var",
    )
    axes = [Axis(tensor=name, dim=0, keep=bits) for name in names]
    axes.append(Axis(tensor="fc.weight", dim=1, keep=bits))
    return Plan(
        source=tiny_shape(len(keep), classes),
        result=tiny_shape(sum(keep), classes),
        edits=(KeepChannels(group="conv", keep=bits, axes=tuple(axes)),),
    )


def scramble_(network: nn.Module, seed: int) -> None:
    """Give every floating parameter and buffer of the state values of its own."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in network.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.1)


def images(n: int, seed: int = 0) -> torch.Tensor:
    """Inputs of ``Tiny``, ``[n, 1, 6, 6]``."""
    return torch.randn(n, 1, 6, 6, generator=torch.Generator().manual_seed(seed))


def cut_tiny(source: Source, *plans: Plan) -> nn.Module:
    """The network of a source cut by plans, with other weights than its constructor's."""
    network = load_source(source)
    for plan in plans:
        network = cut(network, plan)
    scramble_(network, seed=1)
    return network.eval()


def tiny_record(source: Source) -> RunRecord:
    """A record by hand."""
    cost = Cost(macs=10, effective_macs=10, params=5, nonzero_params=5)
    return RunRecord(
        method="hand",
        source=source,
        data="none",
        seed=0,
        target={"macs": 0.5},
        recipe={},
        dense_cost=cost,
        cost=cost,
        environment=Environment.capture(threads=1),
    )
