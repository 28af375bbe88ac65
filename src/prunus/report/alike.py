"""Whether runs that a report sets side by side were done alike, by the recipes that they hold. No torch."""

from collections.abc import Mapping, Sequence
from typing import Any

from prunus.changed import flatten, without_idle
from prunus.records import RunRecord
from prunus.report.formats import NAMED, printable

_DONE = ("steps", "ignore", "min_units", "round_to")
"""What a recipe does; the rest says to what, and with which seed."""
_PICKED = "layout"
"""A trial run picks it on each machine, and it moves no more than the rounding."""
_FRESH = "scratch"
"""Its network has a training of its own length, which stands in for the dense network's, too."""
_AFTER = ("recalibrate", "train")
_TOLD = 3
"""Most settings that a remark tells."""


def unlike_seeds(runs: Sequence[RunRecord]) -> str:
    """What differs between the recipes of a row's runs beside the seed; empty where they agree.

    ``compare`` refuses such seeds, but did not always, and records may be put together otherwise.
    """
    recipes = {f"seed {run.seed}": run.recipe for run in runs}
    return _told(
        {seed: {key: recipe.get(key) for key in _DONE} for seed, recipe in recipes.items()}
    )


def unlike_trainings(runs: Mapping[str, RunRecord]) -> str:
    """What differs between the trainings of rows that are named by a method alone.

    Such rows are read as methods that were given the same: a lead may be that of the training.

    Args:
        runs: One run of each row of a target, by the label of the row.
    """
    found = {label: _training(run) for label, run in runs.items()}
    plain = {label: training for label, training in found.items() if training is not None}
    trained = {label: training for label, training in plain.items() if training}
    bare = [label for label in plain if label not in trained]
    if trained and bare:
        return f"{_listed(list(trained))} had one, {_listed(bare)} had none"
    return _told(trained)


def _training(run: RunRecord) -> Mapping[str, Any] | None:
    """Settings of the training behind a cut by the method that names the row; empty: there is none.

    None: the row is another, and its name promises nothing.
    """
    steps = run.recipe.get("steps")
    if run.method == _FRESH or not isinstance(steps, list | tuple):
        return None
    pairs = [pair for step in steps if isinstance(step, Mapping) for pair in step.items()]
    named = {name: settings for name, settings in pairs if isinstance(settings, Mapping)}
    expected = ["prune", *(name for name in _AFTER if name in named)]
    cut = named.get("prune", {})
    if [name for name, _ in pairs] != expected or cut.get("method") != run.method:
        return None
    train = named.get("train")
    return without_idle(dict(flatten(train))) if train else {}


def _told(settings: Mapping[str, Mapping[str, Any]]) -> str:
    """Settings that are not the same for all, each with who has which value.

    Args:
        settings: By whose they are.
    """
    flat = {who: without_idle(dict(flatten(its))) for who, its in settings.items()}
    told = []
    for name in dict.fromkeys(name for its in flat.values() for name in its):
        having: dict[str, list[str]] = {}
        for who, its in flat.items():
            having.setdefault(its.get(name, "absent") or "''", []).append(who)
        if len(having) > 1 and not name.endswith(_PICKED):
            values = (f"{value} for {_listed(those)}" for value, those in having.items())
            told.append(printable(f"{name} is {', '.join(values)}"))
    more = [f"and {len(told) - _TOLD} more"] if len(told) > _TOLD else []
    return "; ".join([*told[:_TOLD], *more])


def _listed(names: Sequence[str]) -> str:
    """Names, the first of them where they are many."""
    more = [f"{len(names) - NAMED} more"] if len(names) > NAMED else []
    return " and ".join([*names[:NAMED], *more])
