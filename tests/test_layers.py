"""The layers of the house hold, and the tools that watch over it bite."""

import subprocess
import sys
from pathlib import Path

import pytest
from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports

ROOT = Path(__file__).parents[1]


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, cwd=ROOT, check=False
    )


def test_imports_point_down(capsys: pytest.CaptureFixture[str]) -> None:
    status = lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True)
    assert status == EXIT_STATUS_SUCCESS, capsys.readouterr().out


@pytest.mark.parametrize("module", ["errors", "plan", "progress", "records", "report"])
def test_works_without_torch(module: str) -> None:
    """Import-linter sees declared imports; the interpreter also sees those of the parent package."""
    done = _run("-c", f"import sys; sys.modules['torch'] = None; import prunus.{module}")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\n" * 500, ""),
        ("x = 1\n" * 501, "m.py:1: module has 501 lines, budget 500"),
        ("\ndef f():\n" + "    x = 1\n" * 59, ""),
        ("\ndef f():\n" + "    x = 1\n" * 60, "m.py:2: f has 61 lines, budget 60"),
    ],
    ids=["module fits", "module", "function fits", "function"],
)
def test_the_size_budget_bites(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "m.py").write_text(text, encoding="utf-8")
    done = _run("tools/size_budget.py", str(tmp_path))
    assert done.returncode == (1 if message else 0)
    assert message in done.stdout


def test_the_modules_of_this_project_fit_the_size_budget() -> None:
    done = _run("tools/size_budget.py")
    assert done.returncode == 0, done.stdout
