"""How many units of a group may stay, and which flags a choice may be made of."""

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from prunus.errors import InputError
from prunus.graph import Group, Trace, UnitAxis, cut, trace
from prunus.method import Budget
from prunus.plan import Bits, ZeroConnections
from prunus.prune import uniform_choice
from tests.helpers import FusedAttention, chain, images, pooled

IMAGES = images(2, 3, 8, 8)


def normed() -> nn.Module:
    """Two convolutions under norms of 8 groups: a unit is 4 channels of the one, 2 of the other."""
    return pooled(
        nn.Sequential(
            nn.Conv2d(3, 32, 1),
            nn.GroupNorm(8, 32),
            nn.Conv2d(32, 16, 1),
            nn.GroupNorm(8, 16),
            nn.Conv2d(16, 2, 1),
        )
    )


def group(*channels: int, units: int = 12, **settings: Any) -> Group:
    """A group with an axis for each number of channels that a unit has on it."""
    axes = [
        UnitAxis(f"{k}.weight", 0, np.repeat(np.arange(units), n), "out")
        for k, n in enumerate(channels)
    ]
    return Group("0", units, tuple(axes), **settings)


@pytest.mark.parametrize(
    ("channels", "round_to", "step"),
    [
        ((1,), 8, 8),
        ((4,), 8, 2),
        ((4, 12), 8, 2),  # 2 units are 8 and 24 channels
        ((16,), 8, 1),
        ((6,), 4, 2),
        ((3,), 8, 8),
        ((2, 3), 6, 6),  # 3 units would be 6 channels on the one axis, 9 on the other
        ((4, 16), 1, 1),
    ],
)
def test_kept_channels_are_a_multiple_on_every_axis(
    channels: tuple[int, ...], round_to: int, step: int
) -> None:
    found = group(*channels, round_to=round_to)
    assert found.step == step
    good = [n for n in range(1, 25) if all(n * k % round_to == 0 for k in channels)]
    assert good == list(range(step, 25, step))


def test_positions_of_other_groups_do_not_count() -> None:
    axis = UnitAxis("0.weight", 0, np.array([-1, -1, -1, 0, 0, 1, 1]), "out")
    assert Group("0", 2, (axis,), round_to=4).step == 2


@pytest.mark.parametrize(
    ("least", "width"), [(0, 4), (1, 4), (4, 4), (5, 8), (9, 10), (10, 10), (99, 10)]
)
def test_least_legal_width(least: int, width: int) -> None:
    """Ten units in steps of 4, of which 3 must stay: 4, 8 or all."""
    assert group(1, units=10, round_to=4, min_units=3).width(least) == width


@pytest.mark.parametrize("round_to", [4, 8])
@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
def test_a_cut_network_has_such_channels(round_to: int, share: float) -> None:
    network = normed().eval()
    found = trace(network, IMAGES, round_to=round_to)
    assert [g.step for g in found.cuttable] == [round_to // 4, round_to // 2]
    scores = {g.name: np.arange(float(g.units)) for g in found.cuttable}
    choice = uniform_choice(found, Budget(quantity="params", value=share), scores)
    small = cut(network, found.plan(choice))
    widths = [m.out_channels for m in small.modules() if isinstance(m, nn.Conv2d)][:2]
    assert widths < [32, 16]
    assert [w % round_to for w in widths] == [0, 0]


def test_channels_that_each_group_of_a_convolution_reads_count_too() -> None:
    """32 channels in 8 groups of 4: a unit is one channel of every group, 8 in all."""
    layers = nn.Conv2d(3, 32, 1), nn.Conv2d(32, 16, 1, groups=8), nn.Conv2d(16, 2, 1)
    first, second = trace(pooled(nn.Sequential(*layers)), IMAGES, round_to=2).cuttable
    assert (first.units, first.channels_per_unit, first.step) == (4, 1, 2)
    assert (second.units, second.channels_per_unit, second.step) == (2, 8, 1)


def test_heads_of_a_round_width_go_one_by_one() -> None:
    """Four heads of 8 channels: any number of them is a multiple of 8 channels."""
    network = FusedAttention(heads=4, width=32).eval()
    found = trace(network, images(2, 5, 6), round_to=8)
    (heads,) = (g for g in found.cuttable if g.units == 4)
    assert heads.step == 1
    small = cut(network, found.plan({heads.name: np.array([True, False, True, True])}))
    assert small.get_parameter("out.weight").shape == (3, 24)


def test_message_tells_units_from_channels() -> None:
    found = trace(normed(), IMAGES, round_to=8)
    (first, *_) = found.cuttable
    words = r"multiples of 2 units \(round_to=8 channels, 4 in a unit\), not 1"
    with pytest.raises(InputError, match=words):
        found.plan({first.name: np.arange(8) < 1})


def test_units_that_nothing_reads_go_in_legal_numbers() -> None:
    """Of 4 units 3 must stay, in steps of 2, so all do though a connection reads one alone."""
    keep = np.zeros((5, 4), dtype=bool)
    keep[:, 0] = True
    lost = ZeroConnections(tensor="2.weight", level="kernel", shape=(5, 4), keep=Bits.pack(keep))
    network = nn.Sequential(*(m for m in chain() if not isinstance(m, nn.BatchNorm2d)))
    plan = trace(network, IMAGES, min_units=3, round_to=2).plan({}, [lost])
    assert "0" not in plan.channels


# -- flags ----------------------------------------------------------------------------------------

FLAGS = [True, False, True, True]


@cache
def traced() -> Trace:
    return trace(chain(), IMAGES)


@pytest.mark.parametrize(
    "flags",
    [np.array(FLAGS), FLAGS, tuple(FLAGS), list(np.array(FLAGS)), torch.tensor(FLAGS)],
    ids=["array", "list", "tuple", "list of numpy", "tensor"],
)
def test_booleans_are_taken_as_flags(flags: Any) -> None:
    found = traced()
    plan = found.plan({"0": flags})
    assert plan.channels["0"].tolist() == FLAGS
    assert found.cost({"0": flags}) == found.cost({"0": np.array(FLAGS)})
    found.check({"0": flags})


@pytest.mark.parametrize(
    "flags",
    [
        [0, 1, 2],
        [0, 1, 2, 3],
        [1.0, 0.0, 1.0, 1.0],
        np.array([0, 1, 2, 3]),
        np.array([1.0, 0.0, 1.0, 1.0]),
        torch.tensor([1, 0, 1, 1]),
        np.ones((4, 1), bool),
        np.True_,
        None,
        "0110",
    ],
    ids=str,
)
def test_indices_and_numbers_are_refused_with_the_group_and_the_remedy(flags: Any) -> None:
    for use in (traced().plan, traced().check, traced().macs):
        with pytest.raises(InputError, match=r"choice of group '0' is .*give 4 booleans") as caught:
            use({"0": flags})
        assert "np.isin(np.arange(4), indices)" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_too_few_flags_are_refused_by_the_costs_too() -> None:
    for use in (traced().plan, traced().macs):
        with pytest.raises(InputError, match="'0' has 4 units, the choice 1"):
            use({"0": np.array([True])})  # NumPy would spread it over all four
