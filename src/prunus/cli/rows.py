"""Recipe files as rows of a comparison, which decides network, data, seeds and trace for all rows."""

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from prunus.cli.given import Cut, Subject
from prunus.cli.source import data_name, make_source, text_options
from prunus.data import TextOptions
from prunus.errors import InputError
from prunus.recipe import Recipe, Step, load_recipe

_OPTIONS = {
    "model": "--model",
    "arguments": "--arguments",
    "weights": "--weights",
    "data": "--data",
    "text": "--text",
    "seed": "--seeds",
    "ignore": "--ignore",
    "min_units": "--min-units",
    "round_to": "--round-to",
}
"""Keys of a recipe that a comparison settles for all rows, and the options that do it."""


def recipe_rows(
    paths: Sequence[Path],
    taken: Collection[str],
    subject: Subject,
    cut: Cut,
    seeds: Sequence[int],
) -> dict[str, tuple[Step, ...]]:
    """The steps of each file by its name.

    Args:
        paths: Of recipes.
        taken: Names of the rows beside them.
        subject: As given.
        cut: As given.
        seeds: Of the comparison.

    Raises:
        InputError: A file cannot be read, has the name of another row, or says something of its own
            that holds for all rows.
    """
    found: dict[str, tuple[Step, ...]] = {}
    for path in paths:
        recipe = load_recipe(path)
        name = recipe.name or path.stem
        if name in taken or name in found:
            raise InputError(f"--recipe '{path}': the name '{name}' is taken; set its key name")
        for key, says, used in _differences(recipe, subject, cut, seeds):
            raise InputError(
                f"--recipe '{path}': its {key} is {says}, but all rows of a comparison share theirs, "
                f"which is {used}; give {_OPTIONS[key]}, or leave the key out"
            )
        found[name] = recipe.steps
    return found


def _differences(
    recipe: Recipe, subject: Subject, cut: Cut, seeds: Sequence[int]
) -> Iterator[tuple[str, str, str]]:
    """Keys that the file sets to something else than the comparison, with both values."""
    source = make_source(subject)
    used: dict[str, Any] = {
        "model": source.model,
        "arguments": source.arguments,
        "weights": source.weights,
        "data": data_name(subject),
        "text": text_options(subject) or TextOptions(),
        "seed": seeds,
        "ignore": cut.ignore,
        **cut.widths,
    }
    for key, value in used.items():
        says = getattr(recipe, key)
        if key not in recipe.model_fields_set or says is None or says == value:
            continue
        if key != "seed" or says not in seeds:
            yield key, _shown(says), _shown(value)


def _shown(value: Any) -> str:
    """A value as it is written on the command line, more or less."""
    if isinstance(value, TextOptions):
        value = value.model_dump(exclude_defaults=True)
    if isinstance(value, dict):
        return ", ".join(f"{name}={inner}" for name, inner in value.items()) or "the default"
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "nothing"
    return "missing" if value is None else str(value)
