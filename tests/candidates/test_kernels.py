"""ReLUs go into the convolutions that alone feed them, weights into the format they run in."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunus.candidates.fold import find_pairs, fold_
from prunus.candidates.kernels import (
    Rectified,
    convert_,
    converted_layers,
    find_rectified,
    has_rectifier,
    rectify_,
)
from prunus.candidates.skeleton import Skeleton
from prunus.graph import cut, trace
from prunus.graph.difference import relative_difference
from prunus.zoo import build
from tests.candidates.subjects import bits_of, forward, random_plan, unchanged
from tests.helpers import Wired, enliven_, images, pooled

RGB = images(4, 3, 8, 8)

needs_kernel = pytest.mark.skipif(
    not has_rectifier(torch.float32), reason="this PyTorch has no convolution with a ReLU in it"
)


def block(relu: nn.Module, **convolution: Any) -> nn.Module:
    return pooled(nn.Sequential(nn.Conv2d(3, 4, 3, **convolution), nn.BatchNorm2d(4), relu))


def read_before() -> nn.Module:
    """What the batch norm returns is read without the ReLU, too."""

    def wiring(m: Any, x: Tensor) -> Tensor:
        y = m.norm(m.conv(x))
        out: Tensor = (m.relu(y) + y).mean((2, 3))
        return out

    return Wired(wiring, conv=nn.Conv2d(3, 4, 3), norm=nn.BatchNorm2d(4), relu=nn.ReLU())


def one_relu_for_two() -> nn.Module:
    def wiring(m: Any, x: Tensor) -> Tensor:
        y = m.relu(m.first(m.a(x)))
        out: Tensor = m.relu(m.second(m.b(y))).mean((2, 3))
        return out

    return Wired(
        wiring,
        a=nn.Conv2d(3, 4, 3),
        first=nn.BatchNorm2d(4),
        b=nn.Conv2d(4, 4, 3),
        second=nn.BatchNorm2d(4),
        relu=nn.ReLU(),
    )


class Shifted(nn.ReLU):
    """A ReLU that does more than its class says."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


FOUND = {Rectified("0.0", "0.2")}
CASES: dict[str, tuple[Callable[[], nn.Module], set[Rectified]]] = {
    "plain": (lambda: block(nn.ReLU()), FOUND),
    "in place": (lambda: block(nn.ReLU(inplace=True)), FOUND),
    "strided, padded, dilated": (
        lambda: block(nn.ReLU(), stride=2, padding=(2, 1), dilation=2, bias=False),
        FOUND,
    ),
    "clipped": (lambda: block(nn.ReLU6()), set()),
    "a subclass": (lambda: block(Shifted()), set()),
    "padded by name": (lambda: block(nn.ReLU(), padding="same"), set()),
    "padded by reflection": (lambda: block(nn.ReLU(), padding=1, padding_mode="reflect"), set()),
    "read before": (read_before, set()),
    "one for two": (one_relu_for_two, set()),
    "no batch norm": (lambda: pooled(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())), set()),
}


def lowered(network: nn.Module, inputs: Tensor) -> Skeleton:
    """Folded and rectified."""
    pairs = find_pairs(network, inputs)
    skeleton = Skeleton(network)
    fold_(skeleton, pairs)
    rectify_(skeleton, find_rectified(network, pairs, inputs))
    return skeleton


@needs_kernel
@pytest.mark.parametrize("case", CASES)
def test_relus_are_found_where_nothing_changes(case: str) -> None:
    make, expected = CASES[case]
    network = enliven_(make())
    before = bits_of(network)
    found = find_rectified(network, find_pairs(network, RGB), RGB)
    assert set(found) == expected
    out = forward(lowered(network, RGB).module, RGB)
    assert relative_difference(forward(network, RGB), out) < 1e-5
    assert unchanged(network, before)
    assert not any(m._forward_hooks for m in network.modules())


@needs_kernel
@pytest.mark.parametrize(("model", "expected"), [("resnet20", 10), ("vgg16_bn", 13)])
def test_relus_of_the_zoo_for_every_cut(model: str, expected: int) -> None:
    """In a residual block the second ReLU reads a sum: it stays. Nine blocks and the stem are ten."""
    x = images(2, 3, 32, 32)
    network = enliven_(build(model, width=0.2))
    pairs = find_pairs(network, x)
    found = find_rectified(network, pairs, x)
    assert len(found) == expected
    skeleton = Skeleton(network, channels_last=True)
    ran: list[str] = []
    for seed in range(2):
        plan = random_plan(trace(network, x, verify=False), seed)
        skeleton.load(plan)
        fold_(skeleton, pairs)
        rectify_(skeleton, found)
        with torch.profiler.profile() as profile:
            out = forward(skeleton.module, x)
        ran = [event.name for event in profile.events()]
        assert relative_difference(forward(cut(network, plan), x), out) < 1e-5
        relus = sum(type(module) is nn.ReLU for module in network.modules())
        assert ran.count("aten::relu") == relus - expected
    assert ran.count("mkldnn::_convolution_pointwise") == expected
    skeleton.reset()  # the next plan begins with plain layers
    assert relative_difference(forward(network, x), forward(skeleton.module, x)) < 1e-5


def test_without_the_kernel_nothing_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prunus.candidates.kernels.has_rectifier", lambda _dtype: False)
    network = enliven_(block(nn.ReLU()))
    assert find_rectified(network, find_pairs(network, RGB), RGB) == ()


@needs_kernel
def test_a_kernel_that_fails_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Tensor:
        raise RuntimeError("unsupported")

    monkeypatch.setattr("prunus.candidates.kernels._convolve_and_rectify", fail)
    network = enliven_(block(nn.ReLU()))
    assert find_rectified(network, find_pairs(network, RGB), RGB) == ()


class Standardized(nn.Conv2d):
    """Reads its weight in a way of its own."""


def test_layers_whose_weights_are_converted() -> None:
    tied = nn.Embedding(7, 4)
    head = nn.Linear(4, 7)
    head.weight = tied.weight
    parts = {"conv": nn.Conv2d(3, 4, 1), "own": Standardized(3, 4, 1), "norm": nn.BatchNorm2d(4)}
    network = Wired(lambda _m, x: x, tied=tied, head=head, linear=nn.Linear(4, 4), **parts)
    assert set(converted_layers(Skeleton(network))) == {"conv", "linear"}


@pytest.mark.parametrize("model", ["resnet20", "vgg16_bn"])
def test_converted_once_gives_the_bits_of_autocast(model: str) -> None:
    x = images(2, 3, 32, 32)
    network = enliven_(build(model, width=0.2))
    pairs = find_pairs(network, x)
    skeleton = Skeleton(network)
    outs = []
    for convert in (False, True):
        skeleton.load(random_plan(trace(network, x, verify=False), 1))
        fold_(skeleton, pairs)
        if convert:
            convert_(skeleton, converted_layers(skeleton), torch.bfloat16)
            held = [skeleton.tensor(f"{pair.layer}.bias").dtype for pair in pairs]
            assert set(held) == {torch.bfloat16}  # a bias that folding brought, too
        with torch.autocast("cpu", dtype=torch.bfloat16):
            outs += forward(skeleton.module, x)
    assert torch.equal(*outs)
    skeleton.reset()
    assert skeleton.tensor(f"{pairs[0].layer}.weight").dtype == torch.float32


@needs_kernel
@pytest.mark.parametrize("takes", [True, False])
def test_a_kernel_is_asked_what_it_takes(monkeypatch: pytest.MonkeyPatch, takes: bool) -> None:
    """On CPUs without AVX-512 it refuses bfloat16, which autocast has the plain layers emulate."""
    kernel = torch.ops.mkldnn._convolution_pointwise

    def asked(x: Tensor, *rest: Any) -> Any:
        if x.dtype == torch.bfloat16 and not takes:
            raise RuntimeError("bf16 path needs the cpu support avx512bw")
        return kernel(*(t.float() if isinstance(t, Tensor) else t for t in (x, *rest)))

    monkeypatch.setattr(torch.ops.mkldnn, "_convolution_pointwise", asked)
    has_rectifier.cache_clear()
    try:
        network = enliven_(build("resnet20", width=0.5))
        pairs = find_pairs(network, RGB)
        assert find_rectified(network, pairs, RGB)
        assert bool(find_rectified(network, pairs, RGB, torch.bfloat16)) == takes
    finally:
        has_rectifier.cache_clear()


@pytest.mark.skipif(
    not has_rectifier(torch.bfloat16), reason="on this CPU the kernel takes no bfloat16"
)
def test_rectified_in_bfloat16_is_near_the_plain_layers() -> None:
    x = images(2, 3, 32, 32)
    network = enliven_(build("resnet20", width=0.5))
    pairs = find_pairs(network, x)
    found = find_rectified(network, pairs, x)
    assert found
    skeleton = Skeleton(network, channels_last=True)
    outs = []
    for rectify in (False, True):
        skeleton.reset()
        fold_(skeleton, pairs)
        convert_(skeleton, converted_layers(skeleton), torch.bfloat16)
        if rectify:
            rectify_(skeleton, found)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            outs += [out.float() for out in forward(skeleton.module, x)]
    assert relative_difference(*outs) < 1e-2
