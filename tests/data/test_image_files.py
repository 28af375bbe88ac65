"""Files of an image folder: which are read, those behind links, and copies."""

import os
from pathlib import Path

import pytest
from PIL import Image

from prunus.data import load_data
from prunus.errors import DataError
from tests.data.image_makers import SIDE, plain, save


def test_a_folder_with_the_name_of_an_image_is_passed_by(folder: Path) -> None:
    before = len(load_data(f"imagefolder:{folder}", image_size=SIDE).train)
    (folder / "train" / "bee" / "zz.png").mkdir()
    assert len(load_data(f"imagefolder:{folder}", image_size=SIDE).train) == before


def test_hidden_folders_of_a_class_are_passed_by(folder: Path) -> None:
    save(folder / "train" / "ant" / ".checkpoints" / "00-copy.png", plain(1))
    (folder / "train" / "bee" / ".apple").mkdir()
    (folder / "train" / "bee" / ".apple" / "00.jpg").write_bytes(b"no image")
    data = load_data(f"imagefolder:{folder}", image_size=SIDE)
    assert len(data.train) + len(data.search) == 20


def test_images_of_other_forms_are_counted(folder: Path) -> None:
    for part, name in (("train", "a.gif"), ("train", "b.gif"), ("test", "c.GIF")):
        Image.new("P", (9, 9)).save(folder / part / "ant" / name)
    data = load_data(f"imagefolder:{folder}", image_size=SIDE)
    assert data.note.startswith("images were left out, 3 of .gif: read are .bmp, .jpeg")
    assert "txt" not in data.note
    assert (len(data.train) + len(data.search), len(data.test)) == (20, 6)
    for file in (folder / "test" / "bee").iterdir():
        file.rename(file.with_suffix(".heic"))
    with pytest.raises(DataError, match=r"has no images that are read, but 3 of \.heic: convert"):
        load_data(f"imagefolder:{folder}", image_size=SIDE)


def test_a_file_in_two_splits_is_refused(folder: Path) -> None:
    (folder / "test" / "ant" / "again.png").symlink_to(folder / "train" / "ant" / "00.png")
    with pytest.raises(DataError, match=r"again.png' of test and '.*00.png' of \w+ are one file"):
        load_data(f"imagefolder:{folder}", image_size=SIDE)


def test_files_without_numbers_are_told_apart_by_their_paths(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of some network file systems."""
    known = Path.stat

    def unnumbered(path: Path, **asked: bool) -> os.stat_result:
        told = known(path, **asked)
        return os.stat_result((told.st_mode, 0, *tuple(told)[2:]))

    monkeypatch.setattr(Path, "stat", unnumbered)
    load = f"imagefolder:{folder}"
    assert len(load_data(load, image_size=SIDE).test) == 6
    (folder / "test" / "ant" / "again.png").symlink_to(folder / "train" / "ant" / "00.png")
    with pytest.raises(DataError, match="are one file"):
        load_data(load, image_size=SIDE)


def test_a_test_folder_that_is_the_training_folder_is_refused(tmp_path: Path) -> None:
    for i in range(4):
        save(tmp_path / "train" / "ant" / f"{i}.png", plain(i))
    (tmp_path / "test").symlink_to(tmp_path / "train", target_is_directory=True)
    with pytest.raises(DataError, match="are one file: give every split images of its own"):
        load_data(f"imagefolder:{tmp_path}", image_size=SIDE)


def test_copies_of_training_images_are_told(folder: Path) -> None:
    for name in ("copy.png", "copy2.png"):
        save(folder / "test" / "ant" / name, plain(3))
    note = load_data(f"imagefolder:{folder}", image_size=SIDE).note
    # The images 0, 1, 2, 100, 101, 102 of the test split are training images, too.
    assert note == "8 of 8 images of the test split are in train or search, too"


def test_images_of_their_own_are_no_copies(tmp_path: Path) -> None:
    for part, value in (("train", 0), ("test", 50)):
        for i in range(5):
            save(tmp_path / part / "ant" / f"{i}.png", plain(value + i))
    assert load_data(f"imagefolder:{tmp_path}", image_size=SIDE).note == ""


def test_images_behind_links_to_folders_are_read_once(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    for i in range(5):
        save(elsewhere / f"{i}.png", plain(200 + i))
    (folder / "train" / "bee" / "more").symlink_to(elsewhere, target_is_directory=True)
    (elsewhere / "back").symlink_to(folder / "train" / "bee", target_is_directory=True)
    data = load_data(f"imagefolder:{folder}", image_size=SIDE)
    assert len(data.train) + len(data.search) == 20 + 5


def test_a_link_that_leads_nowhere_is_named(folder: Path) -> None:
    for name in ("gone.png", "gone"):
        link = folder / "test" / "bee" / name
        link.symlink_to(folder / "no")
        with pytest.raises(DataError, match=rf"{name}' leads nowhere: mend or remove the link"):
            load_data(f"imagefolder:{folder}", image_size=SIDE)
        link.unlink()


def test_a_file_that_is_twice_in_train_needs_a_search_folder(folder: Path) -> None:
    """As to sample a class more often: whether search would share it, the seed would decide."""
    (folder / "train" / "ant" / "again.png").symlink_to(folder / "train" / "ant" / "00.png")
    with pytest.raises(DataError, match=r"are one file, which a search split .*\(val/\)"):
        load_data(f"imagefolder:{folder}", image_size=SIDE)
    for name in ("ant", "bee"):
        save(folder / "val" / name / "0.png", plain(50 + 60 * (name == "bee")))
    data = load_data(f"imagefolder:{folder}", image_size=SIDE)
    assert len(data.train) == 21


def test_images_that_differ_in_a_corner_are_no_copies(tmp_path: Path) -> None:
    """Files of one size, 120,054 bytes, of which the middle alone is looked at first."""
    for part in ("train", "test"):
        for i in range(2):
            pixels = plain(0, 200, 200)
            pixels[0, 0] = 100 * (part == "test") + i
            save(tmp_path / part / "ant" / f"{i}.bmp", pixels)
    load = f"imagefolder:{tmp_path}"
    assert load_data(load, image_size=SIDE).note == ""
    save(tmp_path / "test" / "ant" / "1.bmp", plain(0, 200, 200))
    note = load_data(load, image_size=SIDE).note
    assert note == "1 of 2 images of the test split are in train or search, too"
