"""What is picked is what was fastest, where that is worth it, and what the network can run in."""

from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from prunus.candidates import trial
from prunus.candidates.execution import ScoringExecution as Execution
from prunus.candidates.int8_find import weight_bits
from prunus.candidates.kernels import has_rectifier
from prunus.candidates.scorer import Scorer
from prunus.candidates.trial import choose_execution
from prunus.compute import Compute
from prunus.errors import InputError
from prunus.graph import trace
from prunus.plan import KeepChannels
from tests.candidates.subjects import bits_of, inner, small_images, unchanged
from tests.helpers import chain, enliven_, images

PLAIN, LAST = Execution(), Execution("float32", "channels_last")
BF16, BF16_LAST = Execution("bfloat16", "contiguous"), Execution("bfloat16", "channels_last")

INT8, INT8_PLAIN = (Execution.of("int8", layout) for layout in ("channels_last", "contiguous"))
INT7 = Execution.of("int7", "channels_last")


BITS = weight_bits(nn.Conv2d(1, 1, 1))
needs_int8 = pytest.mark.skipif(not BITS, reason="this CPU does not multiply bytes (VNNI, or AVX2)")


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[Execution]:
    """Which choices were timed; each takes a second, or what a test says."""
    seen: list[Execution] = []
    seconds: Mapping[Execution, float] = {
        PLAIN: 1.0,
        LAST: 0.5,
        BF16: 0.4,
        BF16_LAST: 0.3,
        INT8: 0.2,
        INT7: 0.2,
        INT8_PLAIN: 0.25,
    }
    monkeypatch.setattr(trial, "weight_bits", lambda _: 0)

    def measure(*given: Any) -> dict[Execution, float]:
        seen.extend(given[-1])
        return {choice: seconds[choice] for choice in given[-1]}

    monkeypatch.setattr(trial, "_seconds", measure)
    return seen


def choose(network: nn.Module, **compute: Any) -> Execution:
    held = small_images(network, (3, 8, 8), 64, classes=2)
    found = trace(network, images(2, 3, 8, 8), verify=False)
    return choose_execution(network, found, held, Compute(**compute))


@pytest.mark.parametrize(
    ("given", "has_bf16", "expected"),
    [
        ({}, False, LAST),
        ({}, True, BF16_LAST),
        ({"precision": "float32"}, True, LAST),
        ({"layout": "contiguous"}, True, BF16),
        ({"layout": "channels_last"}, False, LAST),
    ],
)
def test_fastest_of_what_is_open(
    given: dict[str, Any],
    has_bf16: bool,
    expected: Execution,
    timed: list[Execution],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trial, "has_bfloat16", lambda _: has_bf16)
    assert choose(enliven_(chain()), **given) == expected
    assert all(c.precision == given.get("precision", c.precision) for c in timed)
    assert all(c.layout == given.get("layout", c.layout) for c in timed)
    assert has_bf16 or all(c.precision == "float32" for c in timed)


def test_nothing_is_timed_where_there_is_no_choice(timed: list[Execution]) -> None:
    assert choose(enliven_(chain()), precision="float32", layout="contiguous") == PLAIN
    assert choose(enliven_(chain()), precision="bfloat16", layout="channels_last") == BF16_LAST
    assert timed == []


def test_little_faster_is_not_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    for ratio, expected in ((0.96, PLAIN), (0.94, LAST)):
        times = {PLAIN: 1.0, LAST: ratio}
        monkeypatch.setattr(trial, "_seconds", lambda *_, times=times: times)
        assert choose(enliven_(chain()), precision="float32") == expected


class ViewsItsImage(nn.Module):
    """Fails in the other layout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(144, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.conv(x).view(x.shape[0], -1))
        return out


def test_layout_that_the_network_cannot_run_in_is_left_out() -> None:
    assert choose(enliven_(ViewsItsImage()), precision="float32") == PLAIN


def test_trial_is_of_the_real_thing_and_leaves_all_as_it_was() -> None:
    network = enliven_(chain()).train()
    inner(network, "0").eval()
    before, modes = bits_of(network), [m.training for m in network.modules()]
    found = trace(network, images(2, 3, 8, 8), verify=False)
    held = small_images(enliven_(chain()), (3, 8, 8), 64, classes=2)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    has_rectifier.cache_clear()  # asked of a CPU once a process
    chosen = choose_execution(network, found, held, Compute(precision="float32"))
    assert chosen in (PLAIN, LAST)
    assert unchanged(network, before)
    assert [m.training for m in network.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert all(p.is_contiguous() for p in network.parameters())


def test_what_else_the_machine_does_meanwhile_does_not_decide(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The layout that is twice as fast is picked though two of its three turns were disturbed."""
    calls: dict[Execution, int] = {}

    def call(self: Scorer, task: Any, original: Any = Scorer.__call__) -> Any:
        choice = self._execution
        turn = calls[choice] = calls.get(choice, -1) + 1  # 0: to warm up
        quiet = {PLAIN: 1.0, LAST: 0.5}[choice]
        disturbed = choice == LAST and turn in (1, 2)
        return replace(original(self, task), seconds=9.0 if disturbed else quiet)

    monkeypatch.setattr(Scorer, "__call__", call)
    assert choose(enliven_(chain()), precision="float32") == LAST
    assert calls == {PLAIN: 3, LAST: 3}


def test_four_batches_are_timed_with_what_a_candidate_costs_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Behind one batch int8 pays for its weights as if it had no other, and slow formats look fast."""
    tasks = []

    def call(self: Scorer, task: Any, original: Any = Scorer.__call__) -> Any:
        tasks.append((task.start, task.stop, task.calibration, task.statistics is None))
        return original(self, task)

    monkeypatch.setattr(Scorer, "__call__", call)
    choose(enliven_(chain()), precision="float32", batch_size=8)
    assert tasks == 2 * [(0, 8, 1, True)] + 2 * 3 * [(0, 32, 1, True)]


@pytest.fixture
def bytes_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "weight_bits", lambda _: 8)
    monkeypatch.setattr(trial, "has_bfloat16", lambda _: True)


@pytest.mark.usefixtures("bytes_here")
@pytest.mark.parametrize(
    ("given", "faithful", "expected"),
    [
        ({}, True, INT8),
        ({}, False, BF16_LAST),
        ({"layout": "channels_last"}, True, INT8),
        ({"layout": "contiguous"}, True, BF16),
        ({"precision": "float32"}, True, LAST),
    ],
)
def test_int8_where_it_is_fastest_and_faithful(
    given: dict[str, Any],
    faithful: bool,
    expected: Execution,
    timed: list[Execution],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trial, "weight_bits", lambda _: 8)
    monkeypatch.setattr(trial, "_is_faithful", lambda *_: faithful)
    assert choose(enliven_(chain()), **given) == expected
    assert timed


def test_int8_that_is_asked_for_is_taken_where_it_runs(
    timed: list[Execution], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prunus.candidates.int8_find.weight_bits", lambda _: 8)
    ran: list[Execution] = []
    monkeypatch.setattr(trial, "_scored", lambda *given: ran.append(given[-1]))
    assert choose(enliven_(chain()), precision="int8") == INT8
    assert choose(enliven_(chain()), precision="int8", layout="contiguous") == INT8_PLAIN
    assert choose(enliven_(chain()), precision="int7") == INT7
    assert ran == [INT8, INT8_PLAIN, INT7]
    assert timed == []


def test_weights_have_as_many_bits_as_the_cpu_takes(
    timed: list[Execution], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "weight_bits", lambda _: 7)
    monkeypatch.setattr(trial, "_is_faithful", lambda *_: True)
    assert choose(enliven_(chain())) == INT7
    assert INT8 not in timed


@needs_int8
def test_int8_of_a_network_that_cannot_run_in_its_layout_is_refused() -> None:
    said = rf"'int{BITS}': the network cannot run in it \(view size.*use precision 'auto'"
    with pytest.raises(InputError, match=said):
        choose(enliven_(ViewsItsImage()), precision=f"int{BITS}")


@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
def test_a_type_that_a_network_cannot_run_in_is_refused_and_float32_not_tried(
    precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: Any) -> None:
        raise RuntimeError("could not create a primitive\nand more")

    monkeypatch.setattr(trial, "_scored", failing)
    given = {"precision": precision, "layout": "contiguous"}
    if precision == "float32":  # which raises in the scoring itself
        assert choose(enliven_(chain()), **given) == Execution("float32", "contiguous")
        return
    said = r"'bfloat16': the network cannot run in it \(could not create a primitive\); use"
    with pytest.raises(InputError, match=said):
        choose(enliven_(chain()), **given)


class OneType(nn.Module):
    """Refuses what is not of the type of its input, by an error of its own kind."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if y.dtype != x.dtype:
            raise TypeError(f"{y.dtype} is not {x.dtype}")
        out: Tensor = self.head(y.mean((2, 3)))
        return out


def test_errors_of_every_kind_leave_a_choice_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "has_bfloat16", lambda _: True)
    monkeypatch.setattr(trial, "weight_bits", lambda _: 0)
    assert choose(enliven_(OneType()), layout="contiguous") == PLAIN
    said = r"'bfloat16': the network cannot run in it \(torch.bfloat16 is not torch.float32\); use"
    with pytest.raises(InputError, match=said):
        choose(enliven_(OneType()), precision="bfloat16", layout="contiguous")


class Checks(nn.Module):
    """Refuses numbers that are none, takes a layer by keyword, and reads what a ReLU read."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
        self.first, self.second = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.relu, self.other, self.head = nn.ReLU(), nn.ReLU(), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.first(self.a(x)))
        assert torch.isfinite(y).all()
        z = self.second(self.b(input=y))
        y = self.c(self.other(z)) + z.relu()
        out: Tensor = self.head(y.mean((2, 3)))
        return out


@needs_int8
def test_nothing_that_a_network_does_with_numbers_ends_the_trial() -> None:
    assert isinstance(choose(enliven_(Checks())), Execution)
    assert choose(enliven_(Checks()), precision=f"int{BITS}").weight_bits == BITS


@pytest.mark.parametrize(
    ("asked", "here", "said"), [("int8", 7, "VNNI"), ("int8", 0, "VNNI"), ("int7", 0, "AVX2")]
)
def test_int8_that_cannot_be_had_is_refused(
    asked: str, here: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prunus.candidates.int8_find.weight_bits", lambda _: here)
    with pytest.raises(InputError, match=f"'{asked}' needs a CPU.*{said}.*use precision 'auto'"):
        choose(enliven_(chain()), precision=asked)


@pytest.mark.parametrize(
    ("fine", "coarse", "expected"),
    [
        ((0.0, 1.0), (0.004, 1.02), True),
        ((0.0, 1.0), (0.006, 1.0), False),  # the whole network moves by more than 0.005 nats
        ((0.0, 1.0), (0.0, 1.03), False),  # the candidate by more than 0.005 nats and 2 %
        ((0.0, 1.0), (0.0, float("nan")), False),
    ],
)
def test_faithful_is_near_in_the_whole_network_and_in_a_candidate(
    fine: tuple[float, float],
    coarse: tuple[float, float],
    expected: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    def scored(network: Any, held: Any, plan: int, compute: Any, choice: Execution) -> Any:
        asked.append(choice)
        values = coarse if choice.weight_bits else fine
        return SimpleNamespace(kl=np.array([values[plan]])), None

    monkeypatch.setattr(trial, "_scored", scored)
    given: Any = (None, None, (0, 1), None, INT8)
    assert trial._is_faithful(*given) is expected
    assert set(asked) == {INT8, LAST}


def test_half_of_the_units_are_tried_and_no_fewer_than_may_stay() -> None:
    network = enliven_(chain())
    found = trace(network, images(2, 3, 8, 8), min_units=3, verify=False)
    plan = trial._half(found)
    kept = {e.group: e.axes[0].keep.unpack() for e in plan.edits if isinstance(e, KeepChannels)}
    widths = {group.name: group.width(group.units // 2) for group in found.cuttable}
    assert widths == {"0": 3, "3": 3}
    assert {name: int(keep.sum()) for name, keep in kept.items()} == widths
