"""Steps that are done: kept, found again, and shared by runs that begin alike."""

import os
import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path

from torch import nn

from prunus.artifact.manifest import TOKENIZER_FILE
from prunus.data import TextTokenizer
from prunus.errors import InputError
from prunus.quantize import read_deployed
from prunus.recipe.actions import Action, lay_out
from prunus.recipe.execute import judge
from prunus.recipe.folder import RunFolder, keep_record, with_way_on
from prunus.recipe.recipe import Recipe
from prunus.recipe.saved import load_network, save_network
from prunus.recipe.state import Outcome, State, Tools
from prunus.recipe.steps import Prune
from prunus.recipe.subject import Subject, student_of
from prunus.recipe.texts import first_batch
from prunus.records import SHARED


@dataclass(frozen=True)
class Donor:
    """A run whose first steps may be those of another.

    Attributes:
        name: Of its row.
        recipe: As it was run.
        steps: Folder of its steps.
    """

    name: str
    recipe: Recipe
    steps: Path


def keep(run: RunFolder, action: Action, state: State, outcome: Outcome) -> None:
    """Save a finished step: first the network, then the file that marks it as done.

    Raises:
        StorageError: The folder of the run was moved or deleted.
    """
    run.require_there()
    steps = run.path / "steps"
    origin = state.origin
    source = origin.source if origin.rebuildable else None
    # What a kill left of the step while it was saved or deployed, named as those who write it do.
    for left in steps.glob(f".{action.name}.*-*"):
        shutil.rmtree(left, ignore_errors=True)
    if state.deployed is None:
        folder = steps / action.name
        shutil.rmtree(folder, ignore_errors=True)  # half of it, or damaged: it is done anew
        save_network(folder, state.network, state.plans, source, state.inputs, state.data.tokenizer)
    keep_record(outcome, steps / f"{action.name}.json")
    (steps / f"{action.name}.ckpt").unlink(missing_ok=True)


def resume(
    actions: Sequence[Action], subject: Subject, folder: RunFolder | None
) -> tuple[State, list[Outcome]]:
    """The state after the last finished step, and what happened up to it."""
    begin = State.begin(subject)
    if folder is None:
        return begin, []
    steps = folder.path / "steps"
    try:
        steps.mkdir(exist_ok=True)
    except FileExistsError as error:
        raise InputError(f"'{steps}' is no folder: move it away and resume") from error
    outcomes = _finished(actions, steps)
    if not outcomes:
        return begin, []
    return _state(begin, actions[: len(outcomes)], outcomes, steps), outcomes


def adopt(
    donors: Sequence[Donor],
    actions: Sequence[Action],
    state: State,
    outcomes: list[Outcome],
    tools: Tools,
) -> tuple[State, list[Outcome]]:
    """Take over the first steps of the donor that has most of them done.

    What a donor's network scored at a stage is looked at once for both; where the stages differ,
    the network is judged anew.
    """
    if tools.steps is None:
        return state, outcomes
    found = [(_in_common(donor, actions, tools.recipe), donor) for donor in donors]
    common, donor = max(found, key=lambda item: item[0], default=(0, None))
    if donor is None or common <= len(outcomes):
        return state, outcomes
    theirs = lay_out(donor.recipe)
    begin = State.begin(tools.subject)
    for position in range(len(outcomes), common):
        action = actions[position]
        done = Outcome.load(donor.steps / f"{action.name}.json")
        _copy(donor.steps, tools.steps, action.name)
        anew = theirs[position].stage != action.stage
        anew = anew or (done.judged is None) == _judges(action, tools)
        if anew or position == common - 1:  # the others' networks are not looked at
            state = _state(begin, actions[: position + 1], [*outcomes, done], donor.steps)
        if anew:
            done = judge(
                action, state, done.model_copy(update={"look": None, "judged": None}), tools
            )
        note = f"{action.path}: {SHARED} '{donor.name}'"
        done = done.model_copy(update={"notes": (*done.notes, note)})
        keep_record(done, tools.steps / f"{action.name}.json")
        outcomes = [*outcomes, done]
    return state, outcomes


def _judges(action: Action, tools: Tools) -> bool:
    """Whether a step between stages is judged on the search split in this run."""
    return action.stage is None and tools.several_cuts


def _in_common(donor: Donor, actions: Sequence[Action], recipe: Recipe) -> int:
    """How many first steps of the donor are done, and are this run's as well."""
    same = ("seed", "ignore", "min_units", "round_to")
    if any(getattr(donor.recipe, name) != getattr(recipe, name) for name in same):
        return 0
    common = 0
    for mine, its in zip(actions, lay_out(donor.recipe), strict=False):
        alike = replace(mine, stage=None) == replace(its, stage=None)
        if not alike or not (donor.steps / mine.name).is_dir():
            break
        if not (donor.steps / f"{mine.name}.json").exists():
            break
        common += 1
    return common


def _finished(actions: Sequence[Action], steps: Path) -> list[Outcome]:
    outcomes = []
    for action in actions:
        file = steps / f"{action.name}.json"
        if not file.exists():
            break
        with _redone_if_damaged(action, steps):
            outcomes.append(Outcome.load(file))
    return outcomes


def _redone_if_damaged(action: Action, steps: Path) -> AbstractContextManager[None]:
    """Tell what can be done about a damaged file of a step: all that comes before it stays."""
    file = steps / f"{action.name}.json"
    return with_way_on(f"to do this step and those after it anew, delete {file} and resume")


def _state(
    begin: State, actions: Sequence[Action], outcomes: Sequence[Outcome], steps: Path
) -> State:
    """The state after the last of some finished steps."""
    last, folder = outcomes[-1], steps / actions[-1].name
    if last.deployed is not None:
        engine = steps / f"{actions[-1].name}.{last.deployed.engine}"
        with _redone_if_damaged(actions[-1], steps):
            read_deployed(engine)
        before = begin
        if len(outcomes) > 1:
            before = _state(begin, actions[:-1], outcomes[:-1], steps)
        return replace(before, deployed=engine)
    origin = begin.origin
    if last.student is not None:
        origin = student_of(last.student, origin)
    data, inputs = begin.data, begin.inputs
    spelled = folder / TOKENIZER_FILE
    with _redone_if_damaged(actions[-1], steps):
        network, plans = load_network(folder, origin.network)
        known = spelled.exists() and data.tokenizer is not None
        tokenizer = TextTokenizer.read(spelled) if known else None
    if tokenizer is not None and tokenizer.digest != getattr(data.tokenizer, "digest", None):
        data = data.with_tokenizer(tokenizer)
        inputs = first_batch(data, inputs)
    uncut = _uncut(actions, network, origin, steps)
    return State(network, origin, data, inputs, uncut, plans, last.fresh)


def _uncut(
    actions: Sequence[Action], network: nn.Module, origin: Subject, steps: Path
) -> nn.Module:
    """The network before its first cut, from the step that left it so."""
    whole = list(takewhile(lambda action: not isinstance(action.step, Prune), actions))
    if len(whole) == len(actions):
        return network
    if not whole:
        return origin.network
    with _redone_if_damaged(whole[-1], steps):
        return load_network(steps / whole[-1].name, origin.network)[0]


def _copy(source: Path, target: Path, name: str) -> None:
    """The network after a step, its files linked where the disk can."""

    def link(a: str, b: str) -> None:
        try:
            os.link(a, b)
        except OSError:
            shutil.copy2(a, b)

    target.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(target / name, ignore_errors=True)
    shutil.copytree(source / name, target / name, copy_function=link)
