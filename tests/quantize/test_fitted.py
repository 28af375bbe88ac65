"""Networks of odd forms that int8 is fitted to samples for: they are deployed as without, or better."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import prune

from prunus.data import Inputs
from prunus.errors import InputError
from prunus.graph import without_padding
from prunus.quantize import Deployment, deploy, load_deployed, parity, rounding
from prunus.quantize.by_row import LEVELS
from prunus.quantize.fitted import fitted
from prunus.quantize.gptq import nearest
from prunus.quantize.rounding import rounded
from prunus.quantize.smoothed import SmoothedLinear
from prunus.quantize.smoothing import smoothed
from prunus.records import Source
from prunus.zoo import load_source
from tests.quantize.networks import correlated

INT8 = Deployment(weights="int8", engine="torch")
SOURCE = '''
import torch
from torch import nn
from torch.nn import functional

class Plain(nn.Module):
    """Two layers; the first reads a large column."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.fc, self.out = nn.Linear(32, 24), nn.Linear(24, 16)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.3, generator=generator)

    def forward(self, x):
        return self.out(torch.relu(self.fc(x)))

class Shared(Plain):
    """Two layers read the large column."""

    def __init__(self):
        super().__init__()
        self.other = nn.Linear(32, 24)
        nn.init.normal_(self.other.weight, std=0.3, generator=torch.Generator().manual_seed(1))

    def forward(self, x):
        return self.out(torch.relu(self.fc(x) + self.other(x)))

class Flagged(Plain):
    def forward(self, x, flag):
        return super().forward(x) if flag else x

class Named(Plain):
    def forward(self, x):
        return self.out(input=torch.relu(self.fc(input=x)))

class Sized(Plain):
    def forward(self, x):
        return super().forward(x.reshape(-1, self.fc.in_features))[:, : self.out.out_features]

class Cached(Plain):
    cache = None

    def forward(self, x):
        if self.cache is None:
            self.cache = x.new_ones(1)
        self.cache.mul_(1.0)
        return super().forward(x) * self.cache

class Lazy(Plain):
    def forward(self, x):
        if not hasattr(self, "pos"):
            self.register_buffer("pos", torch.ones(1))
        return super().forward(x) * self.pos

class Counting(Plain):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x):
        self.calls.add_(1)
        return super().forward(x)

class InPlace(Plain):
    def forward(self, x):
        return super().forward(x.add_(1.0))

class Twice(Plain):
    def __init__(self):
        super().__init__()
        self.again = self.fc

class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 2, 48, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1)
        self.out = nn.Linear(32, 16)
        generator = torch.Generator().manual_seed(0)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.2, generator=generator)

    def forward(self, x):
        mask = torch.zeros(x.shape[:2], dtype=torch.bool)
        mask[1:, 7:] = True
        return self.out(self.encoder(x, src_key_padding_mask=mask)[:, 0])
'''


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "nets.py"
    path.write_text(SOURCE)
    return path


def large(samples: int, seed: int) -> Tensor:
    inputs = correlated(samples, 32, seed)
    inputs[:, 3] *= 60
    return inputs


def texts(samples: int, seed: int) -> Tensor:
    return large(samples * 10, seed).reshape(samples, 10, 32)


def built(file: Path, kind: str) -> tuple[nn.Module, Source]:
    source = Source(model=f"{file}:{kind}")
    return load_source(source).eval(), source


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize(
    "kind", ["Plain", "Shared", "Sized", "Cached", "Lazy", "Counting", "InPlace", "Encoder"]
)
def test_pytorch_takes_them(kind: str, file: Path, tmp_path: Path) -> None:
    network, source = built(file, kind)
    given = [texts(16, 0), texts(16, 1)] if kind == "Encoder" else [large(100, 0), large(99, 1)]
    before = [batch.clone() for batch in given]
    fresh = texts(20, 7) if kind == "Encoder" else large(50, 7)
    with torch.no_grad():
        wanted = network(fresh.clone())
    error = {}
    for name, choices in (("fitted", {}), ("plain", {"smoothing": "off", "rounding": "nearest"})):
        network, _ = built(file, kind)
        asked = Deployment.model_validate({"weights": "int8", "engine": "torch", **choices})
        record = deploy(
            network, tmp_path / name, asked, inputs=given[0], calibration=given, source=source
        )
        session = load_deployed(tmp_path / name)
        error[name] = float((session(fresh.clone()) - wanted).square().mean())
        assert any("were rounded" in note for note in record.notes) == (name == "fitted")
    assert error["fitted"] < error["plain"]
    for batch, was in zip(given, before, strict=True):
        assert torch.equal(batch, was)


def test_what_is_no_tensor_is_given_as_it_is(file: Path, tmp_path: Path) -> None:
    network, source = built(file, "Flagged")
    given: Any = {"x": large(100, 0), "flag": True}
    deploy(network, tmp_path / "d", INT8, inputs=given, calibration=[given], source=source)
    session = load_deployed(tmp_path / "d")
    assert parity(network, session, [given]).relative_difference < 0.05


def test_a_layer_may_be_called_by_the_name_of_its_argument(file: Path, tmp_path: Path) -> None:
    network, _ = built(file, "Named")
    asked, given = Deployment(weights="int8"), [large(100, 0)]
    record = deploy(network, tmp_path / "d", asked, inputs=given[0], calibration=given)
    assert any("outliers in the inputs of 1 of 2 linear layers" in note for note in record.notes)
    found = parity(network, load_deployed(tmp_path / "d"), given)
    assert found.relative_difference < 0.05


def test_runs_on_samples_leave_no_mark(file: Path) -> None:
    for kind in ("Counting", "Lazy"):
        network, _ = built(file, kind)
        own, notes = fitted(network, INT8, [large(100, 0)])
        assert len(notes) == 2
        assert {name: float(t) for name, t in own.named_buffers() if t.numel() == 1} == (
            {"calls": 0.0} if kind == "Counting" else {}
        )


def test_a_name_that_is_excluded_excludes_the_layer(file: Path) -> None:
    network, _ = built(file, "Twice")
    asked = INT8.model_copy(update={"exclude": ("again",)})
    own, _ = fitted(network, asked, [large(200, 0)])
    assert torch.equal(own.get_parameter("fc.weight"), network.get_parameter("fc.weight"))


def test_a_weight_that_is_computed_is_left(file: Path) -> None:
    network, _ = built(file, "Plain")
    with torch.no_grad():
        prune.l1_unstructured(network.get_submodule("fc"), "weight", amount=0.5)
    own, notes = fitted(network, INT8, [large(200, 0)])
    assert notes[-1] == "torch: weights of 1 of 2 linear layers were rounded by what they read"
    assert type(own.get_submodule("fc")) is nn.Linear


class Aux(nn.Module):
    """Of two outputs the second reads a weight past its layer."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.fc = kind, nn.Linear(32, 16)
        nn.init.normal_(self.fc.weight, generator=torch.Generator().manual_seed(0))

    def forward(self, x: Tensor) -> Any:
        out = self.fc(x)
        if self.kind == "second":
            return out, functional.linear(x, self.fc.weight)
        return {"hidden": out} if self.kind == "named" else out.mean()


@pytest.mark.parametrize(("kind", "count"), [("second", 0), ("named", 1), ("number", 1)])
def test_all_outputs_are_compared_whatever_they_are(kind: str, count: int) -> None:
    assert smoothed(Aux(kind).eval(), INT8, [large(100, 0)], LEVELS)[1] == count


@pytest.mark.parametrize("scale", [1.0, 1e21])
@pytest.mark.parametrize("is_empty", [True, False])
def test_nothing_that_has_no_error_to_lose_is_changed(scale: float, is_empty: bool) -> None:
    inputs = correlated(64, 16, 0) * scale
    inputs[:, 2] *= float(not is_empty)
    network = nn.Sequential(nn.Linear(16, 16))
    assert smoothed(network, INT8, [inputs * float(not is_empty)], LEVELS)[1] == 0


@pytest.mark.parametrize("idle", [1e-3, 1e-6])
def test_columns_that_were_idle_on_the_samples_may_wake(idle: float) -> None:
    """Made at most four times as large, they cost a few times the error that is left without factors."""
    layer = nn.Linear(32, 24)
    nn.init.normal_(layer.weight, generator=torch.Generator().manual_seed(0))
    network, inputs = nn.Sequential(layer), large(200, 0)
    inputs[:, 8:12] *= idle
    own, count = smoothed(network, INT8, [inputs], LEVELS)
    assert count == 1
    found = own.get_submodule("0")
    assert isinstance(found, SmoothedLinear)
    assert float(found.input_factors.max()) <= 4
    awake = large(200, 1)
    wanted = functional.linear(awake, layer.weight)

    def error(read: Tensor, weight: Tensor) -> float:
        step = (read.max() - read.min()) / 255
        return float(
            (functional.linear((read / step).round() * step, weight) - wanted).square().sum()
        )

    with torch.no_grad():
        smooth = error(awake * found.input_factors, nearest(found.weight, LEVELS))
        assert smooth < 4 * error(awake, nearest(layer.weight, LEVELS))


@pytest.mark.parametrize("length", [15, 16])
def test_rows_of_all_positions_count(length: int) -> None:
    """The first piece of every text is zero, and it alone would be looked at every ``length`` rows."""
    hidden = large(512 * length, 0).reshape(512, length, 32)
    hidden[:, 0] = 0
    layer = nn.Linear(32, 24)
    nn.init.normal_(layer.weight, generator=torch.Generator().manual_seed(0))
    assert smoothed(nn.Sequential(layer), INT8, [hidden], LEVELS)[1] == 1


def test_layers_too_wide_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    network, inputs = nn.Sequential(nn.Linear(32, 24)), large(400, 0)
    assert rounded(network, INT8, [inputs], LEVELS)[1] == 1
    monkeypatch.setattr(rounding, "WIDEST", 31)
    monkeypatch.setattr(rounding, "_Moments", None)  # nothing is taken for what is too wide
    assert rounded(network, INT8, [inputs], LEVELS)[1] == 0


def test_no_moments_are_made_for_a_layer_that_reads_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounding, "_Moments", None)
    assert rounded(nn.Sequential(nn.Linear(32, 24)), INT8, [large(31, 0)], LEVELS)[1] == 0


def test_masks_of_floats_are_no_flags() -> None:
    given = torch.arange(24.0).reshape(2, 3, 4)
    flags = torch.tensor([[1, 1, 0], [1, 0, 0]])
    assert torch.equal(without_padding(given, flags), given[flags.bool()])
    assert torch.equal(without_padding(given, torch.zeros(2, 3)), given)
    ids = torch.arange(6).reshape(2, 3)
    assert torch.equal(without_padding(ids, flags), torch.tensor([0, 1, 3]))
    assert torch.equal(without_padding(given, flags[:1]), given)


def test_that_nothing_was_rounded_is_told_where_it_was_asked_for() -> None:
    network: nn.Module = nn.Sequential(nn.Linear(32, 24))
    few: list[Inputs] = [large(20, 0)]
    asked = INT8.model_copy(update={"rounding": "gptq", "smoothing": "off"})
    told = "torch: weights of 0 of 1 linear layers were rounded by what they read"
    assert fitted(network, asked, few)[1] == (told,)
    assert fitted(network, INT8.model_copy(update={"smoothing": "off"}), few)[1] == ()


def test_a_missing_source_is_told_before_any_compute(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def never(*_: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(sys.modules["prunus.quantize.deploy"], "fitted", never)
    with pytest.raises(InputError, match="source"):
        deploy(nn.Linear(4, 4), tmp_path / "d", INT8, inputs=torch.ones(2, 4), calibration=[])


class Steps:
    """Progress that keeps what each phase was to have and what it had, in the order of their ends."""

    def __init__(self) -> None:
        self.open: list[list[Any]] = []
        self.ended: list[tuple[str, int, int]] = []

    def start(self, phase: str, total: int) -> None:
        self.open.append([phase, total, 0])

    def advance(self, n: int = 1, **values: float) -> None:
        self.open[-1][2] += n

    def finish(self) -> None:
        phase, total, done = self.open.pop()
        self.ended.append((phase, total, done))


def test_fitting_tells_how_far_it_is(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, source = built(file, "Shared")
    given, steps = [large(100, 0), large(100, 1)], Steps()
    monkeypatch.setattr(rounding, "_PASS_BYTES", 4 * 32**2)  # a layer of 32 columns in a pass
    deploy(
        network,
        tmp_path / "d",
        INT8,
        inputs=given[0],
        calibration=given,
        source=source,
        progress=steps,
    )
    # Two batches and two tensors, which three layers read; two batches in each of three passes.
    assert steps.ended == [("move outliers", 4, 4), ("fit weights", 9, 9)]
    assert not steps.open


def test_phases_of_a_fitting_that_fails_are_ended(file: Path) -> None:
    network, _ = built(file, "Plain")
    steps = Steps()
    with pytest.raises(InputError, match="cannot run on the calibration batches"):
        fitted(network, INT8, [large(100, 0), torch.zeros(2, 7)], steps)
    assert steps.ended == [("move outliers", 4, 1)]
