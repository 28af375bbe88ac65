"""Phases of a record's history: what their steps count, and what is shown together. No torch.

A record's history names its phases freely. A phase is a training if its name says so or if it holds
a loss; every other phase is a search.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from prunus.records import HistoryPoint
from prunus.report.rows import Row

_TRAINING_NAMES = ("train", "fit", "fine", "distil", "retrain")
IMAGES = "images"
"""Value of a candidate: how many it was seen on before it was dropped; all, if it was not."""
COMPLETE = "complete"
"""Value of a candidate: 1 where it was seen on all images, 0 where it was dropped on the way."""
QUALITIES = ("fitness", "score", "top1", "f1", "reward", "value")
"""Values of a candidate of which more is better, where the search does not say what is best."""
MEAN, DOTS = "mean of the parents", "best of the generation"
_FITNESS = ("best_fitness", MEAN, DOTS)
"""Values of a generation in one unit: they are drawn together."""
CANDIDATE, _GENERATION, STEP, _ACTION = (
    "candidate, in the order of the search",
    "generation",
    "step of the search",
    "step of the recipe",
)
_CLOCKS = {
    "search by generation": _GENERATION,
    "search front": _GENERATION,
    "search split after each step": _ACTION,
}
"""What the steps of a phase count, by its name; see ``clock_of`` for all others."""


@dataclass(frozen=True)
class View:
    """What is shown together: values over steps that count the same."""

    label: str
    keys: tuple[str, ...]
    clock: str


def phases(rows: Sequence[Row]) -> Iterator[tuple[Row, str, list[HistoryPoint]]]:
    """Every phase of every run, with a name that tells them apart."""
    for row in rows:
        for run in row.runs:
            for phase in dict.fromkeys(point.phase for point in run.history):
                points = [point for point in run.history if point.phase == phase]
                if run.front and clock_of(points) == CANDIDATE:
                    points = [_without_best(point) for point in points]
                yield row, f"{row.label}, seed {run.seed}, {phase}", points


def search_views(searches: Sequence[Sequence[HistoryPoint]]) -> list[View]:
    """What the menu offers: candidates first, then generations, then all other steps."""
    found: list[View] = []
    for clock in (CANDIDATE, _GENERATION, STEP, _ACTION):
        points = [p for search in searches if clock_of(search) == clock for p in search]
        keys = list(dict.fromkeys(key for p in points for key in p.values if key != COMPLETE))
        if len({p.values[IMAGES] for p in points if IMAGES in p.values}) == 1:
            keys.remove(IMAGES)  # the same for all: nothing to see
        if clock == _ACTION:
            members = {f"{key} on the search split": [key] for key in keys}
        elif clock == _GENERATION:
            together = [key for key in _FITNESS if key in keys]
            members = {"fitness by generation": together} if together else {}
            members |= {key: [key] for key in keys if key not in together}
        else:
            members = _members(keys, guess=clock == STEP)
        found += [View(label, tuple(those), clock) for label, those in members.items()]
    return found


def _members(keys: Sequence[str], *, guess: bool) -> dict[str, list[str]]:
    """Each best with the values it is the best of, then all others alone.

    Where asked to guess, a best without a name is of the values that are better when larger; so is
    one that is not recorded.
    """
    views: dict[str, list[str]] = {}
    left = [key for key in keys if not is_best(key)]
    for key in keys:
        if is_best(key) and _best_of(key) in left:
            views[f"{_best_of(key)}, best so far"] = [key, _best_of(key)]
            left.remove(_best_of(key))
    lone = [key for key in keys if is_best(key) and not any(key in v for v in views.values())]
    # A best that names its quantity is not the best of another: a loss is not drawn with a top-1.
    unnamed = any(not _best_of(key) for key in lone)
    join = guess and (unnamed or not (views or lone))
    qualities = [key for key in left if key in QUALITIES] if join else []
    if lone or qualities:
        views["best so far"] = [*lone, *qualities]
    return views | {key: [key] for key in left if key not in qualities}


def _without_best(point: HistoryPoint) -> HistoryPoint:
    """Where a front is sought, candidates cost anything: the best of them is only the costliest."""
    values = {key: value for key, value in point.values.items() if not is_best(key)}
    return point.model_copy(update={"values": values})


def clock_of(points: Sequence[HistoryPoint]) -> str:
    """What the steps of a phase count."""
    if any(IMAGES in point.values for point in points):
        return CANDIDATE
    return _CLOCKS.get(points[0].phase, STEP)


def is_training(points: Sequence[HistoryPoint]) -> bool:
    """Whether a phase is a training; every other phase is a search."""
    phase = points[0].phase.lower()
    if phase.startswith(_TRAINING_NAMES):
        return True
    keys = {key for point in points for key in point.values}
    searches = phase.startswith("search") or IMAGES in keys or any(is_best(key) for key in keys)
    return not searches and any("loss" in key for key in keys)


def is_best(key: str) -> bool:
    """Whether a value is the best so far; the best of a generation may be worse than the last."""
    return key.startswith("best") and key != DOTS


def _best_of(key: str) -> str:
    """The value that a best is the best of: ``loss`` for ``best_loss``; empty for ``best`` alone."""
    return key.removeprefix("best").strip("_ ")
