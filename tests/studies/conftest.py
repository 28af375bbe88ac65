"""Study K on a small network, and study M, for all tests of their scripts."""

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from safetensors.torch import save_file

from prunus.data import load_data
from prunus.records import Source
from prunus.zoo import build
from tests.studies import torkunova

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "studies" / "kuzmin2024"


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ModuleType]:
    """The study on a small network, its results in a folder of the test."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(FOLDER))
    import paper
    import study

    weights = tmp_path / "weights.safetensors"
    save_file(build("digits_cnn").state_dict(), weights)
    source = Source(model="digits_cnn", weights=str(weights))
    monkeypatch.setitem(study.DENSE, "digits_cnn", source)
    monkeypatch.setitem(study.DENSE_EPOCHS, "digits_cnn", 1)
    monkeypatch.setitem(paper.PARAMS, "digits_cnn", (24_000, 12_000, 8_000, 5_000, 3_000))
    monkeypatch.setitem(paper.TOP1, "digits_cnn", (0.5,) * 5)
    monkeypatch.setitem(paper.SECONDS, "digits_cnn", (1.0,) * 5)
    monkeypatch.setitem(study.SCALES, "small", study.Scale(generations=1, images=64, epochs=1))
    monkeypatch.setattr(study, "POPULATION", 6)
    monkeypatch.setattr(study, "PARENTS", 2)
    monkeypatch.setattr(study, "data_of", lambda _: load_data("digits"))
    monkeypatch.setattr(study, "CELLS", tmp_path / "cells")
    monkeypatch.setattr(study, "SUMMARY", tmp_path / "summary.json")
    yield study
    for name in set(sys.modules) - before:
        if (FOLDER / f"{name}.py").exists():
            del sys.modules[name]


@pytest.fixture
def text_study(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """Study M, with the modules of its own that have the names of study K's."""
    own = ("bootstrap", "bound", "files", "paper", "sizes", "study", "summary", "text_tables")
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(torkunova.FOLDER))
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    for name in own:
        monkeypatch.delitem(sys.modules, name, raising=False)
    import study

    yield study
    for name in set(sys.modules) - before:
        if name in own:
            del sys.modules[name]
