"""CIFAR-10 and CIFAR-100: from zips of WebP strips in ``$PRUNUS_DATA/cifar``, else from the hub."""

import io
import os
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from prunus.data.roles import DataSplits, three_splits
from prunus.data.splits import Samples
from prunus.data.stores import Normalizer, TensorStore
from prunus.errors import DataError, MissingExtraError
from prunus.extras import require_extra

_PARTS = 5
_STRIPS = 100  # per zip, each of 100 images stacked top to bottom
_SEARCH_SIZE = 5000  # but at most a fifth of train
# Bytes that are packed wrongly are a zlib.error, or a kind of packing that is none; an empty
# labels.npy ends too early.
_PACKING = (zipfile.BadZipFile, zlib.error, NotImplementedError)
_DAMAGE = (*_PACKING, EOFError, KeyError, OSError, ValueError)


@dataclass(frozen=True)
class _Cifar:
    """One of the two data sets. ``partial`` allows a folder that lacks parts of train."""

    name: str
    num_classes: int
    normalizer: Normalizer
    hub_name: str
    hub_label: str
    partial: bool


_SETS = {
    "cifar10": _Cifar(
        "cifar10",
        10,
        Normalizer((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
        hub_name="uoft-cs/cifar10",
        hub_label="label",
        partial=False,
    ),
    "cifar100": _Cifar(
        "cifar100",
        100,
        Normalizer((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
        hub_name="uoft-cs/cifar100",
        hub_label="fine_label",
        partial=True,
    ),
}

_Labeled = tuple[Tensor, Tensor]  # images uint8 [n, 3, 32, 32], labels int64 [n]


def load_cifar(
    name: str, *, normalizer: Normalizer | None, search_size: int | None, seed: int
) -> DataSplits:
    """Load ``cifar10`` or ``cifar100`` into memory, in the original order.

    Search is 5000 images of train by default, or a fifth of train where that is less. CIFAR-100 is
    used as far as it is there, and ``note`` says so.

    Raises:
        DataError: Files are missing or broken, or the hub cannot be reached.
        MissingExtraError: The files are not there, and ``datasets`` is not installed.

    References:
        Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
    """
    cifar = _SETS[name]
    folder = os.environ.get("PRUNUS_DATA")
    found = None if not folder else _from_zips(cifar, Path(folder) / "cifar")
    train, test, note = _from_hub(cifar) if found is None else found
    used = normalizer or cifar.normalizer
    size = min(_SEARCH_SIZE, len(train[1]) // 5) if search_size is None else search_size
    return three_splits(
        _samples(cifar, train, used),
        _samples(cifar, test, used),
        search_size=size,
        seed=seed,
        note=note,
    )


def _samples(cifar: _Cifar, labeled: _Labeled, normalizer: Normalizer) -> Samples:
    images, labels = labeled
    # He et al. 2016, section 4.2: shifts of up to 4 pixels and horizontal flips.
    store = TensorStore(images, labels, normalizer, shift=4, flip=True)
    return Samples(cifar.name, store, torch.arange(len(labels)), cifar.num_classes)


def _from_zips(cifar: _Cifar, folder: Path) -> tuple[_Labeled, _Labeled, str] | None:
    """Train, test and note from the folder; None where it holds nothing of the data set."""
    train = [folder / f"{cifar.name}_train_{part}.zip" for part in range(1, _PARTS + 1)]
    test = folder / f"{cifar.name}_test.zip"
    there = [path for path in train if path.is_file()]
    if not there and not test.is_file():
        return None
    missing = [path.name for path in (*train, test) if not path.is_file()]
    if not there or not test.is_file() or (missing and not cifar.partial):
        raise DataError(
            f"{cifar.name} in '{folder}' lacks {', '.join(missing)}: add them, or unset "
            "PRUNUS_DATA to load it from the hub"
        )
    with ThreadPoolExecutor(min(_PARTS, os.cpu_count() or 1)) as pool:
        parts = list(pool.map(_read_zip, there))
    images, labels = (torch.cat(column) for column in zip(*parts, strict=True))
    note = ""
    if missing:
        note = f"{cifar.name}: {len(there)} of {_PARTS} parts of train, {len(labels)} images"
    return (images, labels), _read_zip(test), note


def _read_zip(path: Path) -> _Labeled:
    try:
        with zipfile.ZipFile(path) as archive:
            strips = [
                np.asarray(Image.open(io.BytesIO(archive.read(f"{strip:02d}.webp"))).convert("RGB"))
                for strip in range(_STRIPS)
            ]
            labels = np.load(io.BytesIO(archive.read("labels.npy")), allow_pickle=False)
        images = np.concatenate([strip.reshape(-1, 32, 32, 3) for strip in strips])
    except _DAMAGE as error:
        reason = str(error) or type(error).__name__
        raise DataError(f"'{path}' cannot be read ({reason}): fetch it again") from error
    if labels.shape != (len(images),):
        raise DataError(
            f"'{path}' has {len(images)} images, labels of shape {list(labels.shape)}: fetch it again"
        )
    if labels.dtype.kind not in "iu":
        raise DataError(f"'{path}' has labels of type {labels.dtype}, not integers: fetch it again")
    return _to_tensors(images, labels)


def _from_hub(cifar: _Cifar) -> tuple[_Labeled, _Labeled, str]:
    try:
        datasets = require_extra("datasets", "text")  # needed on this path alone
    except MissingExtraError as error:
        raise MissingExtraError(
            f"{cifar.name} is not in $PRUNUS_DATA/cifar, and {error}"
        ) from error
    try:
        train = datasets.load_dataset(cifar.hub_name, split="train")
        test = datasets.load_dataset(cifar.hub_name, split="test")
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(
            f"{cifar.name} cannot be loaded from the hub ({type(error).__name__}): connect to the "
            "network, or set PRUNUS_DATA to a folder that has it in cifar/"
        ) from error
    return _from_table(train, cifar), _from_table(test, cifar), ""


def _from_table(table: Any, cifar: _Cifar) -> _Labeled:
    images = np.stack([np.asarray(image.convert("RGB")) for image in table["img"]])
    return _to_tensors(images, np.asarray(table[cifar.hub_label]))


def _to_tensors(images: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> _Labeled:
    """From uint8 ``[n, 32, 32, 3]`` and any integer labels."""
    channels_first = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    return channels_first, torch.from_numpy(labels.astype(np.int64))
