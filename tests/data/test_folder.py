"""Image folders: classes, crops, and every way a folder can be wrong."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import Tensor

from prunus.data import Split, load_data, with_image_size
from prunus.errors import DataError, InputError
from tests.data.image_makers import SIDE, plain, save


def first(split: Split, batch: int = 100) -> tuple[Tensor, list[int]]:
    inputs, labels = next(split.batches(batch))
    assert isinstance(inputs, Tensor)
    return inputs, labels.tolist()


def test_a_folder_becomes_three_splits(folder: Path) -> None:
    data = load_data(f"imagefolder:{folder}", mean=[0.0] * 3, std=[1.0] * 3, image_size=SIDE)
    assert (len(data.train), len(data.search), len(data.test)) == (16, 4, 6)
    assert data.num_classes == 2
    assert data.input_shape == (3, SIDE, SIDE)
    inputs, labels = first(data.test)
    assert labels == [0, 0, 0, 1, 1, 1]
    assert (inputs * 255).round()[:, 2, 5, 5].tolist() == [0, 1, 2, 100, 101, 102]
    assert torch.bincount(data.search.labels).tolist() == [2, 2]
    values = [first(split)[0][:, 0, 0, 0] for split in (data.train, data.search)]
    assert len(torch.unique(torch.cat(values))) == 20  # disjoint, together all


def test_evaluation_takes_the_center_of_the_shorter_side_at_256_224(tmp_path: Path) -> None:
    # 32 x 64, side 28: the shorter side is 32 = 28 * 256 / 224 already; rows 2-29, columns 18-45.
    pixels = np.zeros((32, 64, 3), np.uint8)
    pixels[:, :, 0] = np.arange(64)
    pixels[:, :, 1] = np.arange(32)[:, None]
    for part in ("train", "val"):
        for i in range(2):
            save(tmp_path / part / "one" / f"{i}.png", pixels)
    data = load_data(f"imagefolder:{tmp_path}", mean=[0.0] * 3, std=[1 / 255] * 3, image_size=28)
    image = first(data.test)[0][0].round()
    assert image[0, 0].tolist() == list(range(18, 46))
    assert image[1, :, 0].tolist() == list(range(2, 30))


def test_default_size_and_constants_are_those_of_imagenet(folder: Path) -> None:
    data = load_data(f"imagefolder:{folder}")
    image = first(data.test, 1)[0]
    assert image.shape == (1, 3, 224, 224)
    expected = torch.tensor([-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225])  # a black image
    assert torch.allclose(image[0, :, 0, 0], expected)


def test_augmented_crops_are_seeded_and_stay_inside(tmp_path: Path) -> None:
    ramp = np.zeros((50, 60, 3), np.uint8)
    ramp[:, :, 0] = np.arange(60) + 100
    for part in ("train", "test"):
        for i in range(20):
            save(tmp_path / part / "one" / f"{i:02d}.png", ramp)
    data = load_data(f"imagefolder:{tmp_path}", mean=[0.0] * 3, std=[1 / 255] * 3, image_size=8)
    runs = []
    for seed in (1, 1, 2):
        generator = torch.Generator().manual_seed(seed)
        inputs, _ = next(data.train.batches(16, generator=generator, augment=True))
        assert isinstance(inputs, Tensor)
        runs.append(inputs)
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    red = runs[0][:, 0]
    assert float(red.min()) >= 100
    assert float(red.max()) <= 159
    rising = (red[:, 0, -1] > red[:, 0, 0]).float().mean()
    assert 0 < float(rising) < 1  # some are mirrored


def test_val_beside_test_is_the_search_split(folder: Path) -> None:
    for name in ("ant", "bee"):
        for i in range(4):
            save(folder / "val" / name / f"{i}.png", plain(200 + i))
    name, mean, std = f"imagefolder:{folder}", [0.0] * 3, [1 / 255] * 3
    data = load_data(name, mean=mean, std=std, image_size=SIDE)
    assert (len(data.train), len(data.search), len(data.test)) == (20, 8, 6)
    assert float(first(data.search)[0].min()) >= 199.9
    few = load_data(name, mean=mean, std=std, image_size=SIDE, search_size=4)
    assert len(few.search) == 4
    drawn = {
        str(load_data(name, image_size=SIDE, search_size=4, seed=seed).search.samples.indices)
        for seed in range(6)
    }
    assert len(drawn) > 1  # of four images of each class two, by the seed


def test_unreadable_images_are_named(folder: Path) -> None:
    broken = folder / "test" / "bee" / "01.png"
    whole = broken.read_bytes()
    for content, error in ((b"no image", "UnidentifiedImage"), (b"", "UnidentifiedImage")):
        broken.write_bytes(content)  # told at the door, not by the test after a training
        with pytest.raises(DataError, match=rf"bee/01\.png' is no readable image \({error}"):
            load_data(f"imagefolder:{folder}", image_size=SIDE)
    broken.write_bytes(whole)
    data = load_data(f"imagefolder:{folder}", image_size=SIDE)
    broken.write_bytes(whole[: len(whole) - 40])  # after the door
    with pytest.raises(DataError, match=r"bee/01\.png' is no readable image"):
        first(data.test)


def test_wrong_folders_are_named(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(DataError, match=r"lacks train/: give a folder with train/CLASS/"):
        load_data(f"imagefolder:{empty}")
    with pytest.raises(DataError, match=r"'no/such/place' lacks train/"):
        load_data("imagefolder:no/such/place")
    (empty / "train").mkdir()
    with pytest.raises(DataError, match=r"lacks test/ \(or val/\)"):
        load_data(f"imagefolder:{empty}")
    (empty / "val").mkdir()
    with pytest.raises(DataError, match=r"train' has no classes: put the images of each class"):
        load_data(f"imagefolder:{empty}")
    (empty / "train" / "ant").mkdir()
    with pytest.raises(DataError, match=r"ant' has no images: add some \(\.bmp, "):
        load_data(f"imagefolder:{empty}")
    (folder / "test" / "cat").mkdir()
    with pytest.raises(DataError, match=r"differ in the class 'cat': give both the same"):
        load_data(f"imagefolder:{folder}")


def test_wrong_image_size_is_named(folder: Path) -> None:
    with pytest.raises(InputError, match=r"image_size is 99999999: use at most 8192"):
        load_data(f"imagefolder:{folder}", image_size=99999999)
    with pytest.raises(InputError, match=r"image_size is 0: use at least 1"):
        load_data(f"imagefolder:{folder}", image_size=0)
    with pytest.raises(InputError, match=r"for 1 channels, the images have 3"):
        load_data(f"imagefolder:{folder}", mean=[0.5], std=[0.5])


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_images_of_16_bits_are_scaled_and_not_clipped(folder: Path, suffix: str) -> None:
    """25700 of 65535 is 100 of 255."""
    for file in (folder / "test").rglob("*.png"):
        file.unlink()
        Image.fromarray(np.full((40, 30), 25700, np.uint16)).save(file.with_suffix(f".{suffix}"))
    data = load_data(f"imagefolder:{folder}", mean=[0.0] * 3, std=[1.0] * 3, image_size=SIDE)
    inputs, _ = first(data.test)
    assert (inputs * 255).round().unique().tolist() == [100.0]


@pytest.mark.parametrize(("kind", "mode"), [(np.float32, "F"), (np.int32, "I")])
def test_images_without_a_known_range_are_named(folder: Path, kind: type, mode: str) -> None:
    Image.fromarray(np.full((40, 30), 1, kind)).save(folder / "test" / "ant" / "00.tiff")
    with pytest.raises(
        DataError, match=rf"00\.tiff' has values of no known range \(mode {mode}\): save"
    ):
        load_data(f"imagefolder:{folder}", image_size=SIDE)


def test_a_photo_is_turned_as_its_camera_says(folder: Path) -> None:
    """Orientation 3 is upside down: the dark half, stored below, belongs above."""
    pixels = np.full((40, 40, 3), 200, np.uint8)
    pixels[20:] = 10
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(pixels).save(folder / "test" / "ant" / "00.jpg", exif=exif)
    (folder / "test" / "ant" / "00.png").unlink()
    data = load_data(f"imagefolder:{folder}", mean=[0.0] * 3, std=[1.0] * 3, image_size=SIDE)
    inputs, _ = first(data.test)
    assert inputs[0, 0, 2, 2] < 0.1
    assert inputs[0, 0, -3, 2] > 0.7


def exif_of(orientation: int, *, odd: bool) -> bytes:
    """Two tags as bytes: the orientation, and a resolution that is a text, which Pillow cannot write."""
    tags = [struct.pack("<HHIHH", 0x0112, 3, 1, orientation, 0)]
    if odd:
        tags.append(struct.pack("<HHI4s", 0x011A, 2, 4, b"low\0"))
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(tags)) + b"".join(tags) + bytes(4)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_with_odd_tags_is_turned_as_any_other(folder: Path, orientation: int) -> None:
    pixels = np.zeros((40, 40, 3), np.uint8)
    pixels[:20, :20], pixels[:20, 20:] = 80, 200
    file = folder / "test" / "ant" / "00.png"
    Image.fromarray(pixels).save(file, exif=exif_of(orientation, odd=False))
    with Image.open(file) as stored:
        turned = np.asarray(ImageOps.exif_transpose(stored))[:, :, 0]  # the library's own way
    Image.fromarray(pixels).save(file, exif=exif_of(orientation, odd=True))
    data = load_data(f"imagefolder:{folder}", mean=[0.0] * 3, std=[1.0] * 3, image_size=SIDE)
    image = (first(data.test)[0][0, 0] * 255).round()
    for y, x in ((2, 2), (2, -3), (-3, 2), (-3, -3)):
        assert int(image[y, x]) == int(turned[y, x])


def test_height_and_width_may_differ(tmp_path: Path) -> None:
    # 32 x 64 is 28 x 56 by 256/224 already: rows 2-29, columns 4-59 are the center.
    pixels = np.zeros((32, 64, 3), np.uint8)
    pixels[:, :, 0] = np.arange(64)
    pixels[:, :, 1] = np.arange(32)[:, None]
    thin = np.zeros((1, 300, 3), np.uint8)
    thin[:, :, 0] = np.minimum(np.arange(300), 255)
    for part in ("train", "test"):
        save(tmp_path / part / "one" / "a.png", pixels)
        save(tmp_path / part / "one" / "b.png", thin)
    name, mean, std = f"imagefolder:{tmp_path}", [0.0] * 3, [1 / 255] * 3
    data = load_data(name, mean=mean, std=std, image_size=(28, 56))
    assert data.input_shape == (3, 28, 56)
    image = first(data.test)[0][0].round()
    assert image[0, 0].tolist() == list(range(4, 60))
    assert image[1, :, 0].tolist() == list(range(2, 30))
    # No random area of a line fits: twice as wide as high, at its center, are columns 149 and 150.
    generator = torch.Generator().manual_seed(0)
    inputs, _ = data.test.samples.store.read(torch.tensor([1]), generator)
    assert isinstance(inputs, Tensor)
    assert inputs[0, 0].min() >= 148.9
    assert inputs[0, 0].max() <= 150.1


def ramps(folder: Path, count: int) -> str:
    """Data of photos whose red is the column and whose green is the row of each of 256 x 256 pixels."""
    pixels = np.zeros((256, 256, 3), np.uint8)
    pixels[:, :, 0] = np.arange(256)
    pixels[:, :, 1] = np.arange(256)[:, None]
    for part in ("train", "test"):
        for i in range(count):
            save(folder / part / "one" / f"{i:02d}.png", pixels)
    return f"imagefolder:{folder}"


def test_augmented_crops_are_of_8_to_100_percent_of_the_area_and_half_are_mirrored(
    tmp_path: Path,
) -> None:
    data = load_data(ramps(tmp_path, 40), mean=[0.0] * 3, std=[1 / 255] * 3, image_size=8)
    store, generator = data.test.samples.store, torch.Generator().manual_seed(0)
    drawn = [store.read(torch.arange(40), generator)[0] for _ in range(5)]
    inputs = torch.cat([one for one in drawn if isinstance(one, Tensor)])
    across = (inputs[:, 0, 4, 6] - inputs[:, 0, 4, 1]) / 5  # pixels of the photo in one
    down = (inputs[:, 1, 6, 4] - inputs[:, 1, 1, 4]) / 5
    shares = across.abs() * down * 64 / 256**2
    assert 0.07 < float(shares.min()) < 0.15
    assert 0.85 < float(shares.max()) < 1.03
    # Areas are even from 0.08 to 1, less those that do not fit: above m, the lesser side of the shape
    # over the greater, whose logarithm is even from 3/4 to 1. E m = 0.869, E m^2 = 0.760.
    expected = (0.760 - 0.08**2) / 2 / (0.869 - 0.08)
    assert float(shares.mean()) == pytest.approx(expected, abs=4 * 0.24 / 200**0.5)
    assert abs(int((across < 0).sum()) - 100) < 4 * 50**0.5  # four standard deviations


def test_augmented_crops_of_any_shape_are_stretched_by_a_third_at_most(tmp_path: Path) -> None:
    name, mean, std = ramps(tmp_path, 40), [0.0] * 3, [1 / 255] * 3
    data = load_data(name, mean=mean, std=std, image_size=(8, 16))
    generator = torch.Generator().manual_seed(0)
    inputs, _ = next(data.train.batches(32, generator=generator, augment=True))
    assert isinstance(inputs, Tensor)
    # Pixels of the photo in one of the input, away from its rim; values are rounded.
    across = (inputs[:, 0, 4, 12] - inputs[:, 0, 4, 3]).abs() / 9
    down = (inputs[:, 1, 6, 8] - inputs[:, 1, 1, 8]) / 5
    assert float((across / down).min()) >= 3 / 4 * 0.95
    assert float((across / down).max()) <= 4 / 3 * 1.05


def test_the_name_may_hold_the_image_size(folder: Path) -> None:
    name = f"imagefolder:{folder}"
    for text, sides in (("16", (16, 16)), ("16x24", (16, 24))):
        data = load_data(f"{name}@{text}")
        assert data.input_shape == (3, *sides)
        assert data.name == load_data(name, image_size=sides).name == f"{name}@{text}"
    # A run on the default keeps the name that it has always had.
    assert load_data(f"{name}@224").name == load_data(name).name == name
    assert with_image_size(f"{name}@16", (16, 24)) == f"{name}@16x24"
    with pytest.raises(InputError, match=r"image_size is 8, but '.*@16' names a size: give one of"):
        load_data(f"{name}@16", image_size=8)
    with pytest.raises(InputError, match=r"image_size is \(0, 0\): use at least 1"):
        load_data(f"{name}@0")


def test_a_folder_whose_name_ends_like_a_size_is_meant_as_it_stands(folder: Path) -> None:
    renamed = folder.rename(folder.with_name("photos@8"))
    assert load_data(f"imagefolder:{renamed}").input_shape == (3, 224, 224)
    assert load_data(f"imagefolder:{renamed}@16").input_shape == (3, 16, 16)


@pytest.mark.parametrize("size", ["16", 16.0, True, (16,), (16, "16"), [1, 2, 3]])
def test_an_image_size_that_is_no_number_is_named(folder: Path, size: Any) -> None:
    with pytest.raises(InputError, match=r"image_size is .*: use a whole number of pixels such as"):
        load_data(f"imagefolder:{folder}", image_size=size)


def test_a_folder_is_named() -> None:
    with pytest.raises(
        InputError, match=r"data 'imagefolder:' names no folder: write imagefolder:"
    ):
        load_data("imagefolder:")


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_images_are_told(tmp_path: Path, mode: str) -> None:
    for part, opaque in (("train", 255), ("test", 254)):
        for i in range(5):
            pixels = np.full((40, 40, 4), 10 * i, np.uint8)
            pixels[..., 3] = 255
            pixels[0, 0, 3] = opaque
            path = tmp_path / part / "ant" / f"{part}{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).convert(mode).save(path)
    note = load_data(f"imagefolder:{tmp_path}", image_size=SIDE).note
    assert note.startswith("5 of 5 images of the test split are transparent in part")
    assert "search" not in note


def test_a_split_that_lacks_a_class_is_told(tmp_path: Path) -> None:
    for part, counts in (("train", (1, 9)), ("test", (1, 1))):
        for name, count in zip(("ant", "bee"), counts, strict=True):
            for i in range(count):
                value = 100 * (part == "test") + 50 * (name == "bee") + i
                save(tmp_path / part / name / f"{i}.png", plain(value))
    data = load_data(f"imagefolder:{tmp_path}", image_size=SIDE)
    assert data.note == "the search split has no sample of class 0"
