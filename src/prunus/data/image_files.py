"""Which files of a folder are images; none is left out in silence, and none is in two splits."""

import filecmp
import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from prunus.errors import DataError

SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
_FOREIGN = frozenset({".heic", ".heif", ".svg"})  # images that Pillow has no plugin for
_READ = 2**16  # bytes of a file that tell it from most others of its size
_COMPARED = 2_000  # images of a split, at most, that are compared with those of the others


@dataclass(frozen=True, order=True)
class ImageFile:
    """A file as its folder tells of it.

    Attributes:
        path: Of the file or of a link to it.
        size_bytes: Of its content.
        identity: Device and number on it, by which two links to one file are told.
    """

    path: Path
    size_bytes: int
    identity: tuple[int, int]


def class_folders(folder: Path) -> list[str]:
    """Names of the classes that a folder has, in order.

    Raises:
        DataError: It has none.
    """
    names = sorted(
        path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")
    )
    if not names:
        raise DataError(
            f"'{folder}' has no classes: put the images of each class in its own folder"
        )
    return names


def images_in(folder: Path, unread: Counter[str]) -> list[ImageFile]:
    """The images of a class, in order; suffixes of other images that Pillow knows are counted.

    Raises:
        DataError: There are none, or a link leads to no file.
    """
    shown = sorted(_files(folder, ()))
    files = [_seen(path) for path in shown if path.suffix.lower() in SUFFIXES]
    others = {path.suffix.lower() for path in shown} - SUFFIXES
    if others:
        others &= {*Image.registered_extensions(), *_FOREIGN}  # loads all of Pillow's plugins
    odd = Counter(path.suffix.lower() for path in shown if path.suffix.lower() in others)
    if not files:
        left = f" that are read, but {_counted(odd)}: convert them, or" if odd else ":"
        raise DataError(f"'{folder}' has no images{left} add some ({', '.join(sorted(SUFFIXES))})")
    unread.update(odd)
    return files


def left_out(unread: Counter[str]) -> str:
    """Remark on images whose form is not read."""
    if not unread:
        return ""
    return f"images were left out, {_counted(unread)}: read are {', '.join(sorted(SUFFIXES))}"


def require_apart(splits: Mapping[str, Sequence[ImageFile]]) -> None:
    """Refuse a file that is in two splits, as through a link.

    Raises:
        DataError: There is one.
    """
    known: dict[tuple[int, int], tuple[str, Path]] = {}
    for role, files in splits.items():
        for file in files:
            other, path = known.setdefault(file.identity, (role, file.path))
            if other != role:
                raise DataError(
                    f"'{file.path}' of {role} and '{path}' of {other} are one file: give every split "
                    "images of its own"
                )


def copies(splits: Mapping[str, Sequence[ImageFile]]) -> list[str]:
    """Remarks on splits whose images another one has, too, byte for byte.

    Of each split up to 2,000 images, spread evenly, are compared with all of the splits before it.

    Raises:
        DataError: A file cannot be read.
    """
    remarks: list[str] = []
    before: list[ImageFile] = []
    roles: list[str] = []
    for role, files in splits.items():
        some = files[:: max(1, -(-len(files) // _COMPARED))]
        found = _known(some, before)
        if found:
            remarks.append(
                f"{found} of {len(some)} images of the {role} split are in {' or '.join(roles)}, too"
            )
        before += files
        roles.append(role)
    return remarks


def _known(files: Sequence[ImageFile], others: Sequence[ImageFile]) -> int:
    """How many of the files are among others."""
    sizes = {file.size_bytes for file in files}
    alike: dict[tuple[int, bytes], list[Path]] = defaultdict(list)
    for other in others:
        if other.size_bytes in sizes:
            alike[_mark(other)].append(other.path)
    sizes = {size for size, _ in alike}
    return sum(
        any(filecmp.cmp(file.path, other, shallow=False) for other in alike.get(_mark(file), ()))
        for file in files
        if file.size_bytes in sizes
    )


def _mark(file: ImageFile) -> tuple[int, bytes]:
    """The size of a file, and a digest of its middle: few that are no copies have both in common."""
    try:
        with file.path.open("rb") as opened:
            opened.seek(max(0, file.size_bytes - _READ) // 2)
            return file.size_bytes, hashlib.sha256(opened.read(_READ)).digest()
    except OSError as error:
        raise DataError(
            f"'{file.path}' cannot be read ({error.strerror}): mend or remove it"
        ) from error


def _files(folder: Path, above: tuple[Path, ...]) -> Iterator[Path]:
    """All that is no folder; links to folders are followed, but not back to one that they lie in."""
    real = folder.resolve()
    if real in above:
        return
    for path in folder.iterdir():
        if path.name.startswith("."):
            continue
        if path.is_dir():
            yield from _files(path, (*above, real))
        else:
            yield path


def _seen(path: Path) -> ImageFile:
    try:
        told = path.stat()
    except OSError as error:
        raise DataError(
            f"'{path}' leads to no file ({error.strerror}): mend or remove the link"
        ) from error
    return ImageFile(path, told.st_size, (told.st_dev, told.st_ino))


def _counted(suffixes: Counter[str]) -> str:
    return ", ".join(f"{n} of {suffix}" for suffix, n in sorted(suffixes.items()))
