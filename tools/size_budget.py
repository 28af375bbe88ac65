"""Refuse modules over 500 lines and functions over 60 lines (docstring apart) in ``src``."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

MODULE_LINES = 500
FUNCTION_LINES = 60


def docstring_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function's docstring: a budget on them would be a tax on saying units and errors."""
    if ast.get_docstring(node) is None:
        return 0
    text = node.body[0]
    return (text.end_lineno or text.lineno) - text.lineno + 1


def over_budget(path: Path) -> Iterator[str]:
    """Yield one ``file:line: message`` for each breach in a module."""
    text = path.read_text(encoding="utf-8")
    lines = len(text.splitlines())
    if lines > MODULE_LINES:
        yield f"{path}:1: module has {lines} lines, budget {MODULE_LINES}"
    for node in ast.walk(ast.parse(text, filename=str(path))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1 - docstring_lines(node)
            if length > FUNCTION_LINES:
                yield (
                    f"{path}:{node.lineno}: {node.name} has {length} lines, budget {FUNCTION_LINES}"
                )


def main(roots: list[str]) -> int:
    """Check every module below the roots; 1 where one is over budget, or where none was found."""
    modules = sorted(path for root in roots for path in Path(root).rglob("*.py"))
    breaches = [message for path in modules for message in over_budget(path)]
    for message in breaches:
        print(message)
    if not modules:
        print(f"no Python module below {', '.join(roots)}")
    return int(bool(breaches) or not modules)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or ["src"]))
