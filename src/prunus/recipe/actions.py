"""A recipe laid out flat: every step of every round with its budget, checked before any compute."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import prunus.lowrank
import prunus.prune  # both register their methods
from prunus.errors import InputError
from prunus.method import Budget, Method, Need, make_method, method_class
from prunus.recipe.recipe import Recipe
from prunus.recipe.steps import BasicStep, Deploy, Prune, Recalibrate, Repeat, Step, Student, Train
from prunus.records import Stage

METHODS_PACKAGES = (prunus.prune.__name__, prunus.lowrank.__name__)
"""Where the methods of this layer come from; naming them keeps the imports from looking unused."""


@dataclass(frozen=True)
class Round:
    """Which round of how many, and how its budget follows from the last one's."""

    number: int
    times: int
    schedule: str | tuple[float, ...]

    def share(self, last: float) -> float:
        """Budget of this round, given that of the last; both are shares of the dense network."""
        done = self.number / self.times
        if isinstance(self.schedule, tuple):
            return self.schedule[self.number - 1]
        return last**done if self.schedule == "geometric" else 1 - (1 - last) * done


@dataclass(frozen=True)
class Action:
    """One thing to do.

    Attributes:
        index: Position in the flat list.
        path: Where it stands in the recipe.
        step: What to do.
        budget: Of a cut, as the recipe says it: that of the last round.
        round: Of a repeat.
        stage: The stage that is looked at on the test split afterwards, if any.
    """

    index: int
    path: str
    step: BasicStep
    budget: Budget | None = None
    round: Round | None = None
    stage: Stage | None = None

    @property
    def is_last_round(self) -> bool:
        """Whether no other round comes after it."""
        return self.round is None or self.round.number == self.round.times

    @property
    def done(self) -> float:
        """Share of the rounds that are over with this one."""
        return 1.0 if self.round is None else self.round.number / self.round.times

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.index + 1:02d}-{self.step.step}"

    def limit(self, dense: int) -> int:
        """The most that may be left after a cut, given what the dense network has."""
        if self.budget is None:
            raise ValueError(f"{self.path} has no budget")
        last = self.budget.limit(dense)
        if self.round is None or self.is_last_round:
            return last
        return int(self.round.share(last / dense) * dense)


def lay_out(recipe: Recipe) -> tuple[Action, ...]:
    """All steps of all rounds in order.

    A stage is looked at once: after the last cut, after the recalibrations that follow it at once,
    and at the end where a training comes after it. What lies before is judged on the search split.

    Raises:
        InputError: A method, an option, a target, a schedule or the order of steps cannot be used.
    """
    _check_order(recipe)
    flat: list[Action] = []
    for position, step in enumerate(recipe.steps):
        path = f"steps[{position}].{step.step}"
        if not isinstance(step, Repeat):
            flat.append(_action(len(flat), path, step))
            continue
        _check_schedule(step, path)
        _check_rounds(step, path)
        for number in range(1, step.times + 1):
            for inner_position, inner in enumerate(step.steps):
                inner_path = f"{path}.steps[{inner_position}].{inner.step}"
                turn = Round(number, step.times, step.schedule)
                flat.append(_action(len(flat), inner_path, inner, turn))
    _check_budgets(flat)
    stages = _stages([action.step for action in flat])
    return tuple(replace(a, stage=stages.get(a.index)) for a in flat)


def _action(index: int, path: str, step: BasicStep, turn: Round | None = None) -> Action:
    budget = None
    if isinstance(step, Prune) and not step.target:
        if not build_method(step, path).sizes_itself:
            raise InputError(
                f"{path}.target is missing: method '{step.method}' needs one such as macs=0.5, or "
                "options that say how small the network gets; see its card"
            )
    elif isinstance(step, Prune):
        budget = _budget(step, step.target, path)
    return Action(index, path, step, budget, turn)


def _budget(step: Prune, target: str, path: str) -> Budget:
    """What a step asks for.

    Raises:
        InputError: It is not understood, or its method cannot lower that quantity.
    """
    method = build_method(step, path)
    try:
        budget = Budget.parse(target)
    except InputError as error:
        raise InputError(f"{path}.target: {error}") from error
    if budget.quantity not in method.targets:
        known = " or ".join(sorted(method.targets))
        remedy = f"give one on {known}, or leave it out" if known else "leave it out"
        remedy += ": without a target the method's options say how far it goes"
        raise InputError(
            f"{path}.target: {target}: method '{step.method}' does not lower {budget.quantity}; {remedy}"
        )
    return budget


def build_method(step: Prune, path: str) -> Method:
    """The method of a step, with its options.

    Raises:
        InputError: No such method or option; names the key's path.
    """
    try:
        method_class(step.method)
    except InputError as error:
        raise InputError(f"{path}.method: {error}") from error
    try:
        return make_method(step.method, step.options)
    except InputError as error:
        raise InputError(f"{path}.options: {error}") from error


def require_widths(recipe: Recipe, runs: Sequence[Sequence[Action]]) -> None:
    """Refuse least widths and multiples where no step of any run chooses units.

    Raises:
        InputError: They are given, and mean nothing.
    """
    cuts = [a.step.method for run in runs for a in run if isinstance(a.step, Prune)]
    if any(not method_class(name).edits and method_class(name).targets for name in cuts):
        return  # what edits replaces modules; what lowers nothing zeroes weights where they are
    for name, value in (("min_units", recipe.min_units), ("round_to", recipe.round_to)):
        if value != 1:
            option = f"{name}={value} (--{name.replace('_', '-')})"
            found = f"here are {', '.join(dict.fromkeys(cuts))}" if cuts else "here is none"
            raise InputError(
                f"{option} is for methods that choose channels or other units, and {found}; leave it out"
            )


def searches(action: Action) -> bool:
    """Whether a step scores candidates: a cut by a method that decides by the search split."""
    step = action.step
    return isinstance(step, Prune) and Need.SEARCH in method_class(step.method).needs


def _check_schedule(step: Repeat, path: str) -> None:
    shares = step.schedule
    if not isinstance(shares, tuple):
        return
    where = f"{path}.schedule: {list(shares)}"
    if len(shares) != step.times:
        raise InputError(f"{where} has {len(shares)} shares for {step.times} rounds; give one each")
    falling = all(a >= b for a, b in zip((1.0, *shares), shares, strict=False))
    if not falling or shares[-1] <= 0:
        raise InputError(f"{where} must fall from at most 1 and stay above 0")
    targeted = [s for s in step.steps if isinstance(s, Prune) and s.target]
    if not targeted:
        raise InputError(
            f"{where} says how far every round goes, but no prune of the repeat has a target; give one "
            "such as macs=0.5, or leave schedule out"
        )
    for inner in targeted:
        if (last := Budget.parse(inner.target).value) != shares[-1]:
            raise InputError(
                f"{where} ends at {shares[-1]:g}, the target at {last:g}; make them agree"
            )


def _check_rounds(step: Repeat, path: str) -> None:
    """Refuse in rounds what is done once.

    Raises:
        InputError: A method cannot be done in several rounds.
    """
    for position, inner in enumerate(step.steps):
        where = f"{path}.steps[{position}].prune"
        if step.times == 1 or not isinstance(inner, Prune):
            continue
        method = build_method(inner, where)
        try:
            method.require_repeatable(step.times)
        except InputError as error:
            remedy = "put it before or after the repeat, or set times: 1"
            raise InputError(f"{where}: {error}; {remedy}") from error


def _check_order(recipe: Recipe) -> None:
    """Structure before quantization, and no other network after a cut.

    Raises:
        InputError: A step stands where it cannot be.
    """
    for position, step in enumerate(recipe.steps):
        path = f"steps[{position}].{step.step}"
        before, after = recipe.steps[:position], recipe.steps[position + 1 :]
        if isinstance(step, Repeat):
            for inner in step.steps:
                if isinstance(inner, Student | Deploy):
                    raise InputError(
                        f"{path}: a repeat holds '{inner.step}', which is done once; put it "
                        f"{'before' if isinstance(inner, Student) else 'after'} the repeat"
                    )
        elif isinstance(step, Deploy) and after:
            raise InputError(
                f"{path}: '{after[0].step}' comes after it, but a deployed network is not cut or "
                "trained again; structure comes before quantization: make deploy the last step"
            )
        elif isinstance(step, Student) and before:
            raise InputError(
                f"{path}: it comes after '{before[-1].step}', whose work it would throw away; put "
                "student first (its teacher is the dense network: train that before, by "
                "--train-epochs or 'prunus train')"
            )
        elif isinstance(step, Student) and not _trains(after):
            raise InputError(
                f"{path}: no train comes after it, so that its fresh weights would stay; add one "
                "with distill_alpha"
            )


def _trains(steps: Sequence[Step]) -> bool:
    return any(
        isinstance(step, Train) or (isinstance(step, Repeat) and _trains(step.steps))
        for step in steps
    )


def _check_budgets(actions: list[Action]) -> None:
    """A later cut must ask for less than an earlier one left, in the same terms: shares, or numbers."""
    tightest: dict[str, tuple[float, str]] = {}
    seen: set[str] = set()
    for action in actions:
        budget = action.budget
        if budget is None or action.path in seen:
            continue
        seen.add(action.path)
        value, where = tightest.get(budget.quantity, (float("inf"), ""))
        same_kind = (budget.value <= 1) == (value <= 1)
        if where and not same_kind:
            raise InputError(
                f"{action.path}.target: {budget.quantity}={budget.value:g} after {where} with "
                f"{budget.quantity}={value:g}: give both as shares of the dense network, or both as "
                "numbers"
            )
        if budget.value >= value:
            raise InputError(
                f"{action.path}.target: {budget.quantity}={budget.value:g} leaves nothing to cut "
                f"after {where} with {budget.quantity}={value:g}; targets are shares of the dense "
                "network, give a smaller one"
            )
        tightest[budget.quantity] = (budget.value, action.path)


def _stages(steps: list[BasicStep]) -> dict[int, Stage]:
    """Which stage is looked at after which step."""
    found: dict[int, Stage] = {}
    if steps and isinstance(steps[-1], Deploy):
        steps = steps[:-1]
        found[len(steps)] = "deployed"
    cuts = [i for i, step in enumerate(steps) if isinstance(step, Prune)]
    last = cuts[-1] if cuts else -1
    if last >= 0:
        found[last] = "after_cut"
    trained = [i for i in range(last + 1, len(steps)) if isinstance(steps[i], Train)]
    end = trained[0] if trained else len(steps)
    between = [i for i in range(last + 1, end) if isinstance(steps[i], Recalibrate)]
    if between:
        found[between[-1]] = "after_recalibration"
    if trained:
        found[len(steps) - 1] = "after_training"
    return found


def targets(actions: tuple[Action, ...]) -> dict[str, float]:
    """The tightest target of each quantity."""
    budgets = [action.budget for action in actions if action.budget is not None]
    return {budget.quantity: budget.value for budget in budgets}


def label(recipe: Recipe) -> str:
    """Name of the row in a report."""
    flat: list[Step] = [
        s for t in recipe.steps for s in (t.steps if isinstance(t, Repeat) else [t])
    ]
    parts = dict.fromkeys(name for step in flat if (name := _part(step)))
    return recipe.name or "+".join(parts) or "train"


def _part(step: Step) -> str:
    """What a step adds to the name of a row."""
    if isinstance(step, Prune):
        return step.method
    if isinstance(step, Student):
        return step.model
    return f"{step.weights}-{step.engine}" if isinstance(step, Deploy) else ""
