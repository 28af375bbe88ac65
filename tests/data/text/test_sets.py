"""The embedded texts, and data sets of Hugging Face from a folder."""

import time
from pathlib import Path

import pytest

from prunus.data import TextOptions, load_data
from prunus.data.text.docstrings import docstrings
from prunus.errors import DataError, InputError
from tests.data.text.makers import rows, store_of, write_csv


def test_the_embedded_texts_are_the_same_each_time_and_read_in_seconds() -> None:
    begun = time.process_time()
    read = docstrings.__wrapped__()
    assert time.process_time() - begun < 5
    assert read == docstrings()
    assert {len(text.split()) > 60 for text in read.texts} == {False}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty data set; what is unpacked of it stays in the folder of the test."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    folder = tmp_path / "set"
    folder.mkdir()
    return folder


def test_a_test_part_whose_classes_are_kept_back_is_passed_over(hub: Path) -> None:
    numbered = [(text, str(int(label == "pos"))) for text, label in rows()]
    write_csv(hub / "train.csv", numbered)
    write_csv(hub / "test.csv", [(f"secret {i}", "-1") for i in range(5)])
    write_csv(hub / "validation.csv", [(f"open {i}", str(i % 2)) for i in range(6)])
    data = load_data(f"hfdata:{hub}")
    assert store_of(data.test).texts == tuple(f"open {i}" for i in range(6))
    with pytest.raises(
        InputError, match=r"test_fraction=0\.3: the test texts are those of hfdata:"
    ):
        load_data(f"hfdata:{hub}", text=TextOptions(test_fraction=0.3))


def test_a_data_set_without_a_test_part_is_divided(hub: Path) -> None:
    write_csv(hub / "train.csv")
    data = load_data(f"hfdata:{hub}")
    assert (len(data.train), len(data.search), len(data.test)) == (26, 6, 8)


def test_a_data_set_without_training_texts_is_refused(hub: Path) -> None:
    write_csv(hub / "test.csv")
    with pytest.raises(DataError, match="has no split 'train', but test"):
        load_data(f"hfdata:{hub}")
