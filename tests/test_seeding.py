"""The global random states of torch, NumPy and Python."""

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch

from prunus.seeding import host_states, random_states_kept, seed_globally_, seeded


def drawn() -> tuple[float, float, float]:
    """Python, NumPy and torch."""
    return random.random(), np.random.rand(), float(torch.rand(()))  # noqa: NPY002


def test_a_seed_decides_all_three_and_their_states_come_back() -> None:
    with random_states_kept():
        seed_globally_(1)
        first, after = drawn(), drawn()
        seed_globally_(1)
        assert drawn() == first
        with seeded(2):
            other = drawn()
        assert drawn() == after
        with seeded(2):
            assert drawn() == other
        assert all(one != two for one, two in zip(first, other, strict=True))


def test_states_come_back_after_an_error() -> None:
    with random_states_kept():
        seed_globally_(1)
        expected = drawn()
        seed_globally_(1)
        with pytest.raises(ZeroDivisionError), seeded(5):
            _ = drawn()[0] / 0
        assert drawn() == expected


def test_generators_are_seeded_as_they_seed_themselves() -> None:
    with seeded(5):
        assert random.random() == random.Random(5).random()
        assert np.random.rand() == np.random.RandomState(5).rand()  # noqa: NPY002
        assert torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(5)))
    with seeded(2**63 + 9):  # NumPy takes 32 bits
        assert np.random.rand() == np.random.RandomState(9).rand()  # noqa: NPY002


@pytest.mark.parametrize(
    "draw",
    [random.random, np.random.rand, np.random.randn, lambda: torch.rand(1)],
    ids=["python", "numpy", "numpy-normal", "torch"],
)
def test_a_draw_is_seen_in_the_states(draw: Callable[[], object]) -> None:
    with random_states_kept():
        before = host_states()
        assert host_states() == before
        draw()
        assert host_states() != before
        between = host_states()
        draw()  # of two normal numbers the second is kept from the first
        assert host_states() != between
