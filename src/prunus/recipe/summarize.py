"""From the outcomes of a run's steps to its record."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from prunus.changed import told_change
from prunus.data import DataSplits
from prunus.graph import Choice, Trace
from prunus.meter import measure_cost
from prunus.method import method_class
from prunus.plan import BoolArray
from prunus.recipe.actions import lay_out, targets
from prunus.recipe.inputs import stated
from prunus.recipe.measure import (
    LatencyOptions,
    Look,
    Timed,
    accounted_cost,
    compare_latencies,
    environment,
)
from prunus.recipe.recipe import Recipe
from prunus.recipe.state import Outcome, State
from prunus.recipe.steps import Prune, Student
from prunus.recipe.subject import Subject
from prunus.records import (
    AT_CHANCE,
    UNTRAINED,
    Cost,
    Environment,
    FrontPoint,
    HistoryPoint,
    Latency,
    LayerWidth,
    RunRecord,
    Score,
)


@dataclass(frozen=True)
class Summary:
    """All that a record needs beside the networks.

    Attributes:
        name: Of the row in a report.
        recipe: As it was run.
        dense_look: At the dense network.
        dense_cost: Counted.
        dense_seconds: Of the dense measurement; no part of a method's time.
        outcomes: Of all steps.
        latency: How it is measured, if at all.
        device: Where everything ran.
        evaluated_before: Passes over the test split that the caller had made before the run.
    """

    name: str
    recipe: Recipe
    dense_look: Look
    dense_cost: Cost
    dense_seconds: float
    outcomes: tuple[Outcome, ...]
    latency: LatencyOptions | None
    device: str
    evaluated_before: int = 0


def make_record(summary: Summary, subject: Subject, dense: Trace, state: State) -> RunRecord:
    """Measure what is left to measure, and sum up the run."""
    looks = [summary.dense_look, *(o.look for o in summary.outcomes if o.look is not None)]
    dense_latency = latency = None
    notes = [subject.data.note] if subject.data.note else []
    if summary.evaluated_before:
        notes.append(
            f"the test split had been evaluated {summary.evaluated_before} times before this run"
        )
    notes += _finite_notes(summary.dense_look.score)
    notes += _chance_notes(summary.dense_look.score, subject.data)
    notes += [note for seen in looks for note in seen.notes]
    notes += [note for outcome in summary.outcomes for note in outcome.notes]
    deployed = next((o.deployed for o in summary.outcomes if o.deployed is not None), None)
    if summary.latency is None:
        notes.append("latency: switched off")
    elif deployed is not None:
        dense_latency, latency = deployed.dense_latency, deployed.latency
    else:
        dense_latency, latency = compare_latencies(
            Timed(subject.network, subject.inputs, subject.data),
            Timed(state.network, state.inputs, state.data),
            options=summary.latency,
            device=summary.device,
        )
    choice = kept_units(dense, state)
    cost = _final_cost(dense, choice, state)
    if deployed is not None:
        cost = cost.model_copy(update={"size_bytes": deployed.size_bytes})
    where = environment(summary.device)
    notes += _elsewhere_notes(summary.outcomes, where) + _fresh_notes(state)
    notes += _waiting_notes(where, latency)
    if subject.data.max_length is not None:
        notes.append(f"MACs and latency are of texts of {subject.data.max_length} tokens")
    return RunRecord(
        method=summary.name,
        null=_is_null(summary.recipe),
        source=subject.source,
        data=subject.data.name,
        seed=summary.recipe.seed,
        target=targets(lay_out(summary.recipe)),
        recipe=summary.recipe.model_dump(mode="json"),
        dense_cost=summary.dense_cost,
        cost=cost,
        dense_latency=dense_latency,
        latency=latency,
        scores=tuple(seen.score for seen in looks),
        certificates=tuple(o.certificate for o in summary.outcomes if o.certificate is not None),
        widths=_widths(dense, choice),
        history=tuple(point for outcome in summary.outcomes for point in _history(outcome)),
        front=_fronts(summary.outcomes),
        seconds=_seconds(summary),
        test_evaluations={seen.score.stage: seen.evaluations for seen in looks},
        search_seen_in_pretraining=_search_seen(summary.recipe, subject, state),
        plans=tuple(plan.digest for plan in state.plans),
        deployed=deployed,
        environment=where,
        notes=tuple(dict.fromkeys(notes)),
    )


def _fronts(outcomes: Sequence[Outcome]) -> tuple[FrontPoint, ...]:
    """Fronts of all searches of a run, each point with its search's number."""
    fronts = [outcome.front for outcome in outcomes if outcome.front]
    return tuple(
        point.model_copy(update={"search": number})
        for number, front in enumerate(fronts)
        for point in front
    )


def _finite_notes(dense: Score) -> list[str]:
    """A note where a single sample has spoiled a mean."""
    if dense.loss is None or math.isfinite(dense.loss):
        return []
    said = (
        f"the dense network's loss on the test split is {dense.loss}: some outputs are not finite"
    )
    return [f"{said}; look for samples that hold NaN or infinite values"]


def _waiting_notes(where: Environment, latency: Latency | None) -> list[str]:
    """A note where the caller's environment, not the network, makes PyTorch slow."""
    if latency is None or latency.device != "cpu" or latency.threads == 1:
        return []
    if where.waiting != "passive":
        return []
    said = (
        "OMP_WAIT_POLICY=PASSIVE lets idle threads sleep, which slows small operations of PyTorch"
    )
    return [f"latency: {said}; unset it to measure what they take"]


def _fresh_notes(state: State) -> list[str]:
    """A note where the fresh weights of the null baseline are what was judged."""
    if not state.fresh:
        return []
    said = f"{UNTRAINED}, and answers by chance: it is no null before it is"
    return [f"{said}; add a training after the cut (--epochs, or a step train)"]


def _elsewhere_notes(outcomes: Sequence[Outcome], where: Environment) -> list[str]:
    """Notes of steps that ended in another environment than the record tells: resumed since."""
    steps: dict[str, list[str]] = defaultdict(list)
    for outcome in outcomes:
        if outcome.environment is not None and outcome.environment != where:
            steps[told_change(_told(outcome.environment), _told(where))].append(outcome.path)
    return [
        f"{', '.join(paths)}: done in another environment, before the run was resumed: {change}"
        for change, paths in steps.items()
    ]


def _told(where: Environment) -> dict[str, object]:
    """What decides results and times comes first."""
    values = where.model_dump()
    first = {name: values[name] for name in ("cpu", "gpu", "commit", "dirty")}
    return {**first, **values.pop("versions"), **values}


def _chance_notes(dense: Score, data: DataSplits) -> list[str]:
    """A note where the dense network tells the classes no better than a guess would.

    Where one class is most of the samples, naming it always has a top-1 that a useful network may not
    reach; then it is for the others to say.
    """
    counts = data.test.labels.bincount(minlength=data.num_classes)
    share = float(counts.max()) / len(data.test)
    if dense.top1 is None or dense.top1 > share or _finds_classes(dense, counts):
        return []
    guess = f"always the most frequent class would be right for {share:.2%} of the test split"
    remedy = "train it, or train it longer (--train-epochs), or give its weights"
    return [f"{AT_CHANCE} a guess: top-1 {dense.top1:.2%}, and {guess}; {remedy}"]


def _is_null(recipe: Recipe) -> bool:
    """Whether a recipe cuts by null baselines alone, whatever its row is called."""
    steps = [action.step for action in lay_out(recipe)]
    methods = [method_class(step.method) for step in steps if isinstance(step, Prune)]
    return bool(methods) and all(method.null for method in methods)


def _finds_classes(dense: Score, counts: Tensor) -> bool:
    """Whether a network finds the classes better than one answer for all samples, or luck, would.

    Of two classes F1 is that of class 1: always naming it has a precision of its share ``p``, a recall
    of 1 and so an F1 of ``2 p / (1 + p)``. Of more the mean recall of one answer, and of dice, is one
    over the classes; a network has to have twice that.

    Args:
        dense: Its score on the test split.
        counts: Test samples of each class.
    """
    if len(counts) == 2:
        share = float(counts[1]) / float(counts.sum())
        return dense.f1 is not None and dense.f1 > 2 * share / (1 + share)
    there = int((counts > 0).sum())
    return dense.recall is not None and dense.recall > 2 / there


def _search_seen(recipe: Recipe, subject: Subject, state: State) -> bool:
    """Of the weights that the network began with: a student's own, and what it has of its teacher's."""
    if not state.origin.is_student:
        return subject.search_seen
    steps = [action.step for action in lay_out(recipe)]
    heirs = [step.embeddings == "teacher" for step in steps if isinstance(step, Student)]
    return state.origin.search_seen or (heirs[-1] and subject.search_seen)


def kept_units(dense: Trace, state: State) -> Choice | None:
    """What all plans together keep of the dense network's units.

    None where a later trace named a group that the dense network does not have, where modules were
    replaced, or where the network is a student's.
    """
    kept: dict[str, BoolArray] = {}
    if state.origin.is_student or any(plan.rebuilds for plan in state.plans):
        return None
    for plan in state.plans:
        for name, keep in plan.channels.items():
            group = dense.by_name.get(name)
            if group is None:
                return None
            before = kept.get(name, np.ones(group.units, dtype=bool))
            if int(before.sum()) != len(keep):
                return None
            after = before.copy()
            after[np.flatnonzero(before)[~keep]] = False
            kept[name] = after
    return kept


def _final_cost(dense: Trace, choice: Choice | None, state: State) -> Cost:
    """Counted on the final network; where all plans compose, it must be what they predict."""
    one = stated(state.inputs, 1, state.data)
    if choice is None:
        return measure_cost(state.network, one)
    return accounted_cost(state.network, one, dense.cost(choice), "the final network")


def _history(outcome: Outcome) -> tuple[HistoryPoint, ...]:
    return outcome.history if outcome.judged is None else (*outcome.history, outcome.judged)


def _widths(dense: Trace, choice: Choice | None) -> tuple[LayerWidth, ...]:
    return tuple(
        LayerWidth(
            group=group.name,
            before=group.units,
            after=int(np.sum(choice[group.name])) if group.name in choice else group.units,
            refused=group.refused,
        )
        for group in dense.groups
        if choice is not None
    )


def _seconds(summary: Summary) -> dict[str, float]:
    """Seconds by kind of work; ``total`` is what the method took, measurements left out."""
    found: dict[str, float] = defaultdict(float)
    for outcome in summary.outcomes:
        for name, seconds in outcome.seconds.items():
            found[name] += seconds
    return {**found, "total": sum(found.values()), "dense_measurement": summary.dense_seconds}
