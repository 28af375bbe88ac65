"""One step of a run: decide, certify and cut; recalibrate; train; go on with a student; deploy."""

import copy
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import nn

from prunus.graph import (
    Trace,
    certify,
    certify_rebuild,
    cut,
    hold_connections_,
    pad_plainly_,
    plan_of,
    trace,
)
from prunus.meter import measure_cost
from prunus.method import Budget, Context, Decision
from prunus.plan import Plan
from prunus.progress import phases_ended
from prunus.recipe.actions import Action, build_method, searches
from prunus.recipe.deployed import deploy_state
from prunus.recipe.folder import keep_record
from prunus.recipe.fresh import reinitialize_
from prunus.recipe.inputs import CERTIFICATE_SAMPLES, stated
from prunus.recipe.measure import accounted_cost, environment, look, phase, require_looks
from prunus.recipe.recipe import Recipe
from prunus.recipe.state import Outcome, State, Tools
from prunus.recipe.steps import Deploy, Prune, Recalibrate, Student, Train
from prunus.recipe.subject import Subject, student_of
from prunus.recipe.texts import attention_shown, teacher_for, with_plan
from prunus.recipe.words import inherit_words_
from prunus.records import Certificate, FrontPoint, HistoryPoint, Source
from prunus.train import evaluate, fit, recalibrate_batch_norm_, statistics_are_augmented

_TOLD = 0.05
"""Share of a budget that may be left without a word: a unit of a narrow network is some percent."""


def perform(
    action: Action, state: State, tools: Tools, checkpoint: Path | None
) -> tuple[State, Outcome]:
    """Do one step. The network of ``state`` is not touched.

    Raises:
        PrunusError: The step read the test split beside the one look that is reported.
    """
    data = tools.subject.data
    before = data.test.evaluations
    with phases_ended(tools.progress) as progress:
        inside = replace(tools, progress=progress)
        after, outcome = _done(action, state, inside, checkpoint)
        outcome = judge(action, after, outcome, inside)
    require_looks(data, before, 0 if outcome.look is None else 1, action.path)
    return after, outcome.model_copy(update={"environment": environment(tools.device)})


def _done(
    action: Action, state: State, tools: Tools, checkpoint: Path | None
) -> tuple[State, Outcome]:
    step = action.step
    if isinstance(step, Prune):
        return _prune(action, step, state, tools)
    if isinstance(step, Recalibrate):
        return _recalibrate(action, step, state, tools)
    if isinstance(step, Student):
        return _student(action, step, state, tools)
    if isinstance(step, Deploy):
        return deploy_state(action, step.deployment, state, tools)
    return _train(action, step, state, tools, checkpoint)


def step_seed(seed: int, index: int) -> int:
    """Independent seeds for the steps of a run, equal for the same step of runs with one seed.

    >>> step_seed(0, 1) != step_seed(1, 0)
    True
    """
    return int(np.random.SeedSequence([seed, index]).generate_state(1)[0])


def _prune(action: Action, step: Prune, state: State, tools: Tools) -> tuple[State, Outcome]:
    network = state.network
    method = build_method(step, action.path)
    found = tools.dense_trace
    if network is not tools.subject.network:
        found = trace_network(network, state, tools.recipe)
    budget = _budget(action, tools, dense=network is tools.subject.network)
    begin = time.perf_counter()
    decision = method.decide(_context(action, state, tools, found, budget))
    decided = time.perf_counter()
    with phase(tools.progress, "certify and cut"):
        if method.edits:
            smaller, plan, certificate = _rebuilt(action, state, decision, found, budget)
        else:
            smaller, plan, certificate = _cut(action, state, decision, found, budget)
    if method.reinitialize:
        reinitialize_(smaller, step_seed(tools.recipe.seed, action.index))
        hold_connections_(smaller)
    notes = [*decision.notes]
    if plan.is_empty or decision.is_whole:
        notes.append(_nothing_cut(action, step, plan))
    elif action.budget is not None and not method.edits:
        notes += _unused(action, budget, found, decision)
    if decision.evaluations:
        notes.append(f"{action.path}: {decision.evaluations} evaluations of candidates")
    if decision.front is not None and tools.steps is not None:
        keep_record(decision.front, tools.steps / f"{action.name}.front.json")
    after = replace(with_plan(state, smaller, plan), fresh=state.fresh or method.reinitialize)
    return after, Outcome(
        path=action.path,
        fresh=after.fresh,
        student=_student_source(state),
        seconds={
            "search": decision.earlier_seconds + decided - begin,
            "cut": time.perf_counter() - decided,
        },
        certificate=certificate,
        history=decision.history,
        front=() if decision.front is None else _without_plans(decision.front.points),
        notes=tuple(notes),
    )


def _nothing_cut(action: Action, step: Prune, plan: Plan) -> str:
    """A note that no unit went, and why."""
    what = "nothing was cut" if plan.is_empty else "no unit was cut, connections alone are zero"
    if not step.target:
        return f"{action.path}: {what}"
    if action.round is None or action.is_last_round:
        return f"{action.path}: target {step.target} is met as it is: {what}"
    here = f"round {action.round.number} of {action.round.times}"
    return f"{action.path}: what {here} leaves of target {step.target} is met as it is: {what}"


def _cut(
    action: Action, state: State, decision: Decision, found: Trace, budget: Budget
) -> tuple[nn.Module, Plan, Certificate]:
    """Cut units and hold connections, as the method chose."""
    budget.require(found, decision.choice)
    plan = found.plan(decision.choice, decision.connections)
    certificate = certify(state.network, found, plan, state.inputs)
    smaller = cut(state.network, plan).eval()
    one = stated(state.inputs, 1, state.data)
    predicted = found.cost(plan.channels)
    accounted_cost(smaller, one, predicted, f"the cut of {action.path}")
    return smaller, plan, certificate


def _rebuilt(
    action: Action, state: State, decision: Decision, found: Trace, budget: Budget
) -> tuple[nn.Module, Plan, Certificate]:
    """Replace modules and tables, as the method chose."""
    plan = plan_of(state.network, decision.edits)
    certificate = certify_rebuild(state.network, plan, decision.tensors, state.inputs)
    smaller = cut(state.network, plan, decision.tensors).eval()
    after = with_plan(state, smaller, plan)
    one = stated(after.inputs, 1, after.data)
    cost = measure_cost(smaller, one)
    budget.require_within(budget.read(cost), budget.measure(found, {}))
    predicted = trace(smaller, one, verify=False).cost({})
    accounted_cost(smaller, one, predicted, f"the cut of {action.path}")
    return smaller, plan, certificate


def _without_plans(points: Sequence[FrontPoint]) -> tuple[FrontPoint, ...]:
    """What a report draws; the front's own file says what the networks keep."""
    return tuple(point.model_copy(update={"keep": {}, "connections": ()}) for point in points)


def _context(action: Action, state: State, tools: Tools, found: Trace, budget: Budget) -> Context:
    """What a method is given; a search also what its workers and its memory need."""
    network = copy.deepcopy(state.network)
    pad_plainly_(network)  # methods look at the outputs of layers, which have no sizes when packed
    context = Context(
        network=network,
        trace=found,
        budget=budget,
        # The first cut has the run's own; each later one draws anew.
        seed=step_seed(tools.recipe.seed, action.index) if state.plans else tools.recipe.seed,
        train=state.data.train,
        search=state.data.search,
        device=tools.device,
        progress=tools.progress,
        fallback_pieces=_fallback(state),
        done=action.done,
    )
    if not searches(action):
        return context
    folder = None
    if tools.steps is not None:
        folder = tools.steps / f"{action.name}.search"
        folder.mkdir(parents=True, exist_ok=True)
    return replace(
        context,
        original=teacher_for(copy.deepcopy(state.uncut), state),
        source=state.origin.source if state.origin.rebuildable else None,
        plans=state.plans,
        folder=folder,
        compute=tools.compute,
    )


def _fallback(state: State) -> frozenset[int]:
    tokenizer = state.data.tokenizer
    return frozenset() if tokenizer is None else tokenizer.fallback_pieces()


def trace_network(network: nn.Module, where: Subject | State, recipe: Recipe) -> Trace:
    """Trace a network on real inputs, with the recipe's settings. Costs are stated for one sample."""
    return trace(
        network,
        stated(where.inputs, CERTIFICATE_SAMPLES, where.data),
        ignore=recipe.ignore,
        min_units=recipe.min_units,
        round_to=recipe.round_to,
    )


def _budget(action: Action, tools: Tools, *, dense: bool) -> Budget:
    """The budget of a cut on the network as it is: later shares of dense become absolute limits."""
    final = action.budget
    if final is None:  # its options say how small the network gets
        return Budget(quantity="params", value=1.0)
    if dense and action.is_last_round:
        return final
    limit = action.limit(final.measure(tools.dense_trace, {}))
    return Budget(quantity=final.quantity, value=float(limit))


def _unused(action: Action, budget: Budget, found: Trace, decision: Decision) -> list[str]:
    """A note where so much of a budget is left that a user would ask why, and no step would fit."""
    limit = budget.limit(budget.measure(found, {}))
    cost = budget.measure(found, decision.choice)
    if cost >= (1 - _TOLD) * limit or not decision.choice:
        return []
    if budget.has_room(found, decision.choice):  # for want of something else, as the method tells
        return []
    finer = any(group.round_to > 1 for group in found.groups)
    ways = (
        "steps are finer with a smaller round_to, and other methods" if finer else "other methods"
    )
    used = f"{cost} of {limit} {budget.quantity} are used ({cost / limit:.1%})"
    coarse = "a step of what was cut is more than what is left"
    return [f"{action.path}: {used}: {coarse}; {ways} cut other groups"]


def _recalibrate(
    action: Action, step: Recalibrate, state: State, tools: Tools
) -> tuple[State, Outcome]:
    if state.plans and not state.fresh and all(plan.is_empty for plan in state.plans):
        # A few images tell less of the dense network's activations than its whole training did.
        told = f"{action.path}: nothing was cut, so that batch-norm statistics stay what they were"
        return state, _outcome(action, state, seconds={}, notes=(told,))
    network = copy.deepcopy(state.network)
    hold_connections_(network)  # hooks do not survive the copy
    begin = time.perf_counter()
    with phase(tools.progress, "recalibrate"):
        augment = step.augment
        if augment == "auto":
            augment = statistics_are_augmented(
                state.uncut, state.data.train, seed=tools.recipe.seed, device=tools.device
            )
        recalibrate_batch_norm_(
            network,
            state.data.train,
            images=step.images,
            batch_size=step.batch_size,
            augment=augment,
            seed=step_seed(tools.recipe.seed, action.index),
            device=tools.device,
        )
    seconds = {"recalibrate": time.perf_counter() - begin}
    return state.recalibrated(network), _outcome(action, state, seconds=seconds)


def _student(action: Action, step: Student, state: State, tools: Tools) -> tuple[State, Outcome]:
    """Another network in the place of the dense one, which stays the teacher."""
    begin = time.perf_counter()
    origin = student_of(step.source, state.origin)
    network = origin.network
    notes: tuple[str, ...] = ()
    if step.embeddings == "teacher":
        network = copy.deepcopy(network)
        held = inherit_words_(network, tools.subject.network, state.data.train, state.inputs)
        of = f"the teacher's, reduced to {held:.0%} of their variance"
        notes = (f"{action.path}: word embeddings start from {of}",)
    after = State(network, origin, state.data, state.inputs, network, fresh=not origin.search_seen)
    outcome = _outcome(action, after, seconds={"student": time.perf_counter() - begin})
    return after, outcome.model_copy(update={"notes": notes})


def _train(
    action: Action, step: Train, state: State, tools: Tools, checkpoint: Path | None
) -> tuple[State, Outcome]:
    network = copy.deepcopy(state.network)
    hold_connections_(network)  # hooks do not survive the copy
    config = step.config(fresh=state.fresh)
    teacher = None
    if config.teaches:
        teacher = teacher_for(copy.deepcopy(tools.subject.network), state)
    with ExitStack() as stack:
        for reader in (network, teacher) if config.distill_attention else ():
            stack.enter_context(attention_shown(reader))
        found = fit(
            network,
            state.data.train,
            state.data.search,
            config,
            seed=step_seed(tools.recipe.seed, action.index),
            teacher=teacher,
            unlabeled=state.data.unlabeled if config.distill_alpha else None,
            checkpoint=checkpoint,
            teacher_store=tools.teacher_logits,
            progress=tools.progress,
            device=tools.device,
        )
    notes = []
    if state.fresh and step.scratch_epochs is None and _is_cut(state):
        notes.append(
            f"{action.path}: the network from scratch had the fine-tuning's {config.epochs} epochs "
            "only; set scratch_epochs to what the dense network and the fine-tuning had together"
        )
    after = state.trained(network.eval())
    outcome = _outcome(action, after, seconds={"train": found.seconds})
    return after, outcome.model_copy(update={"history": found.history, "notes": tuple(notes)})


def _is_cut(state: State) -> bool:
    """Whether fresh weights are those of a cut network, not of a student of its own kind."""
    return bool(state.plans) and _student_source(state) is None


def _student_source(state: State) -> Source | None:
    return state.origin.source if state.origin.is_student else None


def _outcome(
    action: Action, state: State, *, seconds: dict[str, float], notes: tuple[str, ...] = ()
) -> Outcome:
    student = _student_source(state)
    return Outcome(
        path=action.path, fresh=state.fresh, student=student, seconds=seconds, notes=notes
    )


def judge(action: Action, after: State, outcome: Outcome, tools: Tools) -> Outcome:
    """Look at the test split where a stage ends; judge what lies between on the search split."""
    if outcome.look is not None:  # a deployed network was looked at in a process of its own
        return outcome
    if action.stage is not None:
        with phase(tools.progress, f"evaluate {action.stage.replace('_', ' ')}"):
            seen = look(after.network, after.data, action.stage, tools.device, tools.journal)
        return outcome.model_copy(update={"look": seen})
    if not tools.several_cuts or isinstance(action.step, Student):
        return outcome
    with phase(tools.progress, "evaluate on search"):
        found = evaluate(after.network, after.data.search, device=tools.device)
    point = HistoryPoint(
        phase="search split after each step",
        step=action.index + 1,
        seconds=sum(outcome.seconds.values()),
        values={after.data.metric: getattr(found, after.data.metric)},
    )
    return outcome.model_copy(update={"judged": point})
