"""Run a command in this process, and check how a wrong one ends."""

from pathlib import Path

from typer.testing import CliRunner

from prunus.cli import app
from prunus.cli.app import USER_ERROR

RUNNER = CliRunner()


def run(*arguments: str | Path) -> tuple[int, str, str]:
    """Exit code, standard output and standard error."""
    done = RUNNER.invoke(app, list(map(str, arguments)), catch_exceptions=True)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.stdout, done.stderr


def ends(command: list[str], said: str) -> None:
    """Refused in one line that says so, with nothing computed or printed."""
    code, screen, log = run(*command)
    lines = [line for line in log.splitlines() if line.startswith("prunus: error: ")]
    assert code == USER_ERROR, log
    assert len(lines) == 1
    assert log.splitlines()[-1] == lines[0]
    assert said in lines[0]
    assert screen == ""
