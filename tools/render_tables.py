"""Write the tables and figures of the pages from the records of benchmarks and studies; ``--check`` only compares.

The reference of recipes is written from the code.

A table stands between ``<!-- table: NAME -->`` and ``<!-- end -->``; nobody types a figure there.
"""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import benchmark_tables
import recipe_tables
import study_figures
import study_tables
import text_tables

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
_MARKED = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


PLACES: dict[str, tuple[str, Callable[[Any], str]]] = {
    **benchmark_tables.TABLES,
    **study_tables.TABLES,
    **text_tables.TABLES,
}
PAGES = {
    ROOT / "README.md": RESULTS,
    ROOT / "benchmarks" / "README.md": RESULTS,
    ROOT / "docs" / "recipes.md": RESULTS,
    ROOT / "studies" / "kuzmin2024" / "README.md": ROOT / "studies" / "kuzmin2024" / "results",
    ROOT / "studies" / "torkunova2023" / "README.md": ROOT
    / "studies"
    / "torkunova2023"
    / "results",
}
"""Pages with tables, and where the records lie that they are drawn from."""


def rendered(text: str, results: Path) -> str:
    """A page with every marked table drawn anew."""

    def table(found: re.Match[str]) -> str:
        if found[2] in recipe_tables.TABLES:
            return f"{found[1]}{recipe_tables.TABLES[found[2]]()}\n{found[3]}"
        record, draw = PLACES[found[2]]
        path = results / f"{record}.json"
        rows = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
        body = draw(rows) if rows else "Not measured yet."
        return f"{found[1]}{body}\n{found[3]}"

    return _MARKED.sub(table, text)


def main(arguments: list[str]) -> int:
    """Draw tables and figures; with ``--check``, 1 where one is not what its records say."""
    stale = 0
    for page, results in PAGES.items():
        text = page.read_text(encoding="utf-8")
        fresh = rendered(text, results)
        if fresh != text:
            stale += 1
            if "--check" in arguments:
                print(f"{page}: tables differ from the records; run python tools/render_tables.py")
            else:
                page.write_text(fresh, encoding="utf-8")
    for figure, record in study_figures.FIGURES.items():
        rows = json.loads(record.read_text(encoding="utf-8"))
        if study_figures.description_in(figure) != study_figures.described(rows):
            stale += 1
            if "--check" in arguments:
                print(f"{figure}: not of its records; run python tools/render_tables.py")
            else:
                study_figures.draw(rows, figure)
    return int(bool(stale) and "--check" in arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
