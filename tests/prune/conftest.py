"""A front that was searched for once, and its file."""

from pathlib import Path

import pytest

from prunus.method import Decision
from tests.prune.fronts import front_of, search


@pytest.fixture(scope="session")
def found() -> Decision:
    return search()


@pytest.fixture(scope="session")
def saved(found: Decision, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("front") / "front.json"
    front_of(found).save(path)
    return path
