"""Small networks whose prefixes are hard to find: skips, views, layers that are called twice or kept."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from prunus.zoo import build
from tests.candidates.subjects import (
    share_weight_,
)
from tests.helpers import Wired, images

RGB = images(3, 3, 8, 8)


TOKENS = images(3, 5, 6)


def skip_net() -> nn.Module:
    """stem, then a + b around a skip, then c, and d that reads c and the stem's sum."""

    def wiring(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        x = m.b(m.a(x).relu()) + x
        y = m.join(x)
        z = m.d(m.c(y).relu()) + y
        out: Tensor = m.head(z.mean((2, 3)))
        return out

    return Wired(
        wiring,
        stem=nn.Conv2d(3, 4, 3),
        a=nn.Conv2d(4, 5, 1),
        b=nn.Conv2d(5, 4, 1),
        join=nn.Conv2d(4, 6, 1),
        c=nn.Conv2d(6, 5, 1),
        d=nn.Conv2d(5, 6, 1),
        head=nn.Linear(6, 3),
    )


class Block(nn.Module):
    """One ReLU for two places, in place, around a skip."""

    def __init__(self, inner: int) -> None:
        super().__init__()
        self.one, self.norm1 = nn.Conv2d(4, inner, 3, padding=1), nn.BatchNorm2d(inner)
        self.two, self.norm2 = nn.Conv2d(inner, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.norm1(self.one(x)))
        y = self.norm2(self.two(y))
        y += x
        out: Tensor = self.relu(y)
        return out


def in_place() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        Block(5),
        nn.ReLU6(inplace=True),
        Block(6),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    )


class Viewed(nn.Module):
    """Shapes read from activations, and a flatten by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        batch, _, side, _ = x.shape
        x = self.b(functional.relu_(x).mul_(0.5))
        x = x.view(batch, x.shape[1], -1).sum(2) / side
        out: Tensor = self.head(x.view(batch, -1))
        return out


class Twice(nn.Module):
    """A layer that is called twice, at two sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.same = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3)
        self.last, self.head = nn.Conv2d(4, 5, 1), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.same(self.same(self.stem(x)).relu())
        out: Tensor = self.head(self.last(x.relu()).mean((2, 3)))
        return out


class Looks(nn.Module):
    """Looks at a value of its first layer to choose a path: later runs may choose another."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 5, 1)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        y = self.b(x)
        if x.sum().item() > 0:
            y = y * 2
        out: Tensor = self.head(self.c(y).mean((2, 3)))
        return out


class Functional(nn.Module):
    """Runs layers by their weights: these modules are never called."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 1)
        self.c, self.head = nn.Conv2d(5, 6, 1), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.conv2d(x, self.a.weight, self.a.bias).relu()
        x = functional.conv2d(x, self.b.weight, self.b.bias).relu()
        out: Tensor = self.head(self.c(x).mean((2, 3)))
        return out


class Early(nn.Module):
    """Reads, in its first layer, the weight of a layer that is called later."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.late = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.a(functional.linear(x, self.late.weight)).relu())
        out: Tensor = self.head(self.late(x).mean(1))
        return out


def tied() -> nn.Module:
    """The first layer has its weight from the last, whose name it has in the plan."""
    network = Wired(
        lambda m, x: m.head(m.last(m.mid(m.first(x).relu()).relu()).mean(1)),
        last=nn.Linear(6, 6),
        first=nn.Linear(6, 6),
        mid=nn.Linear(6, 6),
        head=nn.Linear(6, 3),
    )
    share_weight_(network, "first", "last")
    return network


class Remembers(nn.Module):
    """Keeps what it returned, for others to read later."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.kept = torch.zeros(1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        self.kept = y.mean((2, 3))
        return y


def reads_what_is_kept() -> nn.Module:
    return Wired(
        lambda m, x: m.head(m.b(m.a(x)).mean((2, 3)) + m.a.kept),
        a=Remembers(),
        b=nn.Conv2d(4, 4, 1),
        head=nn.Linear(4, 3),
    )


class Encoder(nn.Module):
    """PyTorch's own encoder layers, which run in one fused function in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(6, 8), nn.Linear(8, 3)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(8, 2, 12, batch_first=True) for _ in range(3)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x)
        out: Tensor = self.head(x.mean(1))
        return out


def attention() -> nn.Module:
    """PyTorch's own attention, which reads its output layer's weight and does not call it."""
    return Wired(
        lambda m, x: m.head(m.mid(m.att(y := m.embed(x), y, y)[0]).mean(1)),
        embed=nn.Linear(6, 8),
        att=nn.MultiheadAttention(8, 2, batch_first=True),
        mid=nn.Linear(8, 8),
        head=nn.Linear(8, 3),
    )


class Named(nn.Module):
    """Dictionaries in, between modules, and out."""

    class Part(nn.Module):
        def __init__(self, size: int, out: int) -> None:
            super().__init__()
            self.inner = nn.Linear(size, out)

        def forward(self, values: dict[str, Any]) -> dict[str, Any]:
            shift, number = values["shift"]
            return {"x": self.inner(values["x"]).relu_(), "shift": (shift * 2, number + 1)}

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = self.Part(6, 8), self.Part(8, 7), nn.Linear(7, 3)

    def forward(self, tokens: Tensor, scale: Tensor) -> dict[str, Tensor]:
        values = self.two(self.one({"x": tokens, "shift": (scale, 1)}))
        return {"logits": self.head(values["x"].mean(1) + values["shift"][0].unsqueeze(1))}


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "skips": (skip_net, RGB),
    "in place": (in_place, RGB),
    "views": (Viewed, RGB),
    "called twice": (Twice, RGB),
    "looks": (Looks, RGB),
    "functional": (Functional, RGB),
    "early": (Early, TOKENS),
    "tied": (tied, TOKENS),
    "remembers": (reads_what_is_kept, RGB),
    "encoder": (Encoder, TOKENS),
    "attention": (attention, TOKENS),
    "named": (Named, {"tokens": TOKENS, "scale": images(3)}),
    "digits_cnn": (lambda: build("digits_cnn"), images(3, 1, 8, 8)),
    "resnet20": (lambda: build("resnet20", width=0.3), images(3, 3, 8, 8)),
}
