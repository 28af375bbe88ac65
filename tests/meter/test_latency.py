"""Latency of predictors that sleep a known time."""

import gc
import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from prunus.errors import InputError
from prunus.meter import as_predictor, measure_latencies, measure_latency


def sleeper(name: str, milliseconds: list[float], log: list[str]) -> Callable[[object], None]:
    """Sleeps the given times in turn, and logs its name."""
    calls = iter(milliseconds)

    def predict(_inputs: object) -> None:
        log.append(name)
        time.sleep(next(calls) / 1e3)

    return predict


def test_candidates_take_turns_and_keep_their_own_times() -> None:
    log: list[str] = []
    # The first run of each turn is slow and not timed: others have had the caches.
    named = {
        "slow": (sleeper("slow", [30.0] + [40.0, 12.0] * 5, log), None),
        "fast": (sleeper("fast", [30.0] + [40.0, 2.0] * 5, log), None),
    }
    found = measure_latencies(named, batch=1, warmup=1, repeats=5)
    assert log == ["slow", "fast"] + ["slow", "slow", "fast", "fast"] * 5
    # A sleep is never shorter than asked for.
    assert found["slow"].median_ms >= 12
    assert 12 > found["fast"].median_ms >= 2
    assert found["slow"].median_ms < 40
    assert {latency.lead for latency in found.values()} == {1}
    assert found["fast"].repeats == 5
    assert found["fast"].warmup == 1


def test_quantiles_of_known_times(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0
    spent_ms = iter([100, 13, 1, 17, 5, 9])

    def predict(_inputs: object) -> None:
        nonlocal now
        now += next(spent_ms) * 1_000_000

    monkeypatch.setattr(time, "perf_counter_ns", lambda: now)
    found = measure_latency(predict, None, batch=4, warmup=1, repeats=5)
    # Linear between the sorted 1, 5, 9, 13, 17: quartiles 5 and 13, 95 % at 13 + 0.8 * 4.
    assert found.median_ms == pytest.approx(9)
    assert found.iqr_ms == pytest.approx(8)
    assert found.p95_ms == pytest.approx(16.2)
    assert (found.batch, found.device, found.engine) == (4, "cpu", "torch")
    assert found.threads == torch.get_num_threads()


def test_a_network_runs_in_eval_mode_without_gradients_and_gets_its_modes_back() -> None:
    seen = []

    class Spy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.frozen = nn.Linear(1, 1).eval()

        def forward(self, x: Tensor, *, scale: float) -> Tensor:
            seen.append((self.training, torch.is_grad_enabled(), gc.isenabled(), scale))
            return x * scale

    network = Spy()
    assert gc.isenabled()
    measure_latency(network, {"x": torch.zeros(1), "scale": 2.0}, batch=1, warmup=2, repeats=3)
    assert seen == [(False, False, False, 2.0)] * 5
    assert network.training
    assert not network.frozen.training
    assert gc.isenabled()


def test_threads_are_set_and_given_back_even_after_an_error() -> None:
    before = torch.get_num_threads()
    seen = []

    def predict(_inputs: object) -> None:
        seen.append(torch.get_num_threads())
        if len(seen) == 3:
            raise KeyError("broken")

    wanted = before + 1
    with pytest.raises(KeyError):
        measure_latency(predict, None, batch=1, warmup=0, repeats=5, threads=wanted)
    assert seen == [wanted] * 3
    assert torch.get_num_threads() == before
    found = measure_latency(lambda _: None, None, batch=1, warmup=0, repeats=1, threads=wanted)
    assert found.threads == wanted


def test_each_candidate_may_name_its_engine() -> None:
    named = {"a": (lambda _: None, None), "b": (lambda _: None, None)}
    found = measure_latencies(
        named, batch=1, warmup=0, repeats=1, engine={"a": "torch", "b": "onnxruntime"}
    )
    assert {name: latency.engine for name, latency in found.items()} == {
        "a": "torch",
        "b": "onnxruntime",
    }
    with pytest.raises(InputError, match=r"engine names none for \['b'\]"):
        measure_latencies(named, batch=1, engine={"a": "torch"})


@pytest.mark.parametrize(
    ("engines", "apart"),
    [
        ({"a": "onnxruntime", "b": "torch"}, True),
        ({"a": "onnxruntime", "b": "onnxruntime"}, True),  # two sessions, each with its threads
        ({"a": "torch", "b": "torch"}, False),  # one pool of threads
        ({"a": "onnxruntime"}, False),
    ],
)
def test_a_turn_begins_when_the_threads_of_the_one_before_are_asleep(
    engines: dict[str, str], apart: bool
) -> None:
    ended: list[float] = []
    waited: list[float] = []

    def predict(_inputs: object) -> None:
        waited.extend(time.perf_counter() - ended[-1] for _ in ended[-1:])
        ended.append(time.perf_counter())

    named = dict.fromkeys(engines, (predict, None))
    found = measure_latencies(named, batch=1, warmup=1, repeats=3, engine=engines)
    lead = len(engines) > 1
    assert len(waited) == (1 + 3 * (1 + lead)) * len(engines) - 1
    if apart:
        # Threads of ONNX Runtime look for work for tens of milliseconds.
        turns = waited[len(engines) - 1 :: 2]  # between them the untimed run and the timed one
        assert min(turns) > 0.04
    else:
        assert sorted(waited)[len(waited) // 2] < 0.04  # the median: a machine may be busy
    assert all(latency.median_ms < 40 for latency in found.values())  # the pause is in no time


@pytest.mark.parametrize(
    ("setting", "value"), [("repeats", 0), ("warmup", -1), ("batch", 0), ("threads", 0)]
)
def test_counts_out_of_range_are_refused(setting: str, value: int) -> None:
    settings = {"batch": 1, "warmup": 0, "repeats": 1, setting: value}
    with pytest.raises(InputError, match=f"{setting}={value}"):
        measure_latency(lambda _: None, None, **settings)  # type: ignore[arg-type]


def test_a_predictor_is_timed_as_its_network(monkeypatch: pytest.MonkeyPatch) -> None:
    network = nn.Linear(2, 2)
    predictor = as_predictor(network)
    modes = []

    def to_eval() -> nn.Module:
        modes.append("eval")
        return network.train(False)

    monkeypatch.setattr(network, "eval", to_eval)
    measure_latency(predictor, torch.zeros(1, 2), batch=1, warmup=2, repeats=3)
    assert modes == ["eval"]


@pytest.mark.parametrize("device", ["meta", "nonsense"])
def test_devices_that_cannot_be_timed_are_refused(device: str) -> None:
    with pytest.raises(InputError, match=device):
        measure_latency(lambda _: None, None, batch=1, device=device)
