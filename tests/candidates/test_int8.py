"""Convolutions in int8: bytes by the formula, found where nothing else changes, near float32."""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import conv2d

from prunus.candidates import workplace
from prunus.candidates.execution import ScoringExecution, ScoringPrecision
from prunus.candidates.fold import find_pairs
from prunus.candidates.int8 import Int8Layers
from prunus.candidates.int8_bytes import Bytes
from prunus.candidates.int8_find import Int8Layer, find_int8, weight_bits
from prunus.candidates.kernels import find_rectified
from prunus.candidates.scorer import Scorer, Tricks
from prunus.candidates.skeleton import Skeleton
from prunus.candidates.task import Task
from prunus.errors import InputError
from prunus.graph import Trace, cut, trace
from prunus.graph.difference import relative_difference
from prunus.plan import Plan
from prunus.zoo import build
from tests.candidates.subjects import (
    bits_of,
    flags,
    forward,
    random_plan,
    share_weight_,
    small_images,
    some_plans,
    unchanged,
    zero,
)
from tests.helpers import Wired, enliven_, images, pooled

RGB = images(4, 3, 8, 8)
INT8 = ScoringExecution.of("int8", "channels_last")
INT7 = ScoringExecution.of("int7", "channels_last")
BITS = weight_bits(nn.Conv2d(1, 1, 1))  # 7 and 8 run on CPUs with VNNI, 7 alone on those with AVX2
HERE = INT8 if BITS == 8 else INT7

needs_int8 = pytest.mark.skipif(not BITS, reason="this CPU does not multiply bytes (VNNI, or AVX2)")
with_bits = pytest.mark.parametrize(
    "bits",
    [
        pytest.param(
            bits, marks=pytest.mark.skipif(bits > BITS, reason=f"{bits} bits saturate here")
        )
        for bits in (7, 8)
    ],
)


# -- bytes ------------------------------------------------------------------------------------


@given(
    low=st.floats(-100, 0, width=32),
    high=st.floats(0, 100, width=32),
    share=st.floats(0, 1, width=32),
)
def test_bytes_are_the_nearest_and_nothing_is_lost_at_zero(
    low: float, high: float, share: float
) -> None:
    held = Bytes.spanning(low, high)
    x = torch.tensor([low + share * (high - low), 0.0, low, high])
    made = held.of(x)
    assert made.dtype == torch.uint8
    back = held.scale * (made.double() - held.zero)
    assert back[1] == 0
    least, most = -held.scale * held.zero, held.scale * (255 - held.zero)
    there = x.double().clamp(least, most)
    assert (back - there).abs().max() <= (0.5 + 1e-4) * held.scale + 1e-12
    # Three digits of the scale and a rounded zero point cost the ends a little.
    assert (x.double() - there).abs().max() <= (0.005 * 255 + 0.5) * held.scale + 1e-12


def test_bytes_by_hand() -> None:
    held = Bytes.spanning(0.0, 2.55)
    assert held == Bytes(0.01, 0)
    x = torch.tensor([-1.0, 0.0, 0.014, 0.016, 2.55, 9.0])
    assert held.of(x).tolist() == [0, 0, 1, 2, 255, 255]
    assert Bytes.spanning(-1.0, 1.55) == Bytes(0.01, 100)
    assert Bytes.spanning(0.0, 0.0).of(torch.zeros(2)).tolist() == [0, 0]
    last = images(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    made = Bytes.spanning(-3, 3).of(last)
    assert made.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(made, Bytes.spanning(-3, 3).of(last.contiguous()))


# -- which layers -----------------------------------------------------------------------------


def stack(*layers: nn.Module) -> nn.Module:
    return pooled(nn.Sequential(*layers))


def conv_block(relu: nn.Module | None = None, **settings: Any) -> list[nn.Module]:
    return [nn.Conv2d(3, 3, 3, padding=1, **settings), nn.BatchNorm2d(3), relu or nn.ReLU()]


def read_twice() -> nn.Module:
    """The second layer and a sum read what the first returns, as in a residual block."""

    def wiring(m: Any, x: Tensor) -> Tensor:
        y = m.relu(m.norm(m.a(x)))
        out: Tensor = (m.b(y) + y).mean((2, 3))
        return out

    parts = {"a": nn.Conv2d(3, 3, 1), "norm": nn.BatchNorm2d(3), "relu": nn.ReLU()}
    return Wired(wiring, b=nn.Conv2d(3, 3, 1), **parts)


def linked(read: Callable[[Any, Tensor], Tensor]) -> Callable[[], nn.Module]:
    """Two layers, the second of which reads what the first one's batch norm returns in some way."""

    def wiring(m: Any, x: Tensor) -> Tensor:
        out: Tensor = read(m, m.norm(m.a(x))).mean((2, 3))
        return out

    parts = {"a": nn.Conv2d(3, 3, 1), "norm": nn.BatchNorm2d(3), "relu": nn.ReLU()}
    return lambda: Wired(wiring, b=nn.Conv2d(3, 3, 1), **parts)


def checked(m: Any, y: Tensor) -> Tensor:
    z: Tensor = m.relu(y)
    if torch.isnan(z).any():
        raise ValueError("not a number")
    out: Tensor = m.b(z)
    return out


def called_twice() -> nn.Module:
    def wiring(m: Any, x: Tensor) -> Tensor:
        out: Tensor = m.a(m.a(x)).mean((2, 3))
        return out

    return Wired(wiring, a=nn.Conv2d(3, 3, 1))


def tied() -> nn.Module:
    network = stack(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.Conv2d(3, 3, 1))
    share_weight_(network, "0.0", "0.2")
    return network


Found = dict[str, tuple[str | None, str | None, str | None]]
NOT_LINKED: Found = {"a": ("norm", "relu", None), "b": (None, None, None)}
CASES: dict[str, tuple[Callable[[], nn.Module], Found]] = {
    "chain": (
        lambda: stack(*conv_block(), *conv_block(nn.ReLU(inplace=True)), nn.Conv2d(3, 2, 1)),
        {"0.0": ("0.1", "0.2", "0.3"), "0.3": ("0.4", "0.5", "0.6"), "0.6": (None, None, None)},
    ),
    "read by others": (
        read_twice,
        {"a": ("norm", "relu", None), "b": (None, None, None)},
    ),
    "read by one": (
        linked(lambda m, y: m.b(m.relu(y))),
        {"a": ("norm", "relu", "b"), "b": (None, None, None)},
    ),
    "rectified for others, too": (linked(lambda m, y: m.b(m.relu(y)) + y.relu()), NOT_LINKED),
    # These return the very tensor in float32, and numbers 0 to 255 where it holds bytes.
    "cast": (linked(lambda m, y: m.b(m.relu(y).to(m.b.weight.dtype))), NOT_LINKED),
    "clamped in place": (linked(lambda m, y: m.b(m.relu(y).clamp_(max=99.0))), NOT_LINKED),
    "refuses NaN": (linked(checked), NOT_LINKED),
    "by keyword": (linked(lambda m, y: m.b(input=m.relu(y))), {"a": ("norm", "relu", None)}),
    "clipped": (
        lambda: stack(*conv_block(nn.ReLU6()), nn.Conv2d(3, 2, 1)),
        {"0.0": ("0.1", None, None), "0.3": (None, None, None)},
    ),
    "grouped": (
        lambda: stack(*conv_block(groups=3)),
        {"0.0": ("0.1", "0.2", None)},
    ),
    "called twice": (called_twice, {}),
    "tied": (tied, {}),
    "reflected": (lambda: stack(*conv_block(padding_mode="reflect")), {}),
    "linear": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 2)), {}),
}


def found_in(network: nn.Module, inputs: Tensor) -> tuple[Int8Layer, ...]:
    pairs = find_pairs(network, inputs)
    return find_int8(network, [inputs, inputs], pairs, find_rectified(network, pairs, inputs))


@needs_int8
@pytest.mark.parametrize("case", CASES)
def test_layers_are_found(case: str) -> None:
    make, expected = CASES[case]
    network = enliven_(make()).train()
    before = bits_of(network)
    found = found_in(network, RGB)
    assert {one.layer: (one.norm, one.relu, one.reader) for one in found} == expected
    assert unchanged(network, before)
    assert network.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())


@needs_int8
@pytest.mark.parametrize("case", [case for case, (_, found) in CASES.items() if found])
def test_what_is_found_computes_about_the_same(case: str) -> None:
    network = enliven_(CASES[case][0]())
    skeleton = Skeleton(network, channels_last=True)
    layers = Int8Layers(skeleton, found_in(network, RGB), bits=BITS)
    layers.load()
    layers.fold()
    x = RGB.contiguous(memory_format=torch.channels_last)
    assert 0 < relative_difference(forward(network, x), forward(skeleton.module, x)) < 0.05


@needs_int8
def test_ranges_are_of_all_batches() -> None:
    network = enliven_(stack(nn.Conv2d(3, 2, 1)))
    low, high = RGB.clone(), RGB.clone()
    low[0, 0, 0, 0], high[-1, 2, 7, 7] = -10.0, 15.5
    (found,) = find_int8(network, [low, high], (), ())
    assert found.reads == Bytes(0.1, 100)
    assert found.shape == (4, 3, 8, 8)


# -- what they compute ------------------------------------------------------------------------


LEVELS = {7: 63, 8: 127}


def by_hand(
    x: Tensor, layer: Any, reads: Bytes, bits: int, norm: Any = None, *, relu: bool = False
) -> Tensor:
    """A convolution of whole numbers, then scales: exact in float64."""
    weight = layer.weight.detach().double()
    scales = (weight.abs().amax((1, 2, 3)) / LEVELS[bits]).float().double()
    scales[scales == 0] = 1
    whole = (weight.float() / scales.float()[:, None, None, None]).round().double()
    read = ((x.double() / reads.scale).round() + reads.zero).clamp(0, 255) - reads.zero
    settings = (layer.stride, layer.padding, layer.dilation, layer.groups)
    out: Tensor = conv2d(read, whole, None, *settings) * (scales * reads.scale)[:, None, None]
    bias = torch.zeros(len(weight)) if layer.bias is None else layer.bias.detach().double()
    out = out + bias[:, None, None]
    if norm is not None:
        factor = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
        shift = norm.bias.double() - norm.running_mean.double() * factor
        out = out * factor[:, None, None] + shift[:, None, None]
    return out.relu_() if relu else out


@with_bits
@pytest.mark.parametrize(
    "settings",
    [{}, {"bias": False}, {"stride": 2, "padding": (2, 1), "dilation": 2}, {"groups": 3}],
)
def test_convolutions_are_those_of_whole_numbers(settings: dict[str, Any], bits: int) -> None:
    """Padding is 0 although 0 is not byte 0; a batch norm may turn the sign of a channel."""
    layer, norm = nn.Conv2d(3, 6, 3, **settings), nn.BatchNorm2d(6)
    network = enliven_(stack(layer, norm, nn.ReLU()))
    with torch.no_grad():
        norm.weight[0] = -norm.weight[0].abs()
        layer.weight[1] = 0
        norm.weight[2] = 0  # as some networks begin with
    found = found_in(network, RGB)
    skeleton = Skeleton(network, channels_last=True)
    layers = Int8Layers(skeleton, found, bits=bits)
    layers.load()
    forwards: Any = skeleton.submodule("0.0")
    x = RGB.contiguous(memory_format=torch.channels_last)
    plain = by_hand(RGB, layer, found[0].reads, bits)
    torch.testing.assert_close(forwards(x).double(), plain, rtol=1e-5, atol=1e-5)
    layers.fold()
    folded = by_hand(RGB, layer, found[0].reads, bits, norm, relu=True)
    torch.testing.assert_close(forwards(x).double(), folded.detach(), rtol=1e-5, atol=1e-5)


@with_bits
def test_the_largest_sums_do_not_saturate(bits: int) -> None:
    """Every byte 255 and every weight at its end: 9 x 32 such products in a row, of either sign."""
    layer = nn.Conv2d(32, 16, 3, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.ones_like(layer.weight))
        layer.weight[8:] *= -1
    x = torch.ones(4, 32, 8, 8).contiguous(memory_format=torch.channels_last)
    found = found_in(stack(layer), x)
    skeleton = Skeleton(stack(layer), channels_last=True)
    Int8Layers(skeleton, found, bits=bits).load()
    forwards: Any = skeleton.submodule("0.0")
    expected = by_hand(x, layer, found[0].reads, bits)
    torch.testing.assert_close(expected.abs().max().item(), 288.0, rtol=0.01, atol=0)
    torch.testing.assert_close(forwards(x).double(), expected, rtol=1e-5, atol=1e-5)


@needs_int8
def test_what_one_layer_alone_reads_is_handed_on_in_bytes() -> None:
    network = enliven_(CASES["chain"][0]())
    found = {one.layer: one for one in found_in(network, RGB)}
    skeleton = Skeleton(network, channels_last=True)
    layers = Int8Layers(skeleton, tuple(found.values()), bits=BITS)
    layers.load()
    layers.fold()
    first: Any = skeleton.submodule("0.0")
    reads = found["0.3"].reads
    norm, layer = network.get_submodule("0.1"), network.get_submodule("0.0")
    exact = by_hand(RGB, layer, found["0.0"].reads, BITS, norm, relu=True)
    out = first(RGB.contiguous(memory_format=torch.channels_last))
    assert out.dtype == torch.uint8
    expected = (exact / reads.scale).round().clamp(0, 255)
    assert (out.double() - expected).abs().max() <= 1  # a tie may fall to either side
    assert (out.double() != expected).double().mean() < 0.01
    skeleton.reset()  # the next plan begins with plain layers
    assert first(RGB).dtype == torch.float32


def subject(name: str) -> tuple[nn.Module, Trace]:
    network = enliven_(build(name, width=0.3))
    return network, trace(network, images(2, 3, 32, 32), verify=False)


@needs_int8
@pytest.mark.parametrize("name", ["resnet20", "resnet18", "vgg16_bn", "mobilenet_v2"])
def test_networks_of_the_zoo_stay_what_they_are(name: str) -> None:
    network, found = subject(name)
    x = images(64, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    skeleton = Skeleton(network, channels_last=True)
    layers = found_in(network, x)
    assert len(layers) >= 0.9 * sum(type(m) is nn.Conv2d for m in network.modules())
    plan = random_plan(found, 1)
    skeleton.load(plan)
    running = Int8Layers(skeleton, layers, bits=BITS)
    running.load()
    running.fold()
    difference = relative_difference(forward(cut(network, plan), x), forward(skeleton.module, x))
    assert 0 < difference < 0.2


@with_bits
def test_scores_are_near_those_of_float32_and_rank_alike(bits: int) -> None:
    network, found = subject("resnet20")
    held = small_images(network, (3, 32, 32), 128)
    plans = [random_plan(found, seed, 0.5 + 0.05 * seed) for seed in range(8)]
    scores: dict[str, list[float]] = {}
    plain = ScoringExecution("float32", "channels_last")
    for name, execution in (("float32", plain), ("int", replace(plain, weight_bits=bits))):
        scorer = Scorer(network, held, execution=execution)
        scores[name] = [float(scorer(Task("k", plan, 0, 128)).kl.mean()) for plan in plans]
    np.testing.assert_allclose(scores["int"], scores["float32"], rtol=0.1, atol=0.005)
    assert np.argsort(scores["int"]).tolist() == np.argsort(scores["float32"]).tolist()


def _plans(network: nn.Module, found: Trace) -> list[Plan]:
    shape = tuple(network.get_parameter("layer1.1.conv2.weight").shape[:2])
    held = zero("layer1.1.conv2.weight", flags(*shape))
    return [found.plan({}), *some_plans(found, 2, groups=1), found.plan({}, [held])]


@needs_int8
def test_parts_and_shared_beginnings_give_the_bits_of_the_whole() -> None:
    network, found = subject("resnet20")
    held = small_images(network, (3, 32, 32), 96)
    scorer = Scorer(network, held, execution=HERE)
    every = tuple(range(len(scorer.prefix.boundaries)))
    assert every
    for plan in _plans(network, found):
        alone = Scorer(network, held, execution=HERE, tricks=Tricks(memory_bytes=0))
        whole = alone(Task("k", plan, 0, 96))
        first = scorer(Task("k", plan, 0, 64, share=every))
        rest = scorer(Task("k", plan, 64, 96, statistics=first.statistics, share=every))
        assert first.statistics == whole.statistics
        assert np.array_equal(np.concatenate([first.kl, rest.kl]), whole.kl)
    assert scorer.prefix_hits > 0


@needs_int8
def test_weights_held_at_zero_are_zero_bytes() -> None:
    network, found = subject("resnet20")
    plan = _plans(network, found)[-1]
    held = small_images(network, (3, 32, 32), 64)
    mine = Scorer(network, held, execution=HERE)(Task("k", plan, 0, 64))
    small = cut(network, plan)
    again = Scorer(small, held, execution=HERE)
    other = again(Task("k", trace(small, images(2, 3, 32, 32), verify=False).plan({}), 0, 64))
    np.testing.assert_allclose(mine.kl, other.kl, rtol=0.2, atol=0.02)


@pytest.mark.parametrize(
    ("flags_line", "expected"),
    [
        ("fpu avx2 avx512f avx512_vnni", 8),
        ("fpu avx_vnni", 8),
        ("fpu avx2 avx512f", 7),
        ("fpu avx", 0),
        ("", 0),
    ],
)
def test_weights_have_the_bits_whose_sums_the_cpu_can_hold(
    flags_line: str, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prunus.records.processor_line", lambda *_: flags_line)
    assert weight_bits(stack(nn.Conv2d(3, 2, 1))) == expected
    assert weight_bits(nn.Linear(2, 2)) == 0


@pytest.mark.parametrize(("execution", "here"), [(INT8, 0), (INT8, 7), (INT7, 0)])
def test_a_machine_without_it_scores_nothing_in_it(
    execution: ScoringExecution, here: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker elsewhere, or a run that was begun elsewhere."""
    network, held = (
        stack(nn.Conv2d(3, 2, 1)),
        small_images(stack(nn.Conv2d(3, 2, 1)), (3, 8, 8), 64, classes=2),
    )
    monkeypatch.setattr("prunus.candidates.int8_find.weight_bits", lambda _: here)
    with pytest.raises(InputError, match="needs a CPU.*go on on such machines alone"):
        Scorer(network, held, execution=execution)
    store: Any = SimpleNamespace(setting={"execution": execution.name}.get)
    given: Any = (network, None, held, None, store)
    with pytest.raises(InputError, match="needs a CPU.*this run has scores in it"):
        workplace._execution(*given)
    monkeypatch.setattr("prunus.candidates.int8_find.weight_bits", lambda _: 8)
    assert workplace._execution(*given) == execution  # 7 bits run where 8 do


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_int8_is_of_networks_in_float32(dtype: torch.dtype) -> None:
    assert weight_bits(nn.Conv2d(3, 2, 1).to(dtype)) == 0


def test_names_are_read_back() -> None:
    for precision in get_args(ScoringPrecision):
        for layout in ("contiguous", "channels_last"):
            made = ScoringExecution.of(precision, layout)
            assert made.name == f"{precision} {layout}"
            assert ScoringExecution.named(made.name) == made
