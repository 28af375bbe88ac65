"""The network on slices is the cut network, bit by bit, and the dense one is never touched."""

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from prunus.candidates.fold import find_pairs, fold_
from prunus.candidates.skeleton import Skeleton
from prunus.errors import PlanMismatchError
from prunus.graph import Trace, cut, trace
from prunus.plan import SetAttribute
from prunus.zoo import build
from tests.candidates.subjects import (
    Level,
    bits_of,
    flags,
    forward,
    inner,
    random_plan,
    same_bits,
    share_weight_,
    unchanged,
    zero,
)
from tests.helpers import (
    FusedAttention,
    GroupedQueries,
    Pick,
    Wired,
    all_but,
    chain,
    enliven_,
    images,
    pooled,
    random_choice,
)

RGB = (2, 3, 16, 16)

NETWORKS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "digits_cnn": (lambda: build("digits_cnn"), images(2, 1, 8, 8)),
    "resnet20": (lambda: build("resnet20", width=0.5), images(*RGB)),
    "resnet18": (lambda: build("resnet18", width=0.1), images(*RGB)),
    "vgg16_bn": (lambda: build("vgg16_bn", width=0.1), images(2, 3, 32, 32)),
    "mobilenet_v2": (lambda: build("mobilenet_v2", width=0.2), images(*RGB)),
    "fused attention": (lambda: FusedAttention(4), images(2, 5, 6)),
    "grouped queries": (GroupedQueries, images(2, 5, 6)),
    "index buffer": (
        lambda: pooled(nn.Sequential(nn.Conv2d(3, 6, 1), Pick(6), nn.Conv2d(6, 2, 1))),
        images(*RGB),
    ),
    "group norm": (
        lambda: pooled(nn.Sequential(nn.Conv2d(3, 6, 1), nn.GroupNorm(3, 6), nn.Conv2d(6, 2, 1))),
        images(*RGB),
    ),
    "norms without scale": (
        lambda: pooled(
            nn.Sequential(
                nn.Conv2d(3, 6, 1),
                nn.BatchNorm2d(6, affine=False),
                nn.Conv2d(6, 5, 3),
                nn.BatchNorm2d(5, track_running_stats=False),
                nn.Conv2d(5, 2, 1),
            )
        ),
        images(*RGB),
    ),
    "layer norm without scale": (
        lambda: nn.Sequential(
            nn.Linear(6, 4), nn.LayerNorm(4, elementwise_affine=False), nn.Linear(4, 2)
        ),
        images(2, 6),
    ),
    "transposed and grouped": (
        lambda: pooled(
            nn.Sequential(
                nn.ConvTranspose2d(3, 6, 2),
                nn.PReLU(6),
                nn.Conv2d(6, 8, 3, groups=2),
                nn.Conv2d(8, 2, 1),
            )
        ),
        images(*RGB),
    ),
}


@cache
def subject(name: str) -> tuple[nn.Module, Trace, Tensor]:
    make, x = NETWORKS[name]
    network = enliven_(make())
    return network, trace(network, x), x


def require_cut(skeleton: Skeleton, network: nn.Module, plan: Any, x: Any) -> None:
    skeleton.load(plan)
    assert same_bits(forward(skeleton.module, x), forward(cut(network, plan), x))


@pytest.mark.parametrize("name", NETWORKS)
def test_sliced_network_is_the_cut_one_bit_by_bit(name: str) -> None:
    network, found, x = subject(name)
    assert found.cuttable
    before, dense = bits_of(network), forward(network, x)
    skeleton = Skeleton(network)
    assert same_bits(forward(skeleton.module, x), dense)
    for seed in range(3):
        require_cut(skeleton, network, random_plan(found, seed, share=(0.3, 0.6, 0.9)[seed]), x)
    skeleton.reset()
    assert same_bits(forward(skeleton.module, x), dense)
    assert unchanged(network, before)


@pytest.mark.parametrize("name", ["digits_cnn", "mobilenet_v2", "transposed and grouped"])
def test_contiguous_ranges(name: str) -> None:
    """Views with the strides of the dense network compute the same as their copies."""
    network, found, x = subject(name)
    skeleton = Skeleton(network)
    for first, last in ((0.0, 0.5), (0.3, 1.0), (0.2, 0.8)):
        choice = {}
        for group in found.cuttable:
            at = np.arange(group.units)
            keep = (at >= int(first * group.units)) & (at < int(last * group.units))
            keep[group.units // 2] = True
            choice[group.name] = keep
        require_cut(skeleton, network, found.plan(choice), x)


@settings(max_examples=15)
@given(seeds=st.lists(st.integers(0, 10_000), min_size=2, max_size=4))
def test_what_was_loaded_before_leaves_no_trace(seeds: list[int]) -> None:
    network, found, x = subject("digits_cnn")
    used = Skeleton(network)
    for seed in seeds:
        plan = random_plan(found, seed, share=0.2 + (seed % 7) / 10)
        used.load(plan)
    fresh = Skeleton(network)
    fresh.load(plan)
    assert same_bits(forward(used.module, x), forward(fresh.module, x))
    assert str(used.module) == str(fresh.module) == str(cut(network, plan))


@pytest.mark.parametrize("name", ["mobilenet_v2", "fused attention", "group norm"])
def test_numbers_on_modules_are_taken_back(name: str) -> None:
    network, found, _ = subject(name)
    skeleton = Skeleton(network)
    plans = [random_plan(found, seed, share=0.4) for seed in range(2)]
    assert any(isinstance(edit, SetAttribute) for plan in plans for edit in plan.edits)
    for plan in (*plans, plans[0]):  # the second time its numbers are checked against the dense
        skeleton.load(plan)
        assert str(skeleton.module) == str(cut(network, plan))
    skeleton.reset()
    assert str(skeleton.module) == str(network)


@pytest.mark.parametrize("name", ["Bert", "ConvNext", "Swin", "Llama", "T5Encoder", "DebertaV2"])
def test_small_transformers(name: str, architectures: Any) -> None:
    network, inputs = architectures(name)
    network.eval()
    found = trace(network, inputs, verify=False)
    before, dense = bits_of(network), forward(network, inputs)
    numbers = [copy.copy(vars(module)) for module in network.modules()]
    skeleton = Skeleton(network)
    for seed in range(2):
        require_cut(skeleton, network, random_plan(found, seed, share=0.7), inputs)
    skeleton.reset()
    assert same_bits(forward(skeleton.module, inputs), dense)
    assert unchanged(network, before)
    for module, mine in zip(network.modules(), numbers, strict=True):
        assert vars(module).keys() == mine.keys()
        assert all(vars(module)[key] is value for key, value in mine.items())


# Connections


@pytest.mark.parametrize("level", ["kernel", "weight"])
@pytest.mark.parametrize("with_channels", [False, True])
def test_connections(level: Level, with_channels: bool) -> None:
    network, found, x = subject("digits_cnn")
    skeleton = Skeleton(network)
    for seed in range(3):
        choice = random_choice(found, seed) if with_channels else {}
        connections = []
        for tensor in ("conv2.weight", "conv3.weight", "fc.weight"):
            shape = tuple(network.get_parameter(tensor).shape)
            if level == "kernel" and tensor == "fc.weight":
                continue
            keep = flags(*(shape[:2] if level == "kernel" else shape), seed=seed)
            connections.append(zero(tensor, keep, level))
        require_cut(skeleton, network, found.plan(choice, connections), x)


def test_connections_held_by_an_earlier_cut() -> None:
    dense, found, x = subject("digits_cnn")
    held = [zero("conv2.weight", flags(24, 16), "kernel")]
    network = cut(dense, found.plan(random_choice(found, 9, 0.8), held))
    again = trace(network, x)
    before = bits_of(network)
    assert any("held" in name for name in before)
    skeleton = Skeleton(network)
    for seed in range(3):
        choice = random_choice(again, seed)
        require_cut(skeleton, network, again.plan(choice), x)
        shape = tuple(network.get_parameter("conv2.weight").shape)
        more = [zero("conv2.weight", flags(*shape, seed=seed), "weight")]
        require_cut(skeleton, network, again.plan(choice, more), x)
        mask = dict(skeleton.module.named_buffers())["conv2.weight_prunus_held"]
        assert mask.shape == skeleton.submodule("conv2").weight.shape
    assert unchanged(network, before)


def tied() -> nn.Module:
    """Two linear layers with one weight between two others."""
    network = Wired(
        lambda m, x: m.head(m.second(m.first(m.stem(x)).relu()).relu()),
        stem=nn.Linear(5, 8),
        first=nn.Linear(8, 8),
        second=nn.Linear(8, 8),
        head=nn.Linear(8, 3),
    )
    share_weight_(network, "second", "first")
    return enliven_(network)


def test_tied_weights() -> None:
    network, x = tied(), images(4, 5)
    found = trace(network, x)
    skeleton = Skeleton(network)
    connections = [zero("first.weight", flags(8, 8), "weight")]
    plans = [found.plan({}, connections)]
    if found.cuttable:
        choice = random_choice(found, 1)
        plans += [found.plan(choice), found.plan(choice, connections)]
    for plan in plans:
        require_cut(skeleton, network, plan, x)
        assert skeleton.submodule("first").weight is skeleton.submodule("second").weight


def test_module_under_two_names() -> None:
    layer = nn.Conv2d(4, 4, 1)
    network = enliven_(
        pooled(nn.Sequential(nn.Conv2d(3, 4, 1), layer, nn.ReLU(), layer, nn.Conv2d(4, 6, 1)))
    )
    x = images(*RGB)
    found = trace(network, x)
    skeleton = Skeleton(network)
    require_cut(skeleton, network, found.plan({}, [zero("0.1.weight", flags(4, 4))]), x)
    if found.cuttable:
        require_cut(skeleton, network, random_plan(found, 0), x)


# What is shared


def test_no_parameter_is_copied_and_every_buffer_is() -> None:
    network, _, _ = subject("resnet20")
    skeleton = Skeleton(network)
    mine = dict([*skeleton.module.named_parameters(), *skeleton.module.named_buffers()])
    theirs = dict([*network.named_parameters(), *network.named_buffers()])
    assert mine.keys() <= theirs.keys()
    held = [t for m in skeleton.module.modules() for t in m._parameters.values()]
    addresses = {t.data_ptr() for t in network.parameters()}
    assert {t.data_ptr() for t in held if t is not None} == addresses
    buffers = [t for m in skeleton.module.modules() for t in m._buffers.values()]
    assert not {t.data_ptr() for t in buffers if t is not None} & {
        t.data_ptr() for t in network.buffers()
    }


WRITES: dict[str, Callable[[Any, Tensor], None]] = {
    "in place": lambda m, x: m.seen.mul_(0.9).add_(x.max()),
    "a new tensor": lambda m, x: setattr(m, "seen", 0.9 * m.seen + x.max()),
    "behind the back of autograd": lambda m, x: m.seen.data.add_(x.max()),
    "another shape": lambda m, _: m.seen.resize_(1),
}


@pytest.mark.parametrize("case", WRITES)
def test_what_a_forward_writes_to_a_buffer_is_forgotten(case: str) -> None:
    def wiring(m: Any, x: Tensor) -> Tensor:
        WRITES[case](m, x)
        out: Tensor = m.head(x - m.seen)
        return out

    network = Wired(wiring, head=nn.Linear(4, 2)).eval()
    network.register_buffer("seen", torch.zeros(()))
    skeleton, x = Skeleton(network), images(3, 4)
    assert not skeleton.has_written()
    first = forward(skeleton.module, x)
    assert skeleton.has_written()
    for _ in range(2):
        skeleton.reset()
        assert same_bits(forward(skeleton.module, x), first)
    assert inner(network, "").seen.shape == () and inner(network, "").seen == 0


def test_contiguous_range_is_a_view_and_others_are_not() -> None:
    network, found, _ = subject("digits_cnn")
    dense = network.get_parameter("conv2.weight")
    skeleton = Skeleton(network)
    skeleton.load(found.plan({"conv2": np.arange(24) >= 20}))
    sliced = inner(skeleton.module, "conv2").weight
    assert sliced.shape == (4, 16, 3, 3)
    assert sliced.data_ptr() == dense[20].data_ptr()
    skeleton.load(found.plan({"conv2": all_but(24, 3)}))
    sliced = inner(skeleton.module, "conv2").weight
    assert not dense.data_ptr() <= sliced.data_ptr() < dense.data_ptr() + 4 * dense.numel()
    assert (
        inner(skeleton.module, "conv4").weight.data_ptr()
        == network.get_parameter("conv4.weight").data_ptr()
    )


def test_dense_network_is_never_written_to() -> None:
    network, found, x = subject("digits_cnn")
    before = bits_of(network)
    skeleton = Skeleton(network)
    pairs = find_pairs(network, x)
    assert pairs
    for seed in range(4):
        skeleton.load(random_plan(found, seed, share=0.9))
        for name in skeleton.norms:
            norm = inner(skeleton.module, name)
            mean = torch.zeros_like(norm.running_mean)
            skeleton.put_statistics(name, mean, torch.ones_like(mean))
            norm.training, norm.momentum = True, None
        forward(skeleton.module, x)  # batch norms write to their statistics, in place
        for name in skeleton.norms:
            skeleton.submodule(name).training = False
        fold_(skeleton, pairs)
        forward(skeleton.module, x)
        assert unchanged(network, before)


def test_structure_of_the_given_network_stays() -> None:
    network = enliven_(chain())
    inner(network, "1").train()
    text, flags_before = str(network), [m.training for m in network.modules()]
    skeleton = Skeleton(network)
    skeleton.load(trace(network, images(2, 3, 8, 8)).plan({"0": all_but(4, 1)}))
    assert str(network) == text
    assert [m.training for m in network.modules()] == flags_before
    assert not any(m.training for m in skeleton.module.modules())
    assert all("forward" not in vars(m) for m in network.modules())


# Layout, refusals


def test_channels_last_is_kept_by_every_slice() -> None:
    network, found, x = subject("mobilenet_v2")
    skeleton = Skeleton(network, channels_last=True)
    y = x.contiguous(memory_format=torch.channels_last)
    plan = random_plan(found, 3)
    skeleton.load(plan)
    four = [p for p in skeleton.module.modules() if isinstance(p, nn.Conv2d)]
    assert all(p.weight.is_contiguous(memory_format=torch.channels_last) for p in four)
    other = cut(network, plan).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch leaves it out
    assert same_bits(forward(skeleton.module, y), forward(other, y))
    assert all(p.is_contiguous() for p in network.parameters())


def test_plan_for_another_network_is_refused() -> None:
    network, _, _ = subject("digits_cnn")
    other = enliven_(build("digits_cnn", width=0.5))
    plan = random_plan(trace(other, images(2, 1, 8, 8)), 0)
    skeleton = Skeleton(network)
    with pytest.raises(PlanMismatchError, match="is for another network"):
        skeleton.load(plan)
    x = images(2, 1, 8, 8)
    assert same_bits(forward(skeleton.module, x), forward(network, x))


def test_number_that_differs_from_the_plans_is_refused_and_forgotten() -> None:
    network, found, x = subject("fused attention")
    plan = random_plan(found, 1, share=0.4)
    assert plan.edits
    wrong = plan.model_copy(
        update={
            "edits": (
                *plan.edits,
                SetAttribute(module="out", attribute="in_features", before=7, after=3),
            )
        }
    )
    skeleton = Skeleton(network)
    with pytest.raises(PlanMismatchError, match="in_features"):
        skeleton.load(wrong)
    require_cut(skeleton, network, plan, x)
    skeleton.reset()
    assert same_bits(forward(skeleton.module, x), forward(network, x))


def test_watcher_sees_every_inner_module_once_in_order() -> None:
    network = enliven_(chain())
    skeleton = Skeleton(network)
    seen = []

    def watch(name: str, forward: Any, args: Any, kwargs: Any) -> Any:
        seen.append(name)
        return forward(*args, **kwargs)

    x = images(2, 3, 8, 8)
    skeleton.watcher = watch
    out = forward(skeleton.module, x)
    assert seen == ["0", "1", "2", "3", "4", "5", "6"]
    assert same_bits(out, forward(network, x))
