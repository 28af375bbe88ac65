"""Decode an image file: as its camera says that it is seen, in 8 bits a channel."""

import struct
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from prunus.errors import DataError

_UNREADABLE = (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError)
_ALPHA = frozenset({"LA", "PA", "RGBA", "RGBa"})
_PALE = frozenset({"1", "L", "P", "RGB"})  # where one of the colours may stand for transparency
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


def decoded(file: Path) -> Image.Image:
    """One image in 8 bits a channel.

    Raises:
        DataError: It is no readable image, or its values have no known range.
    """
    try:
        with Image.open(file) as opened:
            return _plain(opened, file)
    except _UNREADABLE as error:
        raise _no_image(file, error) from error


def is_transparent(file: Path) -> bool:
    """Whether an image is transparent somewhere; it is decoded for that, a JPEG in an eighth of its sides.

    Raises:
        DataError: As of ``decoded``.
    """
    try:
        with Image.open(file) as opened:
            opened.draft("RGB", (1, 1))  # its bytes are all read, most of the work is spared
            _plain(opened, file)
            told = opened.mode in _PALE and "transparency" in opened.info
            if opened.mode not in _ALPHA and not told:
                return False
            alpha = np.asarray(opened.convert("RGBA").getchannel("A"))
            return bool((alpha < 255).any())
    except _UNREADABLE as error:
        raise _no_image(file, error) from error


def require_image(file: Path) -> None:
    """Read how a file begins.

    Raises:
        DataError: It is no image.
    """
    try:
        with Image.open(file):
            return
    except _UNREADABLE as error:
        raise _no_image(file, error) from error


def _plain(opened: Image.Image, file: Path) -> Image.Image:
    form = opened.mode, opened.format
    # Older versions of Pillow call a 16-bit PNG "I".
    deep = opened.mode.startswith("I;16") or form == ("I", "PNG")
    return _rgb(_turned(opened), file, deep=deep)


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
    if isinstance(image.info.get("transparency"), bytes):
        image = image.convert("RGBA")  # the same colours, without Pillow's warning
    return image.convert("RGB")


def _no_image(file: Path, error: BaseException) -> DataError:
    return DataError(
        f"'{file}' is no readable image ({type(error).__name__}): replace or remove it"
    )
