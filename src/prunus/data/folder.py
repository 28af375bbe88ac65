"""A folder of images, one sub-folder per class, decoded as they are needed."""

import hashlib
import math
import os
import re
import struct
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import final

import numpy as np
import torch
from PIL import ExifTags, Image
from torch import Tensor

from prunus.data.roles import DataSplits, three_splits
from prunus.data.splits import Samples, SearchSplit, TestSplit, TrainSplit
from prunus.data.stores import Inputs, Normalizer, SampleStore
from prunus.errors import DataError, InputError

FOLDER = "imagefolder:"

_IMAGENET = Normalizer((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
_IMAGE_SIZE = (224, 224)
_SIZED = re.compile(r"(.+)@([0-9]+)(?:x([0-9]+))?")  # DIR@224 or DIR@HEIGHTxWIDTH
_FOREIGN = frozenset({".heic", ".heif", ".svg"})  # images that Pillow has no plugin for
_LARGEST = 8192
_OPENED = 50_000  # files of a split, at most, whose beginnings are read at the door
_DECODED = 2_000  # images of search and of test, at most, that are decoded at the door
_ATTEMPTS = 10  # at a random crop that fits
_THREADS = min(8, os.cpu_count() or 1)  # Pillow decodes outside Python's lock
_UNREADABLE = (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError)
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What undoes an orientation of the Exif standard (CIPA DC-008, tag 0x0112)."""


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

    References:
        Szegedy et al., "Going Deeper with Convolutions", CVPR 2015, section 6: crops of 8 % to
        100 % of the area, sides from 3/4 to 4/3 (https://arxiv.org/abs/1409.4842).
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
        files = [self._files[index] for index in indices.tolist()]
        chances: list[Tensor | None] = [None] * len(files)
        if augment is not None:
            # Drawn before the threads start, so that their order does not matter.
            chances = list(torch.rand(len(files), 4 * _ATTEMPTS + 1, generator=augment))
        with ThreadPoolExecutor(_THREADS) as pool:
            images = list(pool.map(self._read_one, files, chances))
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

    def require_decodable(self, indices: Tensor) -> None:
        """Decode images once, those of a large split spread evenly, at a fraction of their size.

        Raises:
            DataError: A file is no readable image, as one that broke off on its way.
        """
        some = indices[:: _step(len(indices), _DECODED)]
        files = [self._files[index] for index in some.tolist()]
        with ThreadPoolExecutor(_THREADS) as pool:
            for _ in pool.map(_require_decodable, files):
                pass

    def take(self, indices: Tensor) -> "FolderStore":
        """A store that knows these files alone."""
        files = [self._files[index] for index in indices.tolist()]
        return FolderStore(files, self._labels[indices], self._normalizer, self._image_size)

    def _read_one(self, file: Path, chances: Tensor | None) -> Tensor:
        """One image, uint8 ``[3, height, width]``."""
        image = _decoded(file)
        if chances is None:
            image = _center(image, self._image_size)
        else:
            image = _random_crop(image, self._image_size, chances[:-1].view(_ATTEMPTS, 4).tolist())
            if float(chances[-1]) < 0.5:
                image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _decoded(file: Path, *, small: bool = False) -> Image.Image:
    """One image in 8 bits a channel; a JPEG in an eighth of its sides where ``small`` is set.

    Raises:
        DataError: It is no readable image, or its values have no known range.
    """
    try:
        with Image.open(file) as opened:
            if small:
                opened.draft("RGB", (1, 1))  # its bytes are all read, most of the work is spared
            form = opened.mode, opened.format
            # Older versions of Pillow call a 16-bit PNG "I".
            deep = opened.mode.startswith("I;16") or form == ("I", "PNG")
            return _rgb(_turned(opened), file, deep=deep)
    except _UNREADABLE as error:
        raise _no_image(file, error) from error


def _require_decodable(file: Path) -> None:
    _decoded(file, small=True)


def _step(n: int, most: int) -> int:
    """Every how manieth of ``n`` files is taken, so that at most so many are."""
    return max(1, -(-n // most))


def _turned(image: Image.Image) -> Image.Image:
    """An image as its camera says that it is seen.

    Pillow's own ``exif_transpose`` writes all the other tags anew, which fails where one is odd.
    """
    how = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    return image if how is None else image.transpose(how)


def _rgb(image: Image.Image, file: Path, *, deep: bool) -> Image.Image:
    """In 8 bits a channel; Pillow's own conversion clips deep images, of 16 bits, to white.

    Raises:
        DataError: Its values have no known range.
    """
    if deep:
        return Image.fromarray((np.asarray(image) // 256).astype(np.uint8)).convert("RGB")
    if image.mode[0] in "IF":
        raise DataError(
            f"'{file}' has values of no known range (mode {image.mode}): save it with 8 or 16 bits a "
            "channel"
        )
    return image.convert("RGB")


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
        DataError: A folder is missing or empty, the splits have other classes, or an image that was
            looked at cannot be read.
    """
    sides = _IMAGE_SIZE if image_size is None else image_sides(image_size)
    name = f"{FOLDER}{folder}" + ("" if sides == _IMAGE_SIZE else sized_suffix(sides))
    test_folder = folder / "test" if (folder / "test").is_dir() else folder / "val"
    if not (folder / "train").is_dir() or not test_folder.is_dir():
        raise DataError(
            f"'{folder}' lacks {'test/ (or val/)' if (folder / 'train').is_dir() else 'train/'}: "
            "give a folder with train/CLASS/ and test/CLASS/"
        )
    classes = _classes(folder / "train")
    unread: Counter[str] = Counter()

    def scan(part: Path) -> Samples:
        if part.name != "train" and _classes(part) != classes:
            odd = min(set(_classes(part)) ^ set(classes))
            raise DataError(
                f"'{part}' and '{folder / 'train'}' differ in the class '{odd}': give both the same"
            )
        files = [
            (file, label)
            for label, each in enumerate(classes)
            for file in _images(part / each, unread)
        ]
        _require_images([file for file, _ in files])
        store = FolderStore(
            [file for file, _ in files],
            torch.tensor([label for _, label in files]),
            normalizer or _IMAGENET,
            sides,
        )
        return Samples(name, store, torch.arange(len(files)), len(classes))

    train, test = scan(folder / "train"), scan(test_folder)
    if test_folder.name == "test" and (folder / "val").is_dir():
        search = SearchSplit(scan(folder / "val"))
        if search_size is not None:
            search = search.subset(search_size, seed)
        note = _left_out(unread)
        return _whole(
            DataSplits(name, TrainSplit(train), search, TestSplit(test), len(classes), note)
        )
    size = max(1, round(len(train.indices) / 5)) if search_size is None else search_size
    note = _left_out(unread)
    return _whole(three_splits(train, test, search_size=size, seed=seed, note=note))


def _whole(data: DataSplits) -> DataSplits:
    """The same, its search and test images decoded once: they are first needed after an epoch, or all.

    Raises:
        DataError: One is no readable image.
    """
    for split in (data.search, data.test):
        if isinstance(split.samples.store, FolderStore):
            split.samples.store.require_decodable(split.samples.indices)
    return data


def _require_images(files: Sequence[Path]) -> None:
    """Read how files begin, those of a large split spread evenly: a training must not end at the last.

    Raises:
        DataError: One is no image.
    """
    with ThreadPoolExecutor(_THREADS) as pool:
        for _ in pool.map(_require_image, files[:: _step(len(files), _OPENED)]):
            pass


def _require_image(file: Path) -> None:
    try:
        with Image.open(file):
            return
    except _UNREADABLE as error:
        raise _no_image(file, error) from error


def _no_image(file: Path, error: BaseException) -> DataError:
    return DataError(
        f"'{file}' is no readable image ({type(error).__name__}): replace or remove it"
    )


def image_sides(size: object) -> tuple[int, int]:
    """Height and width.

    Raises:
        InputError: The size is no whole number above 0, and no pair of them.
    """
    sides = tuple(size) if isinstance(size, tuple | list) else (size, size)
    numbers = [side for side in sides if isinstance(side, int) and not isinstance(side, bool)]
    if len(sides) != 2 or len(numbers) != 2:
        raise InputError(
            f"image_size is {size!r}: use a whole number of pixels such as 224, or (height, width)"
        )
    if min(numbers) < 1:
        raise InputError(f"image_size is {size}: use at least 1")
    if max(numbers) > _LARGEST:
        raise InputError(f"image_size is {size}: use at most {_LARGEST}")
    return numbers[0], numbers[1]


def split_size(text: str) -> tuple[str, tuple[int, int] | None]:
    """The folder and the image size that stand in ``DIR@224`` or ``DIR@32x48``.

    A folder whose own name ends so is meant as it stands.
    """
    found = _SIZED.fullmatch(text)
    if found is None or Path(text).is_dir():
        return text, None
    height, width = found[2], found[3] or found[2]
    return found[1], (int(height), int(width))


def sized_suffix(sides: tuple[int, int]) -> str:
    """What ``split_size`` reads as this image size."""
    height, width = sides
    return f"@{height}" if height == width else f"@{height}x{width}"


def _classes(folder: Path) -> list[str]:
    names = sorted(
        path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")
    )
    if not names:
        raise DataError(
            f"'{folder}' has no classes: put the images of each class in its own folder"
        )
    return names


def _images(folder: Path, unread: Counter[str]) -> list[Path]:
    """The images of a class; suffixes of other images that Pillow knows are counted."""
    shown = sorted(
        path
        for path in folder.rglob("*")
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    files = [path for path in shown if path.suffix.lower() in _SUFFIXES and path.is_file()]
    others = {path.suffix.lower() for path in shown} - _SUFFIXES
    if others:
        others &= {*Image.registered_extensions(), *_FOREIGN}  # loads all of Pillow's plugins
    odd = Counter(path.suffix.lower() for path in shown if path.suffix.lower() in others)
    if not files:
        left = f" that are read, but {_counted(odd)}: convert them, or" if odd else ":"
        raise DataError(f"'{folder}' has no images{left} add some ({', '.join(sorted(_SUFFIXES))})")
    unread.update(odd)
    return files


def _counted(suffixes: Counter[str]) -> str:
    return ", ".join(f"{n} of {suffix}" for suffix, n in sorted(suffixes.items()))


def _left_out(unread: Counter[str]) -> str:
    """Remark on images whose form is not read."""
    if not unread:
        return ""
    return f"images were left out, {_counted(unread)}: read are {', '.join(sorted(_SUFFIXES))}"


def _center(image: Image.Image, sides: tuple[int, int]) -> Image.Image:
    """Resize until 256/224 of ``sides`` (height, width) is covered, then crop the center."""
    high, wide = (max(side, round(side * 256 / 224)) for side in sides)
    factor = max(wide / image.width, high / image.height)
    width = max(wide, int(image.width * factor))
    height = max(high, int(image.height * factor))
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - sides[1]) // 2, (height - sides[0]) // 2
    return image.crop((left, top, left + sides[1], top + sides[0]))


def _random_crop(
    image: Image.Image, sides: tuple[int, int], chances: list[list[float]]
) -> Image.Image:
    """Crop a random area and resize it; the largest centered part of the shape where none fits."""
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
