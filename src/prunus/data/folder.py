"""A folder of images, one sub-folder per class, decoded as they are needed."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import final

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from prunus.data.crops import ATTEMPTS, center, random_crop
from prunus.data.decode import decoded, is_transparent, require_image
from prunus.data.image_files import (
    ImageFile,
    class_folders,
    copies,
    evenly,
    images_in,
    in_threads,
    left_out,
    require_apart,
    require_single,
)
from prunus.data.image_size import image_sides, sized_suffix
from prunus.data.roles import DataSplits, three_splits, with_absent_noted
from prunus.data.splits import Samples, SearchSplit, Split, TestSplit, TrainSplit
from prunus.data.stores import Inputs, Normalizer, SampleStore
from prunus.errors import DataError

FOLDER = "imagefolder:"

_IMAGENET = Normalizer((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_IMAGE_SIZE = (224, 224)
_OPENED = 50_000  # files of a split, at most, whose beginnings are read at the door
_DECODED = 2_000  # images of search and of test, at most, that are decoded at the door


@final
class FolderStore(SampleStore):
    """Images on disk.

    Plain: resized until it covers 256/224 of the image size, then the center. Augmented: a crop of
    random area and shape, mirrored at random.

    Args:
        files: One image each.
        labels: int64 ``[files]``.
        normalizer: Applied to every batch.
        image_size: Height and width of the inputs in pixels, or one number for both.
    """

    def __init__(
        self,
        files: Sequence[Path],
        labels: Tensor,
        normalizer: Normalizer,
        image_size: int | Sequence[int],
    ) -> None:
        normalizer.require_channels(3)
        self._files = list(files)
        self._labels = labels
        self._normalizer = normalizer
        self._image_size = image_sides(image_size)

    @property
    def labels(self) -> Tensor:
        """Class of every sample, int64 ``[samples]``."""
        return self._labels

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Channels, height, width."""
        return (3, *self._image_size)

    def read(self, indices: Tensor, augment: torch.Generator | None) -> tuple[Inputs, Tensor]:
        """Decode, crop and normalize images.

        Raises:
            DataError: A file is no readable image.
        """
        files = self.files(indices)
        chances: list[Tensor | None] = [None] * len(files)
        if augment is not None:
            # Drawn before the threads start, so that their order does not matter.
            chances = list(torch.rand(len(files), 4 * ATTEMPTS + 1, generator=augment))
        images = in_threads(self._read_one, list(zip(files, chances, strict=True)))
        return self._normalizer(torch.stack(images)), self._labels[indices]

    def digest(self, indices: Tensor) -> str:
        """As of any store, and of names and sizes of all files.

        Raises:
            DataError: A file is gone, or no readable image.
        """
        total = hashlib.sha256(super().digest(indices).encode())
        for index in indices.tolist():
            file = self._files[index]
            try:
                size = file.stat().st_size
            except OSError as error:
                raise DataError(f"'{file}' is gone ({error.strerror}): put it back") from error
            total.update(f"{file.parent.name}/{file.name} {size}\n".encode())
        return total.hexdigest()

    def files(self, indices: Tensor) -> list[Path]:
        """Those of some samples."""
        return [self._files[index] for index in indices.tolist()]

    def take(self, indices: Tensor) -> "FolderStore":
        """A store that knows these files alone."""
        files = self.files(indices)
        return FolderStore(files, self._labels[indices], self._normalizer, self._image_size)

    def _read_one(self, given: tuple[Path, Tensor | None]) -> Tensor:
        """One image, uint8 ``[3, height, width]``; augmented by the chances beside it."""
        file, chances = given
        image = decoded(file)
        if chances is None:
            image = center(image, self._image_size)
        else:
            image = random_crop(image, self._image_size, chances[:-1].view(ATTEMPTS, 4).tolist())
            if float(chances[-1]) < 0.5:
                image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def load_folder(
    folder: Path,
    *,
    normalizer: Normalizer | None,
    search_size: int | None,
    seed: int,
    image_size: int | Sequence[int] | None,
) -> DataSplits:
    """Load ``folder/train/CLASS/*`` and ``folder/test/CLASS/*`` (or ``folder/val/CLASS/*``).

    The name of the data holds the image size where it is not the default. Search is a fifth of
    train by default. Where both ``test`` and ``val`` exist, ``val`` is the search split, or
    ``search_size`` images drawn from it.

    Raises:
        DataError: A folder is missing or empty, the splits have other classes, or share a file, or an
            image that was looked at cannot be read.
    """
    sides = _IMAGE_SIZE if image_size is None else image_sides(image_size)
    name = f"{FOLDER}{folder}" + ("" if sides == _IMAGE_SIZE else sized_suffix(sides))
    test_folder = folder / "test" if (folder / "test").is_dir() else folder / "val"
    if not (folder / "train").is_dir() or not test_folder.is_dir():
        raise DataError(
            f"'{folder}' lacks {'test/ (or val/)' if (folder / 'train').is_dir() else 'train/'}: "
            "give a folder with train/CLASS/ and test/CLASS/"
        )
    has_search = test_folder.name == "test" and (folder / "val").is_dir()
    classes = class_folders(folder / "train")
    unread: Counter[str] = Counter()
    seen: dict[Path, ImageFile] = {}

    def scan(part: Path) -> Samples:
        if part.name != "train" and class_folders(part) != classes:
            odd = min(set(class_folders(part)) ^ set(classes))
            raise DataError(
                f"'{part}' and '{folder / 'train'}' differ in the class '{odd}': give both the same"
            )
        found = [images_in(part / each, unread) for each in classes]
        files = [file for each in found for file in each]
        if part.name == "train" and not has_search:
            require_single(files)
        seen.update((file.path, file) for file in files)
        _require_images([file.path for file in files])
        store = FolderStore(
            [file.path for file in files],
            torch.tensor([label for label, each in enumerate(found) for _ in each]),
            normalizer or _IMAGENET,
            sides,
        )
        return Samples(name, store, torch.arange(len(files)), len(classes))

    train, test = scan(folder / "train"), scan(test_folder)
    if has_search:
        search = SearchSplit(scan(folder / "val"))
        if search_size is not None:
            search = search.subset(search_size, seed)
        note = left_out(unread)
        whole = DataSplits(name, TrainSplit(train), search, TestSplit(test), len(classes), note)
        return _checked(with_absent_noted(whole), seen)
    note = left_out(unread)
    return _checked(three_splits(train, test, search_size=search_size, seed=seed, note=note), seen)


def _checked(data: DataSplits, seen: Mapping[Path, ImageFile]) -> DataSplits:
    """The same, its splits apart, its search and test images decoded once: they are first needed late.

    Raises:
        DataError: One is no readable image, or in two splits.
    """
    files = {
        split.role: [seen[path] for path in _files_of(split)]
        for split in (data.train, data.search, data.test)
    }
    require_apart(files)
    remarks = copies(files)
    for role in ("search", "test"):
        some = evenly([file.path for file in files[role]], _DECODED)
        found = sum(in_threads(is_transparent, some))
        if found:
            remarks.append(
                f"{found} of {len(some)} images of the {role} split are transparent in part: the colours "
                "that lie there are read, as torchvision does"
            )
    return data.noted(remarks)


def _files_of(split: Split) -> list[Path]:
    store = split.samples.store
    if not isinstance(store, FolderStore):  # pragma: no cover - images lie in no other
        return []
    return store.files(split.samples.indices)


def _require_images(files: Sequence[Path]) -> None:
    """Read how files begin, those of a large split spread evenly: a training must not end at the last.

    Raises:
        DataError: One is no image.
    """
    in_threads(require_image, evenly(files, _OPENED))
