"""``--image-size``: of image folders alone, part of what a run is, and kept in its record."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from prunus.cli import show
from prunus.cli.given import read_image_size
from prunus.errors import InputError
from tests.cli.runner import ends, run

NETWORK = """
from torch import nn

def make():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2),
    )
"""


def test_two_sizes_are_one_too_many(photos: Path) -> None:
    given = ["measure", "--model", "net.py:make", "--data", f"imagefolder:{photos.name}@24"]
    ends(
        [*given, "--image-size", "32"], "--image-size 32 is given, and --data imagefolder:photos@24"
    )


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of images with a network for it beside; its name is short enough for messages."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NETWORK, encoding="utf-8")
    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        for name in ("ant", "bee"):
            folder = tmp_path / "photos" / part / name
            folder.mkdir(parents=True)
            for i in range(5):
                pixels = rng.integers(0, 255, (20, 30, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return Path("photos")


@pytest.fixture
def network(photos: Path) -> list[str]:
    return ["--model", "net.py:make"]


@pytest.fixture
def compress(photos: Path, network: list[str]) -> list[str]:
    data = ["--data", f"imagefolder:{photos}"]
    return ["compress", *network, *data, "--method", "l1", "--target", "macs=0.5", "--no-latency"]


def test_a_run_is_of_one_image_size_and_resumes_with_it(
    photos: Path, compress: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    sized = [*compress, "--out", str(out), "--image-size"]
    assert run(*sized, "16,24")[0] == 0
    record = show.read_records(out)[0].runs[0]
    assert record.data == record.recipe["data"] == f"imagefolder:{photos}@16x24"
    # 27 * 8 weights on 14 * 22 positions, 72 * 8 on 12 * 20, 8 * 2 once
    assert record.dense_cost.macs == 216 * 308 + 576 * 240 + 16
    assert run(*sized, "16x24", "--resume")[0] == 0
    ends([*sized, "16", "--resume"], "data was imagefolder:photos@16x24 and is ")
    ends([*compress, "--out", str(out), "--resume"], "data was imagefolder:photos@16x24 and is ")


def test_a_recipe_names_a_size_and_the_command_line_another(
    photos: Path, network: list[str], tmp_path: Path
) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(
        f"data: imagefolder:{photos}@16\nsteps:\n  - prune: {{method: l1, target: macs=0.5}}\n",
        encoding="utf-8",
    )
    command = ["compress", *network, "--recipe", str(file), "--no-latency"]
    for more, named in (([], "@16"), (["--image-size", "20"], "@20")):
        out = tmp_path / f"run{named}"
        assert run(*command, *more, "--out", out)[0] == 0
        assert show.read_records(out)[0].runs[0].data == f"imagefolder:{photos}{named}"


def test_every_command_that_takes_data_takes_it(
    photos: Path, network: list[str], tmp_path: Path
) -> None:
    data = ["--data", f"imagefolder:{photos}", "--image-size", "16"]
    code, screen, _ = run("measure", *network, *data, "--no-latency")
    assert code == 0
    assert f"{216 * 14 * 14 + 576 * 12 * 12 + 16:,}" in screen
    out = tmp_path / "trained"
    assert run("train", *network, *data, "--epochs", "1", "--out", out)[0] == 0
    training = json.loads((out / "training.json").read_text(encoding="utf-8"))
    assert training["data"] == f"imagefolder:{photos}@16"
    out = tmp_path / "compared"
    rows = ["--method", "l1", "--target", "macs=0.5", "--no-latency"]
    assert run("compare", *network, *data, *rows, "--out", out)[0] == 0
    assert show.read_records(out)[0].runs[0].data == f"imagefolder:{photos}@16"


def test_sizes_that_cannot_be_used(photos: Path, compress: list[str], network: list[str]) -> None:
    for wrong in ("0", "16,", "16,24,3", "-1", "big"):
        ends(
            [*compress, f"--image-size={wrong}"], f"--image-size '{wrong}' is not understood; write"
        )
    text = [*compress, "--image-size", "16"]
    text[text.index("--data") + 1] = "text:reviews.csv"
    ends(text, "--image-size 16: image_size is (16, 16), but 'text:reviews.csv' has a size of its")
    measure = ["measure", *network, "--shape", "3,16,16"]
    ends(
        [*measure, "--image-size", "16"], "--image-size 16 is given without --data; name the images"
    )
    ends([*measure, "--text", "max_length=8"], "--text 'max_length=8' is for --data")
    assert read_image_size("224") == (224, 224)
    with pytest.raises(InputError, match="--image-size"):
        read_image_size("")
