from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunus.errors import InputError
from prunus.train import lr_at
from prunus.train.schedule import steps_per_epoch


def test_values_by_hand() -> None:
    # 10 steps, warm-up 2: thirds of the peak, the peak at step 2, then a cosine over 8 steps down
    # to 0.1: half-way (step 6) the mean of both, cos 45 degrees at step 4.
    def rate(step: int) -> float:
        return lr_at(step, 10, peak=1.0, warmup_fraction=0.2, final_lr_fraction=0.1)

    assert rate(0) == pytest.approx(1 / 3)
    assert rate(1) == pytest.approx(2 / 3)
    assert rate(2) == 1.0
    assert rate(4) == pytest.approx(0.1 + 0.9 * (1 + 2**-0.5) / 2)
    assert rate(6) == pytest.approx(0.55)
    assert rate(10) == pytest.approx(0.1)


def test_linear_schedule_by_hand() -> None:
    # 10 steps, warm-up 2 as above; then 8 equal steps from 1 down to 0.2.
    def rate(step: int) -> float:
        return lr_at(
            step, 10, peak=1.0, warmup_fraction=0.2, final_lr_fraction=0.2, schedule="linear"
        )

    expected = [1 / 3, 2 / 3, 1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2]
    assert [rate(step) for step in range(11)] == pytest.approx(expected)


def test_without_warm_up_it_starts_at_the_peak_and_can_stay_there() -> None:
    for step in range(6):
        assert lr_at(step, 5, peak=0.3, warmup_fraction=0, final_lr_fraction=1) == pytest.approx(
            0.3
        )


@given(
    st.integers(1, 200),
    st.floats(0, 1),
    st.floats(0, 1),
    st.floats(1e-5, 10),
    st.sampled_from(["one-cycle", "linear"]),
)
def test_rises_to_the_peak_then_falls_and_is_never_zero_at_a_step(
    total: int,
    warmup: float,
    final: float,
    peak: float,
    schedule: Literal["one-cycle", "linear"],
) -> None:
    rates = [
        lr_at(
            s,
            total,
            peak=peak,
            warmup_fraction=warmup,
            final_lr_fraction=final,
            schedule=schedule,
        )
        for s in range(total)
    ]
    top = rates.index(max(rates))
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert all(a >= b * (1 - 1e-12) for a, b in zip(rates[top:], rates[top + 1 :], strict=False))
    assert min(rates) > 0
    assert max(rates) <= peak * (1 + 1e-12)
    if round(warmup * total) < total:
        assert max(rates) == pytest.approx(peak)


@pytest.mark.parametrize("step", [-1, 11])
def test_step_outside_is_refused(step: int) -> None:
    with pytest.raises(InputError, match=f"step={step}"):
        lr_at(step, 10, peak=1.0, warmup_fraction=0, final_lr_fraction=0)


@pytest.mark.parametrize(
    ("samples", "batch_size", "steps"),
    [(8, 4, 2), (9, 4, 2), (10, 4, 3), (1, 4, 1), (3, 1, 3), (5, 8, 1)],
)
def test_a_last_batch_of_one_sample_does_not_count(
    samples: int, batch_size: int, steps: int
) -> None:
    assert steps_per_epoch(samples, batch_size) == steps
