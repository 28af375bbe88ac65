"""What the documents promise: the example runs, the tables are the records', the paths exist."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "README.md"]
PAGES += sorted([*(ROOT / "docs").rglob("*.md"), *(ROOT / "studies").rglob("*.md")])
_PATH = re.compile(r"`((?:src|tests|docs|benchmarks|tools|studies)/[\w./-]+)`")
_LINK = re.compile(r"\]\((?!https?:)([^)#]+)")


def test_the_readmes_example_runs_and_meets_its_budget() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    example = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0]
    scope: dict[str, object] = {}
    exec(compile(example, "README.md", "exec"), scope)  # noqa: S102 - our own page
    record = scope["result"].record  # type: ignore[attr-defined]
    assert 0.49 * record.dense_cost.macs <= record.cost.macs <= 0.5 * record.dense_cost.macs
    assert all(certificate.passed for certificate in record.certificates)
    assert len(example.strip().splitlines()) <= 12


def test_tables_are_drawn_from_the_records() -> None:
    tool = ROOT / "tools" / "render_tables.py"
    done = subprocess.run(
        [sys.executable, tool, "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_path_a_page_names_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = [ROOT / path for path in _PATH.findall(text)]
    named += [page.parent / path for path in _LINK.findall(text)]
    missing = [str(path) for path in named if not path.exists()]
    assert not missing


def test_every_method_has_a_card() -> None:
    import prunus.prune  # noqa: F401 - registers the methods
    from prunus.method import method_names

    cards = {path.stem for path in (ROOT / "docs" / "methods").glob("*.md")}
    assert set(method_names()) <= cards


def test_the_recipe_in_getting_started_is_one() -> None:
    import yaml

    from prunus.recipe import make_recipe

    text = (ROOT / "docs" / "getting-started.md").read_text(encoding="utf-8")
    recipe = make_recipe(yaml.safe_load(re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)[0]))
    assert [step.step for step in recipe.steps] == ["prune", "recalibrate", "train"]
