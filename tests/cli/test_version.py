"""The version stands alone: no command is needed beside it."""

from importlib.metadata import version

from tests.cli.runner import run


def test_the_version_is_printed() -> None:
    assert run("--version") == (0, f"prunus {version('prunus')}\n", "")
