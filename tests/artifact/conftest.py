"""An artifact of a tiny network in a user's file."""

from pathlib import Path

import pytest

from prunus.artifact import save
from prunus.records import Source
from tests.artifact.networks import KEEP, cut_tiny, tiny_plan, tiny_record, write_file


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return Source(model=f"{write_file(tmp_path)}:factory", arguments={"width": 4})


@pytest.fixture
def saved(tmp_path: Path, source: Source) -> Path:
    """An artifact of one plan, with a record."""
    plan = tiny_plan(KEEP)
    folder = tmp_path / "artifact"
    save(
        folder,
        cut_tiny(source, plan),
        source=source,
        plans=[plan],
        recipe={"steps": [{"method": "hand"}]},
        record=tiny_record(source),
    )
    return folder
