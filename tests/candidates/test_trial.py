"""What is picked is what was fastest, where that is worth it, and what the network can run in."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunus.candidates import trial
from prunus.candidates.scorer import Scorer
from prunus.candidates.trial import choose_execution
from prunus.compute import Compute
from prunus.graph import trace
from prunus.train.precision import Execution
from tests.candidates.subjects import bits_of, inner, random_plan, small_images, unchanged
from tests.helpers import chain, enliven_, images

PLAIN, LAST = Execution(), Execution("float32", "channels_last")
BF16, BF16_LAST = Execution("bfloat16", "contiguous"), Execution("bfloat16", "channels_last")


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[Execution]:
    """Which choices were timed; each takes a second, or what a test says."""
    seen: list[Execution] = []
    seconds: Mapping[Execution, float] = {PLAIN: 1.0, LAST: 0.5, BF16: 0.4, BF16_LAST: 0.3}

    def measure(network: Any, held: Any, plan: Any, compute: Any, choice: Execution) -> float:
        seen.append(choice)
        return seconds[choice]

    monkeypatch.setattr(trial, "_seconds", measure)
    return seen


def choose(network: nn.Module, **compute: Any) -> Execution:
    held = small_images(network, (3, 8, 8), 64, classes=2)
    plan = trace(network, images(2, 3, 8, 8), verify=False).plan({})
    return choose_execution(network, held, plan, Compute(**compute))


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
        monkeypatch.setattr(trial, "_seconds", lambda *given, times=times: times[given[-1]])
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
    chosen = choose_execution(network, held, random_plan(found, 0), Compute(precision="float32"))
    assert chosen in (PLAIN, LAST)
    assert unchanged(network, before)
    assert [m.training for m in network.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert all(p.is_contiguous() for p in network.parameters())


def test_one_batch_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = []

    def call(self: Scorer, task: Any, original: Any = Scorer.__call__) -> Any:
        tasks.append((task.start, task.stop, task.statistics is None))
        return original(self, task)

    monkeypatch.setattr(Scorer, "__call__", call)
    choose(enliven_(chain()), precision="float32", batch_size=32)
    assert tasks == 2 * ([(0, 32, True)] + 3 * [(0, 32, False)])
