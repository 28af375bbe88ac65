"""Images of one colour, written to where a test wants them."""

from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 28


def save(path: Path, pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def plain(
    value: int, height: int = 40, width: int = 30
) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.full((height, width, 3), value, np.uint8)
