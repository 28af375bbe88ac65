"""Ranges, their low ends and the lock file say the same of every package."""

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]


def pins(file: str) -> dict[str, Version]:
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    found = (line.split(";")[0].strip().partition("==") for line in lines if "==" in line)
    return {name.lower(): Version(version) for name, _, version in found}


def ranges() -> dict[str, Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [one for part in project["optional-dependencies"].values() for one in part]
    found = (Requirement(text) for text in (*project["dependencies"], *extras))
    return {one.name.lower(): one for one in found}


def tools() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return {Requirement(one).name.lower() for one in project["optional-dependencies"]["dev"]}


def test_the_low_end_of_every_range_is_tested_and_no_other() -> None:
    used = {name: one for name, one in ranges().items() if name not in tools()}
    lowest = {}
    for name, one in used.items():
        (bound,) = one.specifier
        assert bound.operator == ">=", name
        lowest[name] = Version(bound.version)
    assert lowest == pins("requirements.lowest")


@pytest.mark.parametrize("name", sorted(ranges()))
def test_what_is_locked_lies_in_its_range(name: str) -> None:
    locked = pins("requirements.lock").get(name)
    if name in ("timm", "torchvision"):
        assert locked is None  # neither imports with the lock's torch
    else:
        assert locked is not None
        assert locked in ranges()[name].specifier
