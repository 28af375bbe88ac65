"""Augmentation of image batches, vectorized, from a given random source."""

import torch
from torch import Tensor
from torch.nn import functional


def shift_and_flip(images: Tensor, generator: torch.Generator, *, shift: int, flip: bool) -> Tensor:
    """Move every image by up to ``shift`` pixels each way, and mirror every second one.

    The shift is a random crop of the image padded with zeros (black), as usual for CIFAR.

    Args:
        images: ``[batch, channels, h, w]``, any type, on any device.
        generator: Random source, on the CPU: the same draws wherever the images are.
        shift: Largest move in pixels, >= 0.
        flip: Mirror left to right with probability 1/2.

    Returns:
        Images of the same shape and type.

    References:
        He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, section 4.2:
        4 pixels padded on each side, a random 32x32 crop, horizontal flip
        (https://arxiv.org/abs/1512.03385).
    """
    batch, channels, height, width = images.shape
    top, left = torch.randint(2 * shift + 1, (2, batch), generator=generator)
    rows = top[:, None] + torch.arange(height)
    columns = left[:, None] + torch.arange(width)
    if flip:
        mirrored = torch.rand(batch, generator=generator) < 0.5
        columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    rows, columns = rows.to(images.device), columns.to(images.device)
    padded = functional.pad(images, (shift, shift, shift, shift)).permute(0, 2, 3, 1)
    samples = torch.arange(batch, device=images.device)[:, None, None]
    found = padded[samples, rows[:, :, None], columns[:, None, :]]
    # Permuted, one channel counts as contiguous, and convolutions would answer in channels_last.
    if channels == 1:
        return found.reshape(images.shape)
    return found.permute(0, 3, 1, 2).contiguous()
