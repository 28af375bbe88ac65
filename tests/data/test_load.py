"""Named data sets: their sizes, their constants, and that a seed moves search but never test."""

import io
import sys
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional

from prunus.data import Split, load_data
from prunus.errors import DataError, InputError, MissingExtraError


def whole(split: Split) -> Tensor:
    inputs, _ = next(split.batches(len(split)))
    assert isinstance(inputs, Tensor)
    return inputs


def augmented(split: Split, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Positions of all samples in some order, and their augmented inputs."""
    batches = split.placed_batches(len(split), generator=generator, augment=True)
    positions, inputs, _ = next(batches)
    assert isinstance(inputs, Tensor)
    return positions, inputs


def rows(x: Tensor) -> set[bytes]:
    return {row.numpy().tobytes() for row in x}


def test_digits_are_split_by_fifths_in_proportion() -> None:
    data = load_data("digits")
    # 1797 / 5 = 359.4, then 1438 / 5 = 287.6
    assert (len(data.train), len(data.search), len(data.test)) == (1150, 288, 359)
    assert data.input_shape == (1, 8, 8)
    counts = np.bincount(load_digits().target)
    for split in (data.train, data.search, data.test):
        share = torch.bincount(split.labels).numpy() / counts
        assert np.abs(share - len(split) / 1797).max() < 0.012  # two samples of some 178
    together = torch.cat([data.train.labels, data.search.labels, data.test.labels])
    assert torch.bincount(together).tolist() == counts.tolist()


def test_digits_are_the_pixels_of_scikit_learn() -> None:
    data = load_data("digits", mean=[0.0], std=[1.0])
    mine = torch.cat([whole(data.train), whole(data.search), whole(data.test)])
    assert float((mine * 16 - (mine * 16).round()).abs().max()) <= 16 / 255 / 2 + 1e-6
    restored = {tuple(image.flatten().int().tolist()) for image in (mine * 16).round()}
    expected = {tuple(int(v) for v in image.flatten()) for image in load_digits().images}
    assert restored == expected


def test_constants_of_digits_are_the_mean_and_deviation_of_their_pixels() -> None:
    data = load_data("digits")
    pixels = torch.cat([whole(data.train), whole(data.search), whole(data.test)])
    assert float(pixels.mean()) == pytest.approx(0, abs=2e-3)
    assert float(pixels.std()) == pytest.approx(1, abs=2e-3)


def test_augmented_digits_are_shifted_by_a_pixel_at_most_and_never_mirrored() -> None:
    data = load_data("digits", mean=[0.0], std=[1.0])
    padded = functional.pad(whole(data.train), (1, 1, 1, 1))
    crops = torch.stack([padded[..., i : i + 8, j : j + 8] for i in range(3) for j in range(3)])
    positions, inputs = augmented(data.train, torch.Generator().manual_seed(0))
    found = (crops[:, positions] == inputs).flatten(2).all(dim=2)
    assert bool(found.any(dim=0).all())
    assert bool(found.any(dim=1).all())  # none of the nine shifts is missing


def test_the_seed_moves_search_and_never_test() -> None:
    first, again, other = (load_data("digits", seed=seed) for seed in (0, 0, 1))
    assert torch.equal(whole(first.search), whole(again.search))
    assert not torch.equal(whole(first.search), whole(other.search))
    assert torch.equal(whole(first.test), whole(other.test))


def test_search_size_is_obeyed() -> None:
    data = load_data("digits", search_size=100)
    assert (len(data.search), len(data.train)) == (100, 1338)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("mnist", {}, r"data 'mnist' is unknown: use digits, cifar10, cifar100 or imagefolder"),
        ("digits", {"mean": [0.5]}, r"mean is \[0\.5\] and std is None: give both or neither"),
        ("digits", {"mean": [0.5] * 3, "std": [1.0] * 3}, r"3 channels, the images have 1"),
        ("digits", {"search_size": 1438}, r"search_size is 1438: use 1 to 1428"),
        ("digits", {"image_size": 32}, r"image_size is 32, but 'digits' has a size of its own"),
    ],
)
def test_wrong_arguments_are_named(name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_data(name, **arguments)


def write_zip(path: Path, first_label: int, classes: int) -> None:
    """A part whose image ``i`` is of one color, ``i % 251``, in every pixel."""
    values = np.arange(10_000, dtype=np.uint64) % 251
    images = np.broadcast_to(values.astype(np.uint8)[:, None, None, None], (10_000, 32, 32, 3))
    with zipfile.ZipFile(path, "w") as archive:
        for strip in range(100):
            pixels = images[strip * 100 : (strip + 1) * 100].reshape(3200, 32, 3)
            buffer = io.BytesIO()
            Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "png")  # quick to write
            archive.writestr(f"{strip:02d}.webp", buffer.getvalue())
        buffer = io.BytesIO()
        np.save(buffer, ((np.arange(10_000) + first_label) % classes).astype(np.uint8))
        archive.writestr("labels.npy", buffer.getvalue())


@pytest.fixture(scope="module")
def cifar_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    (folder / "cifar").mkdir()
    write_zip(folder / "cifar" / "cifar100_train_1.zip", 0, 100)
    write_zip(folder / "cifar" / "cifar100_test.zip", 7, 100)
    write_zip(folder / "cifar" / "cifar10_train_1.zip", 0, 10)
    return folder


def test_cifar_zips_are_read_in_order(cifar_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNUS_DATA", str(cifar_folder))
    data = load_data("cifar100", mean=[0.0] * 3, std=[1.0] * 3)
    # A fifth of the 10,000 images that are there, as 5000 would be half.
    assert (len(data.train), len(data.search), len(data.test)) == (8000, 2000, 10_000)
    assert torch.bincount(data.search.labels).tolist() == [20] * 100
    assert data.note == "cifar100: 1 of 5 parts of train, 10000 images"
    inputs, labels = next(data.test.batches(300))
    assert isinstance(inputs, Tensor)
    assert labels.tolist() == [(i + 7) % 100 for i in range(300)]
    expected = torch.tensor([i % 251 for i in range(300)])
    assert torch.equal((inputs * 255).round(), expected.view(-1, 1, 1, 1).expand(300, 3, 32, 32))


def test_incomplete_and_broken_cifar_is_named(
    cifar_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRUNUS_DATA", str(cifar_folder))
    with pytest.raises(DataError, match=r"lacks cifar10_train_2\.zip, .*cifar10_test\.zip: add"):
        load_data("cifar10")
    (tmp_path / "cifar").mkdir()
    for name in ("cifar100_train_1.zip", "cifar100_test.zip"):
        (tmp_path / "cifar" / name).write_bytes(b"no zip")
    monkeypatch.setenv("PRUNUS_DATA", str(tmp_path))
    with pytest.raises(DataError, match=r"cifar100_train_1\.zip' cannot be read .*fetch it again"):
        load_data("cifar100")


def with_labels(source: Path, target: Path, labels: bytes) -> None:
    """The zip with other bytes under ``labels.npy``."""
    with zipfile.ZipFile(source) as given, zipfile.ZipFile(target, "w") as made:
        for name in given.namelist():
            made.writestr(name, labels if name == "labels.npy" else given.read(name))


def in_numpy(labels: "np.ndarray[Any, Any]") -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, labels)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (b"", r"cannot be read \(No data left in file\): fetch it again"),
        (in_numpy(np.array(["cat"] * 10_000)), r"labels of type <U3, not integers: fetch it again"),
        (in_numpy(np.full(10_000, 0.5)), r"labels of type float64, not integers: fetch it again"),
        (in_numpy(np.zeros(9999, int)), r"10000 images, labels of shape \[9999\]: fetch it again"),
        (in_numpy(np.array(3)), r"10000 images, labels of shape \[\]: fetch it again"),
    ],
)
def test_damaged_labels_of_cifar_are_named(
    cifar_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    labels: bytes,
    message: str,
) -> None:
    given = cifar_folder / "cifar"
    (tmp_path / "cifar").mkdir()
    with_labels(given / "cifar100_train_1.zip", tmp_path / "cifar" / "cifar100_train_1.zip", labels)
    (tmp_path / "cifar" / "cifar100_test.zip").symlink_to(given / "cifar100_test.zip")
    monkeypatch.setenv("PRUNUS_DATA", str(tmp_path))
    with pytest.raises(DataError, match=rf"cifar100_train_1\.zip' .*{message}"):
        load_data("cifar100")


def test_damaged_packing_of_cifar_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cifar").mkdir()
    damaged = tmp_path / "cifar" / "cifar100_train_1.zip"
    with zipfile.ZipFile(damaged, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("00.webp", bytes(range(256)) * 8)
    held = bytearray(damaged.read_bytes())
    # Behind the local header (30 bytes) and the name (7): a block of the kind 3, of which RFC 1951
    # says that it is an error.
    held[37] = 0b111
    damaged.write_bytes(held)
    (tmp_path / "cifar" / "cifar100_test.zip").write_bytes(b"not read before train")
    monkeypatch.setenv("PRUNUS_DATA", str(tmp_path))
    with pytest.raises(DataError, match=r"train_1\.zip' cannot be read .*invalid block.*fetch it"):
        load_data("cifar100")


def hub_of(
    images: list[np.ndarray[Any, Any]],
    labels: dict[str, list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> list[tuple[str, str]]:
    """A hub whose every table holds these images; what it is asked for is kept."""
    asked: list[tuple[str, str]] = []

    def load_dataset(name: str, split: str) -> dict[str, list[Any]]:
        asked.append((name, split))
        return {"img": [Image.fromarray(image) for image in images], **labels}

    fake = ModuleType("datasets")
    fake.load_dataset = load_dataset  # type: ignore[attr-defined]  # a stand-in for the package
    monkeypatch.setitem(sys.modules, "datasets", fake)
    monkeypatch.delenv("PRUNUS_DATA", raising=False)
    return asked


GRAY = [np.full((32, 32, 3), i, np.uint8) for i in range(40)]


@pytest.mark.parametrize("place", [None, "empty"])
def test_cifar_comes_from_the_hub_where_no_file_is(
    place: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = hub_of(GRAY, {"label": [i % 10 for i in range(40)]}, monkeypatch)
    if place is not None:
        monkeypatch.setenv("PRUNUS_DATA", str(tmp_path))
    data = load_data("cifar10", mean=[0.0] * 3, std=[1.0] * 3, search_size=10)
    assert asked == [("uoft-cs/cifar10", "train"), ("uoft-cs/cifar10", "test")]
    assert (len(data.train), len(data.search), len(data.test), data.note) == (30, 10, 40, "")
    assert (whole(data.test)[:, 0, 0, 0] * 255).round().tolist() == list(range(40))


def test_classes_of_cifar100_are_the_hundred_fine_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    fine = [i // 2 for i in range(40)]
    asked = hub_of(GRAY, {"coarse_label": [i % 10 for i in fine], "fine_label": fine}, monkeypatch)
    data = load_data("cifar100")
    assert asked == [("uoft-cs/cifar100", "train"), ("uoft-cs/cifar100", "test")]
    assert data.test.labels.tolist() == fine


# Mean and deviation of the 50,000 training images, by channel, as everybody rounds them.
@pytest.mark.parametrize(
    ("name", "label", "mean", "std"),
    [
        ("cifar10", "label", (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
        ("cifar100", "fine_label", (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    ],
)
def test_constants_of_cifar_are_those_of_its_training_images(
    name: str,
    label: str,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hub_of(GRAY, {label: [i % 10 for i in range(40)]}, monkeypatch)
    black, gray = whole(load_data(name).test)[[0, 39], :, 0, 0].double()
    torch.testing.assert_close(black, -torch.tensor(mean).double() / torch.tensor(std))
    torch.testing.assert_close(gray - black, 39 / 255 / torch.tensor(std).double())


def test_augmented_cifar_is_shifted_by_up_to_four_pixels_and_mirrored_by_half(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:, :, 0] = np.arange(32)
    pixels[:, :, 1] = np.arange(32)[:, None]
    hub_of([pixels] * 40, {"label": [i % 10 for i in range(40)]}, monkeypatch)
    data = load_data("cifar10", mean=[0.0] * 3, std=[1 / 255] * 3)
    generator = torch.Generator().manual_seed(0)
    images = torch.cat([augmented(data.train, generator)[1] for _ in range(20)])
    across, down = images[:, 0, 16].round().int(), images[:, 1, :, 16].round().int()
    mirrored = across[:, 17] < across[:, 16]
    # Column 16 of a mirrored image is column 15 of the shifted one.
    shifts = across[:, 16] - torch.where(mirrored, 15, 16)
    every = set(range(-4, 5))
    assert set(down[:, 16].sub(16).tolist()) == every
    assert {*shifts[mirrored].tolist()} == {*shifts[~mirrored].tolist()} == every
    assert abs(int(mirrored.sum()) - 320) < 4 * 640**0.5 / 2  # four standard deviations


def test_an_absent_hub_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(name: str, split: str) -> None:
        raise ConnectionError("offline")

    monkeypatch.delenv("PRUNUS_DATA", raising=False)
    fake = ModuleType("datasets")
    fake.load_dataset = load_dataset  # type: ignore[attr-defined]  # a stand-in for the package
    monkeypatch.setitem(sys.modules, "datasets", fake)
    with pytest.raises(DataError, match=r"hub \(ConnectionError\): connect .*set PRUNUS_DATA"):
        load_data("cifar10")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        MissingExtraError,
        match=r"PRUNUS_DATA/cifar, and datasets is not installed: pip install 'prunus\[text\]', or '\.\[text\]' in its folder$",
    ):
        load_data("cifar10")


def test_a_split_of_digits_cannot_reach_the_images_of_another() -> None:
    data = load_data("digits")
    mine = {}
    for split in (data.train, data.search, data.test):
        store = split.samples.store
        assert len(store.labels) == len(split)
        reached, _ = store.read(torch.arange(len(store.labels)), None)
        assert isinstance(reached, Tensor)
        mine[split.role] = rows(reached)
        assert mine[split.role] == rows(whole(split))
    # All 1797 images differ, so that no role can hold one of another's.
    assert sum(map(len, mine.values())) == len(set().union(*mine.values())) == 1797
