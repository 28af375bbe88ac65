"""A search's candidates as points of a record's history."""

from collections.abc import Sequence

from prunus.candidates import Scored, ranked
from prunus.records import HistoryPoint


def candidate_history(
    phase: str, scored: Sequence[Scored], fitness: str, seconds: Sequence[float]
) -> tuple[HistoryPoint, ...]:
    """A point per candidate: its scores, and that of the one that is best up to there.

    Those dropped earlier are ranked after those seen on more images, so that the best so far can
    get worse in numbers (not in rank) where it was seen on other images than the last best.

    Args:
        phase: Name of the search.
        scored: In the order they were proposed.
        fitness: What made them good, as for ``Scoring``.
        seconds: Since the search began, when each was known.
    """
    quantity = "top1" if fitness == "accuracy" else fitness
    points = []
    best = scored[0]
    for step, (found, at) in enumerate(zip(scored, seconds, strict=True)):
        best = ranked((best, found))[0]
        values = {
            "kl": found.kl,
            "loss": found.loss,
            "top1": found.top1,
            "images": float(found.images),
            "complete": float(found.complete),
            f"best_{quantity}": getattr(best, quantity),
        }
        points.append(HistoryPoint(phase=phase, step=step, seconds=at, values=values))
    return tuple(points)
