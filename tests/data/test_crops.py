"""Which part of an image a network sees, by hand."""

import pytest
from PIL import Image

from prunus.data.crops import center, random_crop

EVEN = 0.5
"""Of the chances for a shape: as wide as high, between 3/4 and 4/3 on a logarithmic scale."""


@pytest.fixture
def boxes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, ...]]:
    """Left, top, right and bottom of every crop."""
    seen: list[tuple[float, ...]] = []
    crop = Image.Image.crop

    def noted(image: Image.Image, box: tuple[float, float, float, float]) -> Image.Image:
        seen.append(box)
        return crop(image, box)

    monkeypatch.setattr(Image.Image, "crop", noted)
    return seen


@pytest.mark.parametrize(
    ("sides", "chance", "box"),
    [
        # 8 % of 100 x 100 pixels: a square of sqrt(800) = 28.3.
        ((50, 50), [0.0, EVEN, 0.0, 0.0], (0, 0, 28, 28)),
        # The last place of 73 across and, of the 73 down, the middle one.
        ((50, 50), [0.0, EVEN, 0.999, 0.5], (72, 36, 100, 64)),
        ((50, 50), [1.0, EVEN, 0.5, 0.5], (0, 0, 100, 100)),
        # 3/4: sqrt(800 * 0.75) = 24.5 wide, sqrt(800 / 0.75) = 32.7 high; 4/3: the other way.
        ((50, 50), [0.0, 0.0, 0.0, 0.0], (0, 0, 24, 33)),
        ((50, 50), [0.0, 1.0, 0.0, 0.0], (0, 0, 33, 24)),
        # Twice as wide as high, as the inputs are: 40 x 20.
        ((50, 100), [0.0, EVEN, 0.0, 0.0], (0, 0, 40, 20)),
    ],
)
def test_a_random_crop_has_the_area_and_shape_drawn(
    sides: tuple[int, int],
    chance: list[float],
    box: tuple[int, ...],
    boxes: list[tuple[float, ...]],
) -> None:
    found = random_crop(Image.new("RGB", (100, 100)), sides, [chance])
    assert boxes == [box]
    assert found.size == (sides[1], sides[0])


def test_the_first_attempt_that_fits_counts_and_else_the_largest_center(
    boxes: list[tuple[float, ...]],
) -> None:
    wide = Image.new("RGB", (100, 20))
    large, small = [1.0, EVEN, 0.0, 0.0], [0.0, EVEN, 0.0, 0.0]
    random_crop(wide, (50, 50), [large, small])  # 44.7 is higher than 20; sqrt(160) = 12.6
    random_crop(wide, (50, 50), [large, large])
    assert boxes == [(0, 0, 13, 13), (40, 0, 60, 20)]


def test_the_center_leaves_out_an_eighth_of_what_is_covered(
    boxes: list[tuple[float, ...]],
) -> None:
    """224 x 112 pixels of 256 x 128: an image of 512 x 128 is wider than that already."""
    found = center(Image.new("RGB", (512, 128)), (112, 224))
    assert boxes == [(144, 8, 368, 120)]
    assert found.size == (224, 112)
