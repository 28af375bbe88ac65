"""Settings of small engines, and what of their answers is compared."""

from collections.abc import Sequence
from typing import Any

from prunus.candidates import Scored, Scoring
from prunus.compute import Compute

PLAIN = Compute(precision="float32", layout="contiguous", batch_size=16)
SMALL = Scoring(
    images=64,
    calibration_images=128,
    first_images=16,
    quick_images=32,
    quick_calibration_images=64,
)


def summary(scored: Sequence[Scored]) -> list[tuple[Any, ...]]:
    return [(s.key, s.fitness, s.kl, s.loss, s.top1, s.images, s.complete) for s in scored]
