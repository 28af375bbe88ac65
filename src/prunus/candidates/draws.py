"""What networks draw while they are asked: the same numbers for every candidate on the same samples."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import torch

from prunus.seeding import random_states_kept, seed_globally_

Stage = Literal["trial", "reference", "calibrate", "score"]
_STREAMS: dict[Stage, int] = {"trial": 0, "reference": 1, "calibrate": 2, "score": 3}


@dataclass(frozen=True)
class Draws:
    """Seeds the global random states for batch after batch, and gives them back.

    Attributes:
        seed: Of the search.
        device: That networks run on.
        host: Seed those of NumPy and Python, too: dearer than a batch of a small network is worth
            where nothing draws from them.
    """

    seed: int
    device: torch.device
    host: bool = True

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Give the states back at the end."""
        with (
            random_states_kept(self._devices)
            if self.host
            else torch.random.fork_rng(devices=self._devices)
        ):
            yield

    def begin(self, stage: Stage, first: int = 0) -> None:
        """Seed for one batch of a stage, by its number or its first sample."""
        seed = _derived(self.seed, _STREAMS[stage], first)
        if self.host:
            seed_globally_(seed, self._devices)
            return
        torch.default_generator.manual_seed(seed)
        for device in self._devices:
            torch.cuda.default_generators[device].manual_seed(seed)

    @property
    def _devices(self) -> list[int]:
        return [self.device.index] if self.device.type == "cuda" else []


@lru_cache(maxsize=4096)
def _derived(seed: int, stream: int, first: int) -> int:
    return int(np.random.SeedSequence([seed, stream, first]).generate_state(1, np.uint64)[0])
