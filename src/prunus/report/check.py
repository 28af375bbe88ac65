"""What must hold before runs may stand in one table. No torch."""

from collections.abc import Mapping

from prunus.errors import InputError
from prunus.records import Comparison, RunRecord
from prunus.report.formats import printable


def check_comparison(comparison: Comparison) -> None:
    """Refuse runs that cannot stand in one table.

    Raises:
        InputError: No runs; different networks, data sets, numbers of test samples, dense costs or
            metrics; a seed twice; or more than one look at the test split for a number.
    """
    if not comparison.runs:
        raise InputError(
            f"comparison '{printable(comparison.title)}' has no runs; add at least one"
        )
    first, seen = comparison.runs[0], set()
    tested = _tested(first)
    for run in comparison.runs:
        name = f"run '{printable(run.method)}' (seed {run.seed})"
        mine = (run.source.model, run.source.arguments, run.data)
        if mine != (first.source.model, first.source.arguments, first.data):
            raise InputError(
                f"{name} is for {_subject(run)}, the first run for {_subject(first)}; "
                "compare runs on the same network and data"
            )
        odd = _tested(run) - tested
        if odd and tested:
            raise InputError(
                f"{name} is tested on {min(odd)} samples, runs before it on {min(tested)}; compare runs "
                "on the same data"
            )
        tested |= odd
        for what in ("macs", "params"):
            cost, other = getattr(run.dense_cost, what), getattr(first.dense_cost, what)
            if cost != other:
                raise InputError(
                    f"{name} has {cost} dense {what}, the first run {other}; "
                    "compare runs on the same network"
                )
        key = (run.method, target_text(run.target), run.seed)
        if key in seen:
            raise InputError(
                f"{name} appears twice at {key[1] or 'no target'}; remove one, or give different "
                "recipes different method names"
            )
        seen.add(key)
        _check_scores(run, name)
    metrics = sorted({score.metric for run in comparison.runs for score in run.scores})
    if len(metrics) > 1:
        raise InputError(f"runs hold the metrics {metrics}; compare runs with one metric")


def target_text(target: Mapping[str, float]) -> str:
    """A target as text.

    >>> target_text({"macs": 0.5})
    'macs=0.5'
    """
    return ", ".join(f"{name}={_number(value)}" for name, value in sorted(target.items()))


def _number(value: float) -> str:
    """Whole numbers in full: six digits of 20,000,049 are those of another target."""
    return str(int(value)) if value == int(value) else f"{value:g}"


def _tested(run: RunRecord) -> set[int]:
    """How many samples it was tested on."""
    return {score.samples for score in run.scores if score.split == "test"}


def _subject(run: RunRecord) -> str:
    return printable(f"{run.source.model} {run.source.arguments or ''} on {run.data}")


def _check_scores(run: RunRecord, name: str) -> None:
    # The record refuses this, too, but a copy with changed fields is not validated again.
    looks = dict(run.test_evaluations)
    for score in run.scores:
        if score.split == "test":
            same = sum(s.split == "test" and s.stage == score.stage for s in run.scores)
            looks[score.stage] = max(same, looks.get(score.stage, 0))
    worn = {stage: n for stage, n in sorted(looks.items()) if n > 1}
    if worn:
        raise InputError(
            f"{name} looked at the test split more than once: {worn}; run it again and report "
            "each number's only look"
        )
