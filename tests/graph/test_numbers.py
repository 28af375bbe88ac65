"""Numbers in code that follow a cut: ends of ranges, and sizes kept in objects of settings."""

import copy
import logging
from argparse import Namespace
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from prunus.graph import certify, cut, trace

TOKENS = torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(0))
FLAT = torch.randn(3, 16, generator=torch.Generator().manual_seed(1))


class Attention(nn.Module):
    """Reads its sizes from an object of settings, whatever it is called."""

    def __init__(self, name: str, settings: Any, out: int = 3) -> None:
        super().__init__()
        setattr(self, name, settings)
        self.name = name
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, out)

    def forward(self, x: Tensor) -> Tensor:
        sizes = getattr(self, self.name)
        q, k, v = (
            part.view(*x.shape[:2], sizes.heads, sizes.width).transpose(1, 2)
            for part in self.qkv(x).chunk(3, -1)
        )
        rate = getattr(sizes, "dropout", 0.0) if self.training else 0.0
        mixed = functional.scaled_dot_product_attention(q, k, v, dropout_p=rate)
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out


@dataclass(frozen=True)
class Frozen:
    heads: int = 4
    width: int = 4
    layer: type = nn.Linear
    dropout: float = 0.1


@dataclass(slots=True)
class Slotted:
    heads: int = 4
    width: int = 4


class Stubborn(SimpleNamespace):
    """A copy of it is itself."""

    def __copy__(self) -> "Stubborn":
        return self


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("config", SimpleNamespace(heads=4, width=4)),
        ("args", Namespace(heads=4, width=4)),
        ("cfg", Frozen()),
        ("hparams", SimpleNamespace(heads=4, width=4, more={"lr": 0.1}, log=logging.getLogger())),
    ],
)
def test_sizes_in_settings_follow_a_cut(name: str, settings: Any) -> None:
    network = Attention(name, settings).eval()
    found = trace(network, TOKENS)
    assert [(g.name, g.units) for g in found.cuttable] == [("qkv", 4)]
    for kept in (3, 1):
        plan = found.plan({"qkv": np.arange(4) < kept})
        certificate = certify(network, found, plan)
        # Train mode repeats only without the dropout that the settings ask for.
        assert certificate.passed and certificate.train_difference is not None
        small: Any = cut(network, plan)
        assert (getattr(small, name).heads, settings.heads) == (kept, 4)
        assert type(getattr(small, name)) is type(settings)
        assert torch.equal(copy.deepcopy(small)(TOKENS), small(TOKENS))


@pytest.mark.parametrize("settings", [Slotted(), Stubborn(heads=4, width=4)])
def test_settings_that_have_no_copy_are_left_alone(settings: Any) -> None:
    network = Attention("args", settings).eval()
    assert trace(network, TOKENS).cuttable == ()
    assert (settings.heads, type(settings.heads)) == (4, int)


def test_settings_that_modules_share_are_the_others_still() -> None:
    shared = SimpleNamespace(heads=4, width=4)
    layers = [Attention("args", shared, 16), Attention("args", shared)]
    network = nn.Sequential(*layers).eval()
    found = trace(network, TOKENS)
    assert [g.name for g in found.cuttable] == ["0.qkv", "0.out", "1.qkv"]
    small: Any = cut(network, found.plan({"0.qkv": np.array([True, False, True, False])}))
    assert [layer.args.heads for layer in small] == [2, 4]
    assert all(vars(layer)["args"] is shared for layer in layers)
    assert shared.heads == 4
