"""Where samples lie: the contract of a store, and images in memory. Stores know no roles."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from prunus.data.augment import shift_and_flip
from prunus.data.digest import tensors_digest
from prunus.data.text.tokenizer import TextTokenizer
from prunus.errors import InputError

Inputs = Tensor | dict[str, Tensor]  # a dictionary for networks called by keyword (texts)

_SHARE = 0.25  # of a device's free memory that samples may take
_READ = 64  # samples whose inputs are read for a digest, where all would take long


class SampleStore(ABC):
    """Samples by position, as a network takes them."""

    @property
    @abstractmethod
    def labels(self) -> Tensor:
        """Class of every sample, int64 ``[samples]``."""

    @property
    @abstractmethod
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input without the batch; empty where inputs are dictionaries."""

    @property
    def lengths(self) -> Tensor | None:
        """Length of every sample, int64 ``[samples]``, where samples differ in it (texts)."""
        return None

    @property
    def augments(self) -> bool:
        """Whether ``read`` makes use of a random source."""
        return True

    @property
    def max_length(self) -> int | None:
        """The greatest length that a sample may have, where samples differ in it."""
        return None

    @abstractmethod
    def read(self, indices: Tensor, augment: torch.Generator | None) -> tuple[Inputs, Tensor]:
        """Read samples.

        Args:
            indices: Positions, int64 ``[batch]``.
            augment: Random source of the augmentation, or None for plain samples.

        Returns:
            Inputs ``[batch, ...]``, float32 and normalized; labels int64 ``[batch]``.
        """

    def digest(self, indices: Tensor) -> str:
        """SHA-256 that tells these samples from others, in hex.

        Of all labels, and of 64 inputs spread evenly: what lies elsewhere would have to be read.
        Stores with their inputs in memory take all of them.

        Args:
            indices: Positions, int64 ``[samples]``.
        """
        read = min(_READ, len(indices))
        spread = torch.arange(read) * len(indices) // read
        inputs, _ = self.read(indices[spread], None)
        named = {"input": inputs} if isinstance(inputs, Tensor) else inputs
        return tensors_digest({**named, "labels": self.labels[indices]})

    def take(self, indices: Tensor) -> "SampleStore":
        """A store of these samples alone, at positions from 0: the others cannot be read from it.

        Args:
            indices: Positions, int64 ``[samples]``.
        """
        return _Part(self, indices)

    def placed(self, indices: Tensor, device: torch.device) -> "SampleStore | None":
        """A store of these samples alone in the memory of a device, which reads them there.

        Args:
            indices: Positions, int64 ``[samples]``.
            device: Of the network that will take them.

        Returns:
            None where samples are made on the host, or would take too much of the device's memory.
        """
        del indices, device
        return None

    def spelled(self, tokenizer: TextTokenizer) -> "SampleStore":
        """The same texts, split into other pieces.

        Raises:
            InputError: The samples are no texts.
        """
        raise InputError(
            f"samples of {type(self).__name__} are no texts: {tokenizer.vocab_size} tokens cannot "
            "spell them; load texts with load_data"
        )


@final
class _Part(SampleStore):
    """Some samples of another store, for stores that cannot be divided."""

    def __init__(self, whole: SampleStore, indices: Tensor) -> None:
        self._whole = whole
        self._positions = indices.clone()

    @property
    def labels(self) -> Tensor:
        """Class of every sample, int64 ``[samples]``."""
        return self._whole.labels[self._positions]

    @property
    def input_shape(self) -> tuple[int, ...]:
        """As of the whole."""
        return self._whole.input_shape

    @property
    def lengths(self) -> Tensor | None:
        """Of the samples of this part."""
        whole = self._whole.lengths
        return None if whole is None else whole[self._positions]

    @property
    def augments(self) -> bool:
        """As of the whole."""
        return self._whole.augments

    @property
    def max_length(self) -> int | None:
        """As of the whole."""
        return self._whole.max_length

    def digest(self, indices: Tensor) -> str:
        """As the whole knows its samples."""
        return self._whole.digest(self._positions[indices])

    def read(self, indices: Tensor, augment: torch.Generator | None) -> tuple[Inputs, Tensor]:
        """Read samples of this part."""
        return self._whole.read(self._positions[indices], augment)


@dataclass(frozen=True)
class Normalizer:
    """Maps uint8 images to ``(x / 255 - mean) / std``, one mean and std per channel.

    Raises:
        InputError: The two differ in length, a mean is not within [0, 1], or a standard deviation not
            positive.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or not self.mean:
            raise InputError(
                f"mean {list(self.mean)} and std {list(self.std)} differ in length: "
                "give one number per channel for each"
            )
        if not all(0 <= value <= 1 for value in self.mean):
            raise InputError(
                f"mean {list(self.mean)} is not within 0 to 1, as images are here: divide mean and std of "
                "values up to 255 by 255"
            )
        if not all(0 < value < math.inf for value in self.std):
            raise InputError(
                f"std {list(self.std)} has a value that is not above 0 and finite: give positive numbers"
            )

    @classmethod
    def of(cls, mean: Sequence[float] | None, std: Sequence[float] | None) -> "Normalizer | None":
        """From what a user gives; None where nothing is given.

        Raises:
            InputError: One is missing, no sequence of numbers, or cannot be used.
        """
        if mean is None and std is None:
            return None
        if mean is None or std is None:
            raise InputError(f"mean is {mean} and std is {std}: give both or neither")
        try:
            return cls(tuple(float(value) for value in mean), tuple(float(value) for value in std))
        except (TypeError, ValueError) as error:
            raise InputError(
                f"mean is {mean!r} and std is {std!r}: give a list for each, one number per channel"
            ) from error

    def require_channels(self, channels: int) -> None:
        """Refuse images of another number of channels.

        Raises:
            InputError: There is not one mean per channel.
        """
        if len(self.mean) != channels:
            raise InputError(
                f"mean {list(self.mean)} is for {len(self.mean)} channels, the images have "
                f"{channels}: give one number per channel"
            )

    def __call__(self, images: Tensor) -> Tensor:
        """Normalize uint8 ``[batch, channels, h, w]`` to float32."""
        mean = torch.tensor(self.mean, device=images.device).view(1, -1, 1, 1)
        std = torch.tensor(self.std, device=images.device).view(1, -1, 1, 1)
        return images.float().div_(255).sub_(mean).div_(std)


@final
class TensorStore(SampleStore):
    """Images held in memory as bytes, normalized as they are read.

    Args:
        images: uint8 ``[samples, channels, h, w]``.
        labels: int64 ``[samples]``.
        normalizer: Applied to every batch.
        shift: Augmentation moves an image by up to so many pixels.
        flip: Augmentation mirrors every second image.
    """

    def __init__(
        self, images: Tensor, labels: Tensor, normalizer: Normalizer, *, shift: int, flip: bool
    ) -> None:
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise InputError(
                f"images are {images.dtype} {list(images.shape)}: "
                "give uint8 [samples, channels, h, w]"
            )
        if labels.shape != images.shape[:1]:
            raise InputError(
                f"{list(labels.shape)} labels for {len(images)} images: give one per image"
            )
        normalizer.require_channels(images.shape[1])
        self._images = images
        self._labels = labels.long()
        self._normalizer = normalizer
        self._shift = shift
        self._flip = flip

    @property
    def labels(self) -> Tensor:
        """Class of every sample, int64 ``[samples]``."""
        return self._labels

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Channels, height, width."""
        return tuple(self._images.shape[1:])

    def read(self, indices: Tensor, augment: torch.Generator | None) -> tuple[Inputs, Tensor]:
        """Read samples; augmented ones are shifted and mirrored at random. Labels are on the CPU."""
        images = self._images[indices.to(self._images.device)]
        if augment is not None:
            images = shift_and_flip(images, augment, shift=self._shift, flip=self._flip)
        return self._normalizer(images), self._labels[indices]

    def digest(self, indices: Tensor) -> str:
        """SHA-256 of all images and labels, and of the normalization."""
        return tensors_digest(
            {
                "images": self._images[indices],
                "labels": self._labels[indices],
                "normalization": torch.tensor([self._normalizer.mean, self._normalizer.std]),
            }
        )

    def take(self, indices: Tensor) -> "TensorStore":
        """A store with copies of these images alone."""
        return self._with(self._images[indices], indices)

    def placed(self, indices: Tensor, device: torch.device) -> "TensorStore | None":
        """A store with copies of these images alone, on a CUDA device with room for them."""
        if device == self._images.device:
            return None  # as good as there
        size = len(indices) * self._images[:1].nbytes
        if device.type == "cuda" and size > _SHARE * torch.cuda.mem_get_info(device)[0]:
            return None
        return self._with(self._images[indices].to(device), indices)

    def _with(self, images: Tensor, indices: Tensor) -> "TensorStore":
        return TensorStore(
            images, self._labels[indices], self._normalizer, shift=self._shift, flip=self._flip
        )
