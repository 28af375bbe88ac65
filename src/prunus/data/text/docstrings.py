"""The embedded set of texts: docstrings of two packages that Prunus itself needs, told apart.

SciPy writes for scientists (``scipy.stats``, ``scipy.signal``, ``scipy.special``, ...), scikit-learn for
people who train models: related fields and one house style (numpydoc), so that words alone do not give
the class away. Names of packages are masked, and every docstring is cut to its first paragraphs.
"""

import importlib.util
import inspect
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from prunus.data.text.labelled import LabelledTexts
from prunus.errors import DataError

PACKAGES = ("scipy", "sklearn")
_PER_PACKAGE = 1500
_QUOTES = '"' * 3
_HEAD = re.compile(r"^\s*(?:def|class) (\w+)", re.MULTILINE)
_HEAD_CHARACTERS = 2000
_LEAST_WORDS, _MOST_WORDS = 8, 60
_NAMES = re.compile(
    r"\w*(?:scipy|sklearn|scikit(?:[-_ ]*learn)?)\w*|\b(?:numpy|np|sp|stats|signal|estimators?)\b",
    re.IGNORECASE,
)
_SKIPPED = {"tests", "test", "_test", "externals", "_external", "conftest.py", "benchmarks"}
_SECTION = re.compile(r"\n\s*(Parameters|Returns|Attributes|Examples|Notes|See Also|References)\n")
_MARKUP = re.compile(r"[`*\\:|<>]+|\.\. \w+|-{3,}|={3,}")


@lru_cache(maxsize=1)
def docstrings() -> LabelledTexts:
    """Docstrings of public functions, classes and methods; class by package, as in ``PACKAGES``.

    Read from the sources, nothing is imported. The same versions of the packages give the
    same texts in the same order.

    Raises:
        DataError: A package's sources are not there.
    """
    texts: list[str] = []
    labels: list[str] = []
    seen: set[str] = set()
    for package in PACKAGES:
        found = []
        for text in _of_package(package):
            if text not in seen:
                seen.add(text)
                found.append(text)
        # Spread over the whole package, not its first folders alone.
        step = max(1.0, len(found) / _PER_PACKAGE)
        chosen = [found[int(i * step)] for i in range(min(_PER_PACKAGE, len(found)))]
        texts += chosen
        labels += [package] * len(chosen)
    return LabelledTexts(tuple(texts), tuple(labels))


def _of_package(package: str) -> Iterator[str]:
    spec = importlib.util.find_spec(package)
    places = None if spec is None else spec.submodule_search_locations
    if not places:
        raise DataError(
            f"data 'docstrings' needs the sources of {package}, which are not installed"
        )
    root = Path(next(iter(places)))
    for file in sorted(root.rglob("*.py")):
        if _SKIPPED.isdisjoint(file.relative_to(root).parts):
            for docstring in _of_source(file.read_text(encoding="utf-8", errors="replace")):
                words = _plain(docstring).split()
                if len(words) >= _LEAST_WORDS:
                    yield " ".join(words[:_MOST_WORDS])


def _of_source(source: str) -> Iterator[str]:
    """Docstrings of public functions and classes: what follows the colon of a head.

    Found by their quotes: parsing all of both packages would take ten times as long.
    """
    parts = source.split(_QUOTES)
    for before, content in zip(parts[::2], parts[1::2], strict=False):
        head = before.rstrip().removesuffix("r").rstrip()
        heads = _HEAD.findall(before[-_HEAD_CHARACTERS:])
        if head.endswith(":") and heads and not heads[-1].startswith("_"):
            yield inspect.cleandoc(content)


def _plain(docstring: str) -> str:
    """The description before the sections, without markup and without names of packages."""
    text = _SECTION.split(docstring, maxsplit=1)[0]
    return _NAMES.sub("it", _MARKUP.sub(" ", text))
