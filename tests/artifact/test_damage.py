"""Artifacts that are damaged or foreign, and places that cannot be used: refused by name, nothing lost."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from prunus.artifact import load, save
from prunus.errors import InputError, PlanMismatchError
from prunus.records import Source
from tests.artifact.networks import cut_tiny, images

# --- files that are missing, damaged or foreign -------------------------------------------------


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flip_last_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("artifact.json", Path.unlink, "holds no artifact.json"),
        ("plan-0.json", Path.unlink, r"cannot read .*plan-0\.json: No such file"),
        ("model.safetensors", Path.unlink, r"cannot read .*model\.safetensors: No such file"),
        ("artifact.json", _truncate, r"artifact\.json is not a valid Manifest"),
        ("plan-0.json", _truncate, r"plan-0\.json is not a valid Plan"),
        ("record.json", _truncate, r"record\.json is not a valid RunRecord"),
        ("model.safetensors", _truncate, r"model\.safetensors is damaged .*; save the artifact"),
        ("model.safetensors", _flip_last_byte, r"is not the file that was saved .*SHA-256"),
    ],
)
def test_damage_is_named(
    saved: Path, name: str, damage: Callable[[Path], None], message: str
) -> None:
    damage(saved / name)
    with pytest.raises(InputError, match=message) as raised:
        load(saved)
    assert "\n" not in str(raised.value)


def _edit_manifest(folder: Path, **changes: Any) -> None:
    path = folder / "artifact.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_newer_version_is_refused(saved: Path) -> None:
    _edit_manifest(saved, version=3, something_new=True)
    with pytest.raises(InputError, match=r"version 3 is newer than 2.*upgrade prunus"):
        load(saved)


def test_a_plan_outside_the_folder_is_refused(saved: Path) -> None:
    _edit_manifest(saved, plans=["../plan-0.json"])
    with pytest.raises(InputError, match=r"'\.\./plan-0\.json' is not of the form"):
        load(saved)


def test_a_tie_to_nothing_is_refused(saved: Path) -> None:
    _edit_manifest(saved, ties={"conv.weight": "nowhere"})
    with pytest.raises(InputError, match=r"holds no 'nowhere', which 'conv\.weight' shares"):
        load(saved)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"folder='.*nothing' does not exist"):
        load(tmp_path / "nothing")


def test_a_missing_constructor_is_named(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "net.py").unlink()
    with pytest.raises(InputError, match=re.escape(str(tmp_path / "net.py"))):
        load(saved)


def test_a_recipe_that_is_no_json_leaves_nothing(tmp_path: Path, source: Source) -> None:
    with pytest.raises(InputError, match="is not JSON"):
        save(tmp_path / "a", cut_tiny(source), source=source, recipe={"x": object()})
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "__pycache__") == ["net.py"]


# --- the place ----------------------------------------------------------------------------------


def test_an_artifact_is_replaced_whole(saved: Path, source: Source) -> None:
    network = cut_tiny(source)
    save(saved, network, source=source)
    assert sorted(p.name for p in saved.iterdir()) == ["artifact.json", "model.safetensors"]
    assert torch.equal(load(saved)(images(2)), network(images(2)))
    assert not list(saved.parent.glob(".artifact.*"))


def test_what_a_killed_save_left_is_no_obstacle(saved: Path, source: Source) -> None:
    """In a container, numbers of processes come again."""
    left = saved.parent / f".artifact.old-{os.getpid()}"
    left.mkdir()
    (left / "model.safetensors").touch()
    network = cut_tiny(source)
    save(saved, network, source=source)
    assert torch.equal(load(saved)(images(2)), network(images(2)))
    assert not list(saved.parent.glob(".artifact.*"))


def test_a_failed_save_keeps_the_old_artifact(saved: Path, source: Source) -> None:
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    with pytest.raises(PlanMismatchError):
        save(saved, cut_tiny(source), source=source.model_copy(update={"arguments": {"width": 5}}))
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
    assert not list(saved.parent.glob(".artifact.*"))


@pytest.mark.parametrize("beside", [True, False], ids=["beside an artifact", "alone"])
def test_a_folder_with_other_files_is_refused_and_kept(
    saved: Path, tmp_path: Path, source: Source, *, beside: bool
) -> None:
    folder = saved if beside else tmp_path / "mine"
    folder.mkdir(exist_ok=True)
    (folder / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match=r"holds 'thesis\.txt'.*name a new or empty folder"):
        save(folder, cut_tiny(source), source=source)
    assert (folder / "thesis.txt").read_text() == "years of work"


def test_an_empty_folder_and_missing_parents_are_fine(tmp_path: Path, source: Source) -> None:
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "deep" / "er"):
        save(folder, cut_tiny(source), source=source)
        assert load(folder)(images(1)).shape == (1, 3)


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, source: Source) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match=r"folder='.*file.*'"):
            save(folder, cut_tiny(source), source=source)
