"""The global random states of torch, NumPy and Python: seeded together, and given back together."""

import pickle
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def random_states_kept(devices: Sequence[int] = ()) -> Iterator[None]:
    """Give the global random states back at the end.

    Args:
        devices: CUDA devices in use, whose states are kept beside those of the CPU.
    """
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=[*devices]):
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)  # noqa: NPY002


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch, NumPy and Python inside, and give their global states back afterwards."""
    with random_states_kept():
        seed_globally_(seed)
        yield


def seed_globally_(seed: int, devices: Sequence[int] = ()) -> None:
    """Seed the global generators, for users' code that draws from them; see ``random_states_kept``.

    Args:
        seed: 0 or more, below 2^64.
        devices: CUDA devices in use; those of others are left alone.
    """
    torch.default_generator.manual_seed(seed)
    for device in devices:
        torch.cuda.default_generators[device].manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  (it takes no more than 32 bits)


def host_states() -> tuple[object, ...]:
    """States of the CPU's global generators, which are equal where nothing was drawn in between."""
    numpy_state = pickle.dumps(np.random.get_state(legacy=False))  # noqa: NPY002
    return random.getstate(), numpy_state, torch.get_rng_state().numpy().tobytes()
