"""A folder of images, of two classes in two parts."""

from pathlib import Path

import pytest

from tests.data.image_makers import plain, save


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for part, n in (("train", 10), ("test", 3)):
        for label, name in enumerate(("ant", "bee")):
            for i in range(n):
                save(tmp_path / part / name / f"{i:02d}.png", plain(100 * label + i))
    (tmp_path / "train" / "ant" / "notes.txt").write_text("not an image")
    (tmp_path / "train" / ".cache").mkdir()
    return tmp_path
