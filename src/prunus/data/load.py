"""Load a data set by name."""

from collections.abc import Sequence
from pathlib import Path

from prunus.data.cifar import load_cifar
from prunus.data.digits import load_digits
from prunus.data.folder import FOLDER, load_folder
from prunus.data.image_size import sized_suffix, split_size
from prunus.data.roles import DataSplits, require_draw
from prunus.data.stores import Normalizer
from prunus.data.text.load import load_text
from prunus.data.text.options import TextOptions
from prunus.data.text.sets import is_text_data
from prunus.data.text.tokenizer import TextTokenizer
from prunus.errors import InputError


def load_data(
    name: str,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    seed: int = 0,
    search_size: int | None = None,
    image_size: int | Sequence[int] | None = None,
    text: TextOptions | None = None,
    tokenizer: TextTokenizer | None = None,
) -> DataSplits:
    """Load a data set in three splits. The test split is the same for every seed.

    Args:
        name: Images: ``digits``, ``cifar10``, ``cifar100`` or ``imagefolder:DIR``, which may hold
            the image size: ``imagefolder:DIR@64``, ``imagefolder:DIR@32x48`` (height, width). Texts:
            ``text:FILE`` (CSV, TSV, JSONL, parquet), ``docstrings``, ``sst2``, ``sms``,
            ``ru_toxic`` or ``hfdata:NAME``.
        mean: Per channel, of inputs in [0, 1]; by default the data set's own. What a trained
            network needs is told by ``prunus.zoo.normalization``.
        std: Per channel, with ``mean``.
        seed: Decides which samples of train become search.
        search_size: Samples of the search split; by default 5000 for CIFAR (at most a fifth of
            train), a fifth of train otherwise.
        image_size: Pixels of the inputs, for ``imagefolder:`` alone: height and width, or one number
            for both; by default 224.
        text: How texts are read.
        tokenizer: Splits texts into the pieces that a network knows; trained on the training texts
            where left out.

    Raises:
        InputError: The name is unknown or an argument out of range.
        DataError: The data is missing or broken.
        MissingExtraError: A package that the data needs is not installed.
    """
    if not isinstance(name, str):
        raise InputError(f"data is {name!r}: give the name of a data set as text, such as digits")
    require_draw(seed, search_size)
    if is_text_data(name):
        if mean is not None or image_size is not None:
            raise InputError(f"mean, std and image_size are for images, '{name}' is a set of texts")
        return load_text(
            name, text or TextOptions(), tokenizer=tokenizer, seed=seed, search_size=search_size
        )
    if text is not None or tokenizer is not None:
        raise InputError(f"settings of texts are given, but '{name}' is no set of texts")
    normalizer = Normalizer.of(mean, std)
    if name.startswith(FOLDER):
        folder, size = _folder(name, image_size)
        return load_folder(
            folder, normalizer=normalizer, search_size=search_size, seed=seed, image_size=size
        )
    if image_size is not None:
        raise _has_own_size(name, image_size)
    if name in ("cifar10", "cifar100"):
        return load_cifar(name, normalizer=normalizer, search_size=search_size, seed=seed)
    if name == "digits":
        return load_digits(normalizer=normalizer, search_size=search_size, seed=seed)
    raise InputError(
        f"data '{name}' is unknown: use digits, cifar10, cifar100 or imagefolder:DIR for images, "
        "text:FILE, docstrings, sst2, sms, ru_toxic or hfdata:NAME for texts"
    )


def named_size(name: str) -> tuple[int, int] | None:
    """The image size that the name of an image folder ends with; None: none, or another data set."""
    return split_size(name.removeprefix(FOLDER))[1] if name.startswith(FOLDER) else None


def with_image_size(name: str, size: tuple[int, int]) -> str:
    """The name of an image folder with this image size in the place of its own.

    Raises:
        InputError: It is no image folder.
    """
    if not name.startswith(FOLDER):
        raise _has_own_size(name, size)
    folder, _ = split_size(name.removeprefix(FOLDER))
    return f"{FOLDER}{folder}{sized_suffix(size)}"


def _folder(
    name: str, image_size: int | Sequence[int] | None
) -> tuple[Path, int | Sequence[int] | None]:
    """The folder of images that is named, and the size that is asked for."""
    folder, named = split_size(name.removeprefix(FOLDER))
    if not folder:
        raise InputError(f"data '{name}' names no folder: write {FOLDER}DIR")
    if named is not None and image_size is not None:
        raise InputError(f"image_size is {image_size}, but '{name}' names a size: give one of them")
    return Path(folder), image_size if named is None else named


def _has_own_size(name: str, size: object) -> InputError:
    return InputError(
        f"image_size is {size}, but '{name}' has a size of its own: use it for imagefolder:DIR"
    )
