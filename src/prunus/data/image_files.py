"""Which files of a folder are images; none is left out in silence, and none is in two splits."""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from PIL import Image

from prunus.errors import DataError

_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
_FOREIGN = frozenset({".heic", ".heif", ".svg"})  # images that Pillow has no plugin for
_READ = 2**14  # bytes of a file that tell it from most others of its size
_COMPARED = 2_000  # images of a split, at most, that are looked for in the splits before it
_COMPARED_WITH = 50_000  # of these, at most

_File = TypeVar("_File")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class ImageFile:
    """A file as its folder tells of it.

    Attributes:
        path: Of the file or of a link to it.
        size_bytes: Of its content.
        identity: By which two links to one file are told.
    """

    path: Path
    size_bytes: int
    identity: str


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
    files = [_seen(path) for path in shown if path.suffix.lower() in _SUFFIXES]
    others = {path.suffix.lower() for path in shown} - _SUFFIXES
    if others:
        others &= {*Image.registered_extensions(), *_FOREIGN}  # loads all of Pillow's plugins
    odd = Counter(path.suffix.lower() for path in shown if path.suffix.lower() in others)
    if not files:
        left = f" that are read, but {_counted(odd)}: convert them, or" if odd else ":"
        raise DataError(f"'{folder}' has no images{left} add some ({', '.join(sorted(_SUFFIXES))})")
    unread.update(odd)
    return files


def left_out(unread: Counter[str]) -> str:
    """Remark on images whose form is not read."""
    if not unread:
        return ""
    return f"images were left out, {_counted(unread)}: read are {', '.join(sorted(_SUFFIXES))}"


def require_apart(splits: Mapping[str, Sequence[ImageFile]]) -> None:
    """Refuse a file that is in two splits, as through a link.

    Raises:
        DataError: There is one.
    """
    known: dict[str, tuple[str, Path]] = {}
    for role, files in splits.items():
        for file in files:
            other, path = known.setdefault(file.identity, (role, file.path))
            if other != role:
                raise DataError(
                    f"'{file.path}' of {role} and '{path}' of {other} are one file: give every split "
                    "images of its own"
                )


def require_single(files: Sequence[ImageFile]) -> None:
    """Refuse to draw a search split from files that are there several times: both would have them.

    Raises:
        DataError: One is.
    """
    known: dict[str, Path] = {}
    for file in files:
        other = known.setdefault(file.identity, file.path)
        if other != file.path:
            raise DataError(
                f"'{file.path}' and '{other}' are one file, which a search split drawn from train would "
                "share with it: remove one of the links, or give search a folder of its own (val/)"
            )


def copies(splits: Mapping[str, Sequence[ImageFile]]) -> list[str]:
    """Remarks on splits whose images another one has, too, byte for byte.

    Of each split up to 2,000 images are compared with up to 50,000 of their sizes in the splits before
    it, both spread evenly.

    Raises:
        DataError: A file cannot be read.
    """
    remarks: list[str] = []
    before: list[ImageFile] = []
    roles: list[str] = []
    for role, files in splits.items():
        some = evenly(files, _COMPARED)
        sizes = {file.size_bytes for file in some}
        others = evenly([file for file in before if file.size_bytes in sizes], _COMPARED_WITH)
        found = _known(some, others)
        if found:
            remarks.append(
                f"{found} of {len(some)} images of the {role} split are in {' or '.join(roles)}, too"
            )
        before += files
        roles.append(role)
    return remarks


def evenly(files: Sequence[_File], most: int) -> Sequence[_File]:
    """At most so many of the files, spread evenly."""
    return files[:: max(1, -(-len(files) // most))]


def in_threads(function: Callable[[_File], _Result], files: Sequence[_File]) -> list[_Result]:
    """What a function says of every file; files are read, and Pillow decodes, outside Python's lock."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(function, files))


def _known(files: Sequence[ImageFile], others: Sequence[ImageFile]) -> int:
    """How many of the files are among others. Few that are no copies are read to their end."""
    for look in (_middle, _whole):
        if not others:
            return 0
        mine, theirs = in_threads(look, files), in_threads(look, others)
        common = {*mine} & {*theirs}
        files = [file for file, told in zip(files, mine, strict=True) if told in common]
        others = [file for file, told in zip(others, theirs, strict=True) if told in common]
    return len(files)


def _middle(file: ImageFile) -> tuple[int, bytes]:
    """The size of a file and a digest of its middle."""
    return file.size_bytes, _digest(file, _READ)


def _whole(file: ImageFile) -> tuple[int, bytes]:
    """The size of a file and a digest of all of it."""
    return file.size_bytes, _digest(file, file.size_bytes)


def _digest(file: ImageFile, count: int) -> bytes:
    try:
        with file.path.open("rb") as opened:
            opened.seek(max(0, file.size_bytes - count) // 2)
            return hashlib.sha256(opened.read(count)).digest()
    except OSError as error:
        raise DataError(
            f"'{file.path}' cannot be read ({error.strerror}): mend or remove it"
        ) from error


def _files(folder: Path, above: tuple[Path, ...]) -> Iterator[Path]:
    """All that is no folder; links to folders are followed, but not back to one that they lie in.

    Raises:
        DataError: A folder cannot be read, or a link leads nowhere.
    """
    real = folder.resolve()
    if real in above:
        return
    try:
        with os.scandir(folder) as scanned:  # which tells folders from files without a look at each
            entries = [entry for entry in scanned if not entry.name.startswith(".")]
    except OSError as error:
        raise DataError(
            f"'{folder}' cannot be read ({error.strerror}): mend or remove it"
        ) from error
    for entry in entries:
        path = Path(entry.path)
        if entry.is_dir():
            yield from _files(path, (*above, real))
        elif entry.is_symlink() and not path.exists():
            raise DataError(f"'{path}' leads nowhere: mend or remove the link")
        else:
            yield path


def _seen(path: Path) -> ImageFile:
    try:
        told = path.stat()
    except OSError as error:
        raise DataError(f"'{path}' cannot be read ({error.strerror}): mend or remove it") from error
    # Some network file systems number no files.
    numbered = f"{told.st_dev}:{told.st_ino}" if told.st_ino else str(path.resolve())
    return ImageFile(path, told.st_size, numbered)


def _counted(suffixes: Counter[str]) -> str:
    return ", ".join(f"{n} of {suffix}" for suffix, n in sorted(suffixes.items()))
