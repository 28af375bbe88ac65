"""The part of an image that a network sees: its center, or at random as a training sees it."""

import math

from PIL import Image

ATTEMPTS = 10
"""At a random crop that fits: four chances each."""


def center(image: Image.Image, sides: tuple[int, int]) -> Image.Image:
    """Resize until 256/224 of ``sides`` (height, width) is covered, then crop the center."""
    high, wide = (max(side, round(side * 256 / 224)) for side in sides)
    factor = max(wide / image.width, high / image.height)
    width = max(wide, int(image.width * factor))
    height = max(high, int(image.height * factor))
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - sides[1]) // 2, (height - sides[0]) // 2
    return image.crop((left, top, left + sides[1], top + sides[0]))


def random_crop(
    image: Image.Image, sides: tuple[int, int], chances: list[list[float]]
) -> Image.Image:
    """Crop a random area and resize it; the largest centered part of the shape where none fits.

    Args:
        image: Of any size.
        sides: Height and width of what comes out.
        chances: In [0, 1): area, shape, place across and place down of each attempt.

    References:
        Szegedy et al., "Going Deeper with Convolutions", CVPR 2015, section 6: crops of 8 % to
        100 % of the area, sides from 3/4 to 4/3 (https://arxiv.org/abs/1409.4842).
    """
    width, height = image.size
    wanted = sides[1] / sides[0]
    for area, shape, across, down in chances:
        target = width * height * (0.08 + 0.92 * area)
        stretch = math.exp(math.log(3 / 4) + shape * (math.log(4 / 3) - math.log(3 / 4)))
        ratio = stretch * wanted
        crop_width, crop_height = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            left, top = (
                int(across * (width - crop_width + 1)),
                int(down * (height - crop_height + 1)),
            )
            break
    else:
        crop_width = max(1, min(width, round(height * wanted)))
        crop_height = max(1, min(height, round(width / wanted)))
        left, top = (width - crop_width) // 2, (height - crop_height) // 2
    cropped = image.crop((left, top, left + crop_width, top + crop_height))
    return cropped.resize((sides[1], sides[0]), Image.Resampling.BILINEAR)
