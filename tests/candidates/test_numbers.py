"""What is no number stays none, however fast it is scored, and costs nothing where it cannot be."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from prunus.candidates import numbers
from prunus.candidates.execution import ScoringExecution as Execution
from prunus.candidates.execution import ScoringPrecision
from prunus.candidates.int8_find import weight_bits
from prunus.candidates.kernels import has_rectifier
from prunus.candidates.numbers import are_finite, may_break
from prunus.candidates.scorer import Images, Scorer, Tricks
from prunus.candidates.task import Result, Task
from prunus.graph import trace
from prunus.zoo import build
from tests.candidates.subjects import small_images
from tests.helpers import Wired, enliven_, images

BITS = weight_bits(nn.Conv2d(1, 1, 1))
needs_int8 = pytest.mark.skipif(not BITS, reason="this CPU does not multiply bytes (VNNI, or AVX2)")
HERE: ScoringPrecision = "int8" if BITS == 8 else "int7"
FORMATS = [
    Execution(),
    pytest.param(
        Execution.of("bfloat16", "channels_last"),
        marks=pytest.mark.skipif(not has_rectifier(torch.bfloat16), reason="no such kernel"),
    ),
    pytest.param(Execution.of(HERE, "channels_last"), marks=needs_int8),
]


def shares(m: Any, x: Tensor) -> Tensor:
    """Channels as shares of the largest one: 0 / 0 where all of them are 0."""
    y = m.a(x).relu()
    out: Tensor = m.head(m.relu(m.norm(m.b(y / y.amax(1, keepdim=True)))).mean((2, 3)))
    return out


def dividing(wiring: Callable[..., Tensor] = shares, **more: nn.Module) -> nn.Module:
    """Every other channel of the first layer is 0 on images below 1."""
    network = enliven_(
        Wired(
            wiring,
            **more,
            a=nn.Conv2d(3, 6, 1),
            b=nn.Conv2d(6, 4, 3, padding=1),
            norm=nn.BatchNorm2d(4),
            relu=nn.ReLU(),
            head=nn.Linear(4, 10),
        )
    ).eval()
    first: Any = network.get_submodule("a")
    with torch.no_grad():
        first.weight.abs_()
        first.bias.fill_(1.0)
        first.bias[::2] = -first.weight[::2].sum(dim=(1, 2, 3))
    return network


def held(network: nn.Module, search_at: float, calibration_at: float) -> Images:
    """Images of 2 that the dense network and all others answer, but for one of each kind."""
    data = small_images(network, (3, 8, 8), 32)
    search, batch = torch.full((32, 3, 8, 8), 2.0), torch.full((64, 3, 8, 8), 2.0)
    search[5], batch[7] = search_at, calibration_at
    return Images(search, data.labels, torch.zeros(32, 10), data.difficulty, (batch,))


def scored(network: nn.Module, data: Images, execution: Execution, keep: Any) -> Result:
    plan = trace(network, images(2, 3, 8, 8), verify=False).plan({"a": np.array(keep, dtype=bool)})
    scorer = Scorer(network, data, execution=execution, batch_size=16)
    every = tuple(range(len(scorer.prefix.boundaries)))
    return scorer(Task("k", plan, 0, 32, share=every))


EVEN, ODD = [1, 0, 1, 0, 1, 0], [0, 1, 0, 1, 0, 1]


@pytest.mark.parametrize("execution", FORMATS)
def test_statistics_that_are_no_numbers_are_answered_by_none(execution: Execution) -> None:
    network = dividing()
    data = held(network, 2.0, 0.5)
    result = scored(network, data, execution, EVEN)
    assert np.isnan(result.kl).all() and not result.correct.any()
    assert np.isfinite(scored(network, data, execution, ODD).kl).all()


@pytest.mark.parametrize("execution", FORMATS)
def test_one_image_that_is_answered_by_no_number_is_told_from_the_others(
    execution: Execution,
) -> None:
    network = dividing()
    result = scored(network, held(network, 0.5, 2.0), execution, EVEN)
    assert np.flatnonzero(np.isnan(result.kl)).tolist() == [5]
    plain = scored(network, held(network, 2.0, 2.0), Execution(), EVEN)
    others = np.arange(32) != 5
    np.testing.assert_allclose(result.kl[others], plain.kl[others], atol=0.05)


@pytest.mark.parametrize("execution", FORMATS)
@pytest.mark.parametrize("tensor", ["b.weight", "b.bias", "norm.weight"])
def test_weights_that_are_no_numbers_are_answered_by_none(
    execution: Execution, tensor: str
) -> None:
    network = dividing()
    data = held(network, 2.0, 2.0)
    with torch.no_grad():
        network.get_parameter(tensor)[1] = torch.nan
    assert np.isnan(scored(network, data, execution, ODD).kl).all()


def test_activations_are_looked_at_where_a_network_may_break_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looked: list[int] = []

    def look(*tensors: Tensor | None) -> bool:
        looked.extend(len(tensor) for tensor in tensors if tensor is not None)
        return are_finite(*tensors)

    for name in ("kernels", "int8"):
        monkeypatch.setattr(f"prunus.candidates.{name}.are_finite", look)
    network = dividing()
    scored(network, held(network, 2.0, 2.0), Execution(), ODD)
    assert looked.count(16) == 2  # one layer in two batches of 16 images
    looked.clear()
    plain = enliven_(build("digits_cnn")).eval()
    scorer = Scorer(plain, small_images(plain, (1, 8, 8), 14), batch_size=7)
    scorer(Task("k", trace(plain, images(2, 1, 8, 8), verify=False).plan({}), 0, 14))
    assert looked and 7 not in looked  # weights and biases alone


@pytest.mark.parametrize("name", ["resnet20", "resnet18", "vgg16_bn", "mobilenet_v2"])
def test_networks_of_the_zoo_make_numbers_of_numbers(name: str) -> None:
    assert not may_break(build(name).eval(), images(2, 3, 32, 32))


BREAKING: dict[str, tuple[Callable[[Tensor], Tensor], bool]] = {
    "division by a number": (lambda x: x / 0.5, False),
    "division by zero": (lambda x: x / 0, True),
    "division": (lambda x: x / (1 + x.abs()), True),
    "in place": (lambda x: x.clone().div_(x.abs() + 1), True),
    "logarithm": (lambda x: x.abs().log(), True),
    "power": (lambda x: x.abs() ** 0.3, True),
    "sound": (lambda x: torch.cat([x.relu_(), x.sigmoid()[:, :, ::2]], dim=2) * 3, False),
}


@pytest.mark.parametrize("case", BREAKING)
def test_what_may_break_numbers(case: str) -> None:
    function, expected = BREAKING[case]
    assert may_break(Wired(lambda _, x: function(x)), images(2, 3, 4, 4)) is expected


def test_sums_tell_numbers_from_what_is_none() -> None:
    for value in (torch.nan, torch.inf, -torch.inf):
        assert not are_finite(torch.ones(2), torch.tensor([1.0, value]))
    assert are_finite(torch.ones(2), None, torch.ones(3, dtype=torch.uint8))
    assert numbers.are_finite()


def test_what_runs_plainly_is_not_handed_on() -> None:
    """A beginning that was computed in plain layers rounds otherwise than one in fast ones."""
    network = dividing()
    data = held(network, 0.5, 2.0)
    found = trace(network, images(2, 3, 8, 8), verify=False)
    plans = [found.plan({"a": np.array(keep, dtype=bool)}) for keep in (EVEN, ODD, EVEN)]
    scorer = Scorer(network, data, batch_size=16)
    every = tuple(range(len(scorer.prefix.boundaries)))
    for plan in plans:
        alone = Scorer(network, data, batch_size=16, tricks=Tricks(memory_bytes=0))
        expected = alone(Task("k", plan, 0, 32))
        shared = scorer(Task("k", plan, 0, 32, share=every))
        assert shared.kl.tobytes() == expected.kl.tobytes()


def begun(m: Any, x: Tensor) -> Tensor:
    """What all candidates begin with is computed before the shares are."""
    return shares(m, m.first(m.zeroth(x)))


@pytest.mark.parametrize("execution", FORMATS)
def test_what_was_begun_in_plain_layers_is_not_handed_on(execution: Execution) -> None:
    """They round otherwise: a score would follow from which candidate was scored before."""
    network = dividing(begun, zeroth=nn.Conv2d(3, 3, 3, padding=1), first=nn.ReLU())
    with torch.no_grad():
        network.get_parameter("a.bias")[::2] -= 10.0
    data = replace(small_images(network, (3, 8, 8), 32), reference=torch.zeros(32, 10))
    found = trace(network, images(2, 3, 8, 8), verify=False)

    def kl(scorer: Scorer, keep: Any) -> Any:
        every = tuple(range(len(scorer.prefix.boundaries)))
        assert every
        plan = found.plan({"a": np.array(keep, dtype=bool)})
        return scorer(Task("k", plan, 0, 32, share=every)).kl

    alone = kl(Scorer(network, data, execution=execution), ODD)
    scorer = Scorer(network, data, execution=execution)
    assert np.isnan(kl(scorer, EVEN)).all()
    assert kl(scorer, ODD).tobytes() == alone.tobytes()
    assert np.isfinite(alone).all()
