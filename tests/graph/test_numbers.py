"""Numbers in settings and between modules, and numbers that the network compares, follow a cut."""

import copy
import logging
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from prunus.artifact import load, save
from prunus.errors import CertificateError
from prunus.graph import certify, cut, trace
from prunus.plan import SetAttribute
from prunus.records import Source

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


class Easy(dict[str, Any]):
    """A mapping whose entries are attributes, too, as many a file of settings is read into."""

    def __init__(self, **entries: Any) -> None:
        super().__init__(entries)
        vars(self).update(entries)


@pytest.mark.parametrize("name", ["config", "args"])
def test_settings_may_be_a_mapping_and_hold_tensors(name: str) -> None:
    settings = Easy(heads=4, width=4, weights=torch.ones(3))
    network = Attention(name, settings).eval()
    found = trace(network, TOKENS)
    assert found.by_name["qkv"].units == 4 and not found.by_name["qkv"].refused
    small: Any = cut(network, found.plan({"qkv": np.array([True, False, True, False])}))
    assert getattr(small, name).heads == 2
    assert vars(network)[name] is settings and settings.heads == 4


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


class Shares(nn.Module):
    """Has an object in common with another module."""

    def __init__(self, state: Any) -> None:
        super().__init__()
        self.state, self.inner = state, nn.Linear(16, 16)


class Writes(Shares):
    """Tells the next module how many tokens there are."""

    def forward(self, x: Tensor) -> Tensor:
        self.state.tokens = x.shape[1]
        out: Tensor = self.inner(x)
        return out


class Reads(Shares):
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x.reshape(x.shape[0], self.state.tokens, -1).relu())
        return out


def test_what_modules_tell_one_another_by_stays_one_object() -> None:
    state = SimpleNamespace(tokens=1)
    found = trace(nn.Sequential(Writes(state), Reads(state)).eval(), TOKENS)
    assert [(g.name, g.units) for g in found.cuttable] == [("0.inner", 16)]


FILE = """
from types import SimpleNamespace
from torch import nn

class Gate(nn.Module):
    def __init__(self):
        super().__init__()
        self.args = SimpleNamespace(half=8)
        self.a, self.b = nn.Linear(16, 16), nn.Linear(8, 3)

    def forward(self, x):
        h = self.a(x)
        return self.b(h[..., : self.args.half] * h[..., self.args.half :].sigmoid())

def factory():
    return Gate()
"""


def test_an_artifact_gives_the_cut_network_back(tmp_path: Path) -> None:
    (tmp_path / "gate.py").write_text(FILE)
    space: dict[str, Any] = {"__name__": "gate"}
    exec(compile(FILE, "gate.py", "exec"), space)  # noqa: S102 - the text above
    network = space["factory"]().eval()
    found = trace(network, FLAT)
    plan = found.plan({"a": np.arange(8) < 3})
    small = cut(network, plan).eval()
    source = Source(model=f"{tmp_path / 'gate.py'}:factory")
    save(tmp_path / "artifact", small, source=source, plans=[plan], example_inputs=FLAT)
    back: Any = load(tmp_path / "artifact").eval()
    assert back.args.half == 3
    assert torch.equal(back(FLAT), small(FLAT))


class Stage(nn.Module):
    """Asks two of its numbers whether it widens; of one of them nothing is the size."""

    def __init__(self, width: int, width_out: int) -> None:
        super().__init__()
        self.width, self.width_out = width, width_out
        self.short = nn.Linear(width, width_out)
        self.out = nn.Linear(width, width_out)

    def forward(self, x: Tensor) -> Tensor:
        h = x
        if self.width != self.width_out:
            h = self.short(x).view(*x.shape[:-1], self.width_out)
        out: Tensor = h + self.out(x)
        return out


@pytest.mark.parametrize("kept", [15, 16, 17])
def test_numbers_that_differ_go_on_to(kept: int) -> None:
    network = nn.Sequential(nn.Linear(16, 16), Stage(16, 32), nn.Linear(32, 3)).eval()
    found = trace(network, TOKENS)
    (name,) = (g.name for g in found.cuttable if g.units == 32)
    plan = found.plan({name: np.arange(32) < kept})
    assert certify(network, found, plan).passed
    small: Any = cut(network, plan)
    assert small[1].width_out == kept
    assert small[1].width == (32 if kept == 16 else 16)
    # A plan for the cut network begins from the numbers that stand there now.
    again = trace(small, TOKENS)
    assert certify(small, again, again.plan({name: np.arange(kept) < 2})).passed


def test_a_compared_number_that_a_formula_reads_is_left_alone() -> None:
    """The cut is refused then: with another number its formula would be wrong as well."""

    class Scaled(Stage):
        def forward(self, x: Tensor) -> Tensor:
            scaled: Tensor = super().forward(x) * self.width**-0.5
            return scaled

    network = nn.Sequential(nn.Linear(16, 16), Scaled(16, 32), nn.Linear(32, 3)).eval()
    found = trace(network, TOKENS)
    (name,) = (g.name for g in found.cuttable if g.units == 32)
    assert certify(network, found, found.plan({name: np.arange(32) < 15})).passed
    plan = found.plan({name: np.arange(32) < 16})
    assert "width" not in {edit.attribute for edit in plan.edits if isinstance(edit, SetAttribute)}
    with pytest.raises(CertificateError, match="disagree"):
        certify(network, found, plan)
