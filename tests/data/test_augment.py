"""Augmentation shifts within its bound, mirrors half of the images, and leaves the rest alone."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from prunus.data.augment import shift_and_flip


def images(batch: int, height: int, width: int) -> Tensor:
    """Images of pixels that all differ, none zero."""
    flat = torch.arange(1, batch * height * width + 1, dtype=torch.int32)
    return flat.view(batch, 1, height, width)


def variants(image: Tensor, shift: int, flip: bool) -> list[Tensor]:
    """Every crop of the zero-padded image, slow and plain."""
    height, width = image.shape[-2:]
    padded = functional.pad(image, (shift,) * 4)
    crops = [
        padded[:, top : top + height, left : left + width]
        for top in range(2 * shift + 1)
        for left in range(2 * shift + 1)
    ]
    return crops + [crop.flip(-1) for crop in crops] if flip else crops


@given(
    shift=st.integers(0, 2),
    flip=st.booleans(),
    height=st.integers(3, 5),
    width=st.integers(3, 5),
    seed=st.integers(0, 999),
)
def test_every_result_is_a_crop_of_the_padded_image(
    shift: int, flip: bool, height: int, width: int, seed: int
) -> None:
    x = images(4, height, width)
    out = shift_and_flip(x, torch.Generator().manual_seed(seed), shift=shift, flip=flip)
    assert out.shape == x.shape
    assert out.dtype == x.dtype
    for image, result in zip(x, out, strict=True):
        assert any(torch.equal(result, crop) for crop in variants(image, shift, flip))


def test_all_shifts_and_flips_occur() -> None:
    x = images(1, 4, 4).expand(600, 1, 4, 4)
    out = shift_and_flip(x, torch.Generator().manual_seed(0), shift=1, flip=True)
    distinct = {tuple(image.flatten().tolist()) for image in out}
    assert distinct == {tuple(v.flatten().tolist()) for v in variants(x[0], 1, True)}
    assert len(distinct) == 18


def test_about_half_is_mirrored() -> None:
    x = images(1, 2, 2).expand(2000, 1, 2, 2)
    out = shift_and_flip(x, torch.Generator().manual_seed(0), shift=0, flip=True)
    mirrored = sum(torch.equal(image, x[0].flip(-1)) for image in out)
    assert abs(mirrored - 1000) < 4 * (2000 / 4) ** 0.5  # four standard deviations


def test_the_generator_decides() -> None:
    x = images(8, 6, 6)
    once, again, other = (
        shift_and_flip(x, torch.Generator().manual_seed(seed), shift=4, flip=True)
        for seed in (1, 1, 2)
    )
    assert torch.equal(once, again)
    assert not torch.equal(once, other)


def test_strides_are_the_plain_ones() -> None:
    """Also of one channel, or a network that views what a convolution returns cannot be trained."""
    for channels in (1, 3):
        x = torch.zeros(4, channels, 8, 8)
        out = shift_and_flip(x, torch.Generator().manual_seed(0), shift=2, flip=True)
        assert out.stride() == x.stride()
