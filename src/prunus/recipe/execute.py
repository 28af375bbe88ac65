"""One step of a run: decide, certify and cut; recalibrate; train."""

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from pydantic import Field
from torch import nn

from prunus.compute import Compute
from prunus.graph import Trace, certify, cut, hold_connections_, trace
from prunus.method import Budget, Context
from prunus.plan import Plan, Record
from prunus.progress import Progress, Silent
from prunus.recipe.actions import Action, build_method, searches
from prunus.recipe.fresh import reinitialize_
from prunus.recipe.measure import Look, accounted_cost, look, phase, require_looks
from prunus.recipe.recipe import Recipe
from prunus.recipe.steps import Prune, Recalibrate, Train
from prunus.recipe.subject import Subject
from prunus.records import Certificate, FrontPoint, HistoryPoint
from prunus.train import evaluate, fit, recalibrate_batch_norm_


@dataclass(frozen=True)
class Tools:
    """What every step may use.

    Attributes:
        subject: The dense network and its data; also the teacher of a distillation.
        dense_trace: Of the dense network.
        recipe: With the seed; its settings of the trace hold for later cuts, too.
        journal: File that is told of looks at the test split before they happen.
        steps: Folder of what steps keep; None: a killed search begins anew.
        several_cuts: Whether the recipe cuts more than once.
        device: ``"cpu"`` or ``"cuda"``.
        progress: Told of everything.
        compute: Where and how searches score their candidates.
    """

    subject: Subject
    dense_trace: Trace
    recipe: Recipe
    journal: Path | None = None
    steps: Path | None = None
    several_cuts: bool = False
    device: str = "cpu"
    progress: Progress = field(default_factory=Silent)
    compute: Compute = field(default_factory=Compute)


@dataclass(frozen=True)
class State:
    """The network as it is now, and how it came from the dense one."""

    network: nn.Module
    plans: tuple[Plan, ...] = ()
    fresh: bool = False


class Outcome(Record):
    """What happened in a step: kept beside the network, so that a resumed run need not repeat it."""

    path: str
    fresh: bool = False
    seconds: dict[str, float] = Field(default_factory=dict)
    look: Look | None = None
    certificate: Certificate | None = None
    history: tuple[HistoryPoint, ...] = ()
    front: tuple[FrontPoint, ...] = ()
    notes: tuple[str, ...] = ()


def perform(
    action: Action, state: State, tools: Tools, checkpoint: Path | None
) -> tuple[State, Outcome]:
    """Do one step. The network of ``state`` is not touched.

    Raises:
        PrunusError: The step read the test split beside the one look that is reported.
    """
    step, data = action.step, tools.subject.data
    before = data.test.evaluations
    if isinstance(step, Prune):
        after, outcome = _prune(action, step, state, tools)
    elif isinstance(step, Recalibrate):
        after, outcome = _recalibrate(action, step, state, tools)
    else:
        after, outcome = _train(action, step, state, tools, checkpoint)
    outcome = _judge(action, after, outcome, tools)
    require_looks(data, before, 0 if outcome.look is None else 1, action.path)
    return after, outcome


def step_seed(seed: int, index: int) -> int:
    """Independent seeds for the steps of a run, equal for the same step of runs with one seed.

    >>> step_seed(0, 1) != step_seed(1, 0)
    True
    """
    return int(np.random.SeedSequence([seed, index]).generate_state(1)[0])


def _prune(action: Action, step: Prune, state: State, tools: Tools) -> tuple[State, Outcome]:
    progress, subject, network = tools.progress, tools.subject, state.network
    method = build_method(step, action.path)
    found = tools.dense_trace
    if state.plans:
        found = trace_network(network, subject, tools.recipe)
    budget = _budget(action, tools, dense=not state.plans)
    begin = time.perf_counter()
    decision = method.decide(_context(action, state, tools, found, budget))
    decided = time.perf_counter()
    budget.require(found, decision.choice)
    plan = found.plan(decision.choice, decision.connections)
    with phase(progress, "certify and cut"):
        certificate = certify(network, found, plan, subject.inputs)
        smaller = cut(network, plan).eval()
        accounted_cost(smaller, subject.one, found.cost(plan.channels), f"the cut of {action.path}")
    if method.reinitialize:
        reinitialize_(smaller, step_seed(tools.recipe.seed, action.index))
        hold_connections_(smaller)
    notes = [*decision.notes]
    if plan.is_empty:
        notes.append(f"{action.path}: target {step.target} is met as it is: nothing was cut")
    if decision.evaluations:
        notes.append(f"{action.path}: {decision.evaluations} evaluations of candidates")
    if decision.front is not None and tools.steps is not None:
        decision.front.save(tools.steps / f"{action.name}.front.json")
    after = State(smaller, (*state.plans, plan), state.fresh or method.reinitialize)
    return after, Outcome(
        path=action.path,
        fresh=after.fresh,
        seconds={"search": decided - begin, "cut": time.perf_counter() - decided},
        certificate=certificate,
        history=decision.history,
        front=() if decision.front is None else _without_plans(decision.front.points),
        notes=tuple(notes),
    )


def _without_plans(points: Sequence[FrontPoint]) -> tuple[FrontPoint, ...]:
    """What a report draws; the front's own file says what the networks keep."""
    return tuple(point.model_copy(update={"keep": {}, "connections": ()}) for point in points)


def _context(action: Action, state: State, tools: Tools, found: Trace, budget: Budget) -> Context:
    """What a method is given; a search also what its workers and its memory need."""
    subject = tools.subject
    context = Context(
        network=copy.deepcopy(state.network),
        trace=found,
        budget=budget,
        seed=tools.recipe.seed,
        train=subject.data.train,
        search=subject.data.search,
        device=tools.device,
        progress=tools.progress,
    )
    if not searches(action):
        return context
    folder = None
    if tools.steps is not None:
        folder = tools.steps / f"{action.name}.search"
        folder.mkdir(parents=True, exist_ok=True)
    return replace(
        context,
        original=copy.deepcopy(subject.network),
        source=subject.source if subject.rebuildable else None,
        plans=state.plans,
        folder=folder,
        compute=tools.compute,
    )


def trace_network(network: nn.Module, subject: Subject, recipe: Recipe) -> Trace:
    """Trace a network on the subject's real inputs, with the recipe's settings."""
    return trace(
        network,
        subject.inputs,
        ignore=recipe.ignore,
        min_units=recipe.min_units,
        round_to=recipe.round_to,
    )


def _budget(action: Action, tools: Tools, *, dense: bool) -> Budget:
    """The budget of a cut on the network as it is: later shares of dense become absolute limits."""
    final = action.budget
    if final is None:
        raise ValueError(f"{action.path} has no budget")
    last_round = action.round is None or action.round.number == action.round.times
    if dense and last_round:
        return final
    limit = action.limit(final.measure(tools.dense_trace, {}))
    return Budget(quantity=final.quantity, value=float(limit))


def _recalibrate(
    action: Action, step: Recalibrate, state: State, tools: Tools
) -> tuple[State, Outcome]:
    network = copy.deepcopy(state.network)
    hold_connections_(network)  # hooks do not survive the copy
    begin = time.perf_counter()
    with phase(tools.progress, "recalibrate"):
        recalibrate_batch_norm_(
            network,
            tools.subject.data.train,
            images=step.images,
            batch_size=step.batch_size,
            seed=step_seed(tools.recipe.seed, action.index),
            device=tools.device,
        )
    seconds = {"recalibrate": time.perf_counter() - begin}
    return (
        State(network, state.plans, state.fresh),
        Outcome(path=action.path, fresh=state.fresh, seconds=seconds),
    )


def _train(
    action: Action, step: Train, state: State, tools: Tools, checkpoint: Path | None
) -> tuple[State, Outcome]:
    network = copy.deepcopy(state.network)
    hold_connections_(network)  # hooks do not survive the copy
    config = step.config(fresh=state.fresh)
    teacher = copy.deepcopy(tools.subject.network) if config.distill_alpha else None
    found = fit(
        network,
        tools.subject.data.train,
        tools.subject.data.search,
        config,
        seed=step_seed(tools.recipe.seed, action.index),
        teacher=teacher,
        checkpoint=checkpoint,
        progress=tools.progress,
        device=tools.device,
    )
    notes = []
    if state.fresh and step.scratch_epochs is None:
        notes.append(
            f"{action.path}: the network from scratch had the fine-tuning's {config.epochs} epochs "
            "only; set scratch_epochs to what the dense network and the fine-tuning had together"
        )
    outcome = Outcome(
        path=action.path,
        fresh=state.fresh,
        seconds={"train": found.seconds},
        history=found.history,
        notes=tuple(notes),
    )
    return State(network.eval(), state.plans, state.fresh), outcome


def _judge(action: Action, after: State, outcome: Outcome, tools: Tools) -> Outcome:
    """Look at the test split where a stage ends; judge what lies between on the search split."""
    data = tools.subject.data
    if action.stage is not None:
        with phase(tools.progress, f"evaluate {action.stage.replace('_', ' ')}"):
            seen = look(after.network, data, action.stage, tools.device, tools.journal)
        return outcome.model_copy(update={"look": seen})
    if not tools.several_cuts:
        return outcome
    with phase(tools.progress, "evaluate on search"):
        found = evaluate(after.network, data.search, device=tools.device)
    point = HistoryPoint(
        phase="search split after each step",
        step=action.index + 1,
        seconds=sum(outcome.seconds.values()),
        values={"top1": found.top1},
    )
    return outcome.model_copy(update={"history": (*outcome.history, point)})
