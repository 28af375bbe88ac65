"""A recipe: what to do to which network on which data, read from YAML or built in Python."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError
from pydantic_core import ErrorDetails

from prunus.data import Cleaning, TextOptions
from prunus.errors import InputError
from prunus.plan import SEEDS, Record, complaint, in_short
from prunus.recipe.steps import STEPS, Repeat, Step, StepItem, Train
from prunus.yaml_text import read_yaml, write_yaml

_NAME = re.compile(r"[\w-]+")  # of a key; what else stands in a location names a branch of a union


class Recipe(Record):
    """Steps in order, and what they are for.

    Attributes:
        version: Of the form of recipes.
        name: Of the row in a report; the names of the methods by default.
        model: A network of the zoo, ``hf:NAME`` or ``hf:FOLDER``, ``timm:NAME``, ``torchvision:NAME``,
            or ``FILE.py:FUNCTION``; left out where the network is given in Python.
        arguments: Of the model's constructor.
        weights: Checkpoint of the dense network.
        data: ``digits``, ``cifar10``, ``imagefolder:DIR``, ``text:FILE`` and others (``docs/data.md``);
            left out where the data is given in Python.
        text: How texts are read, see below.
        seed: Of search, data order and fine-tuning. The splits of the data do not depend on it.
        ignore: Glob patterns of modules whose outputs stay whole.
        min_units: Fewest units that must stay in each group.
        round_to: Kept channels are a multiple of this.
        steps: In order; each is a name with its settings, see below.
    """

    version: Literal[1] = 1
    name: str = ""
    model: str | None = None
    arguments: dict[str, Any] = Field(default_factory=dict)
    weights: str | None = None
    data: str | None = None
    text: TextOptions | None = None
    seed: int = Field(default=0, ge=0, lt=SEEDS)
    ignore: tuple[str, ...] = ()
    min_units: int = Field(default=1, ge=1)
    round_to: int = Field(default=1, ge=1)
    steps: tuple[StepItem, ...] = Field(min_length=1)

    def to_yaml(self) -> str:
        """The recipe as text that ``parse_recipe`` reads back; defaults are left out."""
        content = {"version": self.version, **self.model_dump(mode="json", exclude_defaults=True)}
        return write_yaml(content)

    @property
    def trainings(self) -> tuple[Train, ...]:
        """Its trainings, in order; of a ``repeat`` each once."""
        flat = (s for step in self.steps for s in _flat(step))
        return tuple(s for s in flat if isinstance(s, Train))

    @property
    def wants_execution(self) -> bool:
        """Whether a training leaves number format or memory layout to be picked."""
        return any("auto" in (train.precision, train.layout) for train in self.trainings)

    def pinned(self, precision: str, layout: str) -> "Recipe":
        """The recipe with a number format and a memory layout in the place of every ``auto``."""
        steps = tuple(_pin(step, precision, layout) for step in self.steps)
        return self.model_copy(update={"steps": steps})


def make_recipe(content: Mapping[str, Any], where: str = "recipe") -> Recipe:
    """Build a recipe from plain values.

    Raises:
        InputError: A key is unknown or missing, or a value cannot be used; names the key's path.
    """
    try:
        return Recipe.model_validate(dict(content))
    except ValidationError as error:
        raise InputError(validation_line(error, where)) from error


def as_recipe(recipe: Recipe | Sequence[Step]) -> Recipe:
    """A recipe, or the recipe of some steps.

    Raises:
        InputError: It is neither, or a step cannot be used.
    """
    if isinstance(recipe, Recipe):
        return recipe
    _require_steps(recipe)
    return make_recipe({"steps": tuple(recipe)})


def _require_steps(steps: object) -> None:
    """Refuse what is no list of steps, such as a path, whose letters would be taken one by one."""
    if isinstance(steps, str | Path):
        raise InputError(
            f"recipe is '{steps}', a text; read a file with prunus.load_recipe, or give a list of steps"
        )
    if isinstance(steps, tuple(STEPS.values())):
        raise InputError(
            f"recipe is one step ({type(steps).__name__}); give a list of steps: [step]"
        )
    if isinstance(steps, Mapping) or not isinstance(steps, Iterable):
        raise InputError(
            f"recipe is a {type(steps).__name__}; give a prunus.Recipe or a list of steps"
        )


def parse_recipe(text: str, where: str = "recipe") -> Recipe:
    """Read a recipe from YAML.

    Raises:
        InputError: The text is no YAML, or no recipe.
    """
    try:
        content = read_yaml(text)
    except RecursionError as error:
        raise InputError(f"{where}: it is nested too deep for a recipe; mend the file") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = "" if mark is None else f" line {mark.line + 1}, column {mark.column + 1}:"
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise InputError(f"{where}:{line} no valid YAML: {problem}; mend the file") from error
    if not isinstance(content, dict):
        kind = "empty" if content is None else f"a {type(content).__name__}"
        raise InputError(f"{where} is {kind}; write a mapping with the key steps")
    if any(not isinstance(key, str) for key in content):
        raise InputError(f"{where} has a key that is no text; keys are {_keys(Recipe)}")
    return make_recipe(content, where)


def load_recipe(path: Path | str) -> Recipe:
    """Read a recipe from a YAML file.

    Raises:
        InputError: The file cannot be read, or holds no recipe.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "no UTF-8 text"
        raise InputError(f"recipe '{path}' cannot be read: {reason}; name a YAML file") from error
    return parse_recipe(text, str(path))


def validation_line(error: ValidationError, where: str) -> str:
    """The first problem in one line: where, which key, what stands there, what to write."""
    problems = error.errors()
    # Beside an unknown key a missing one is most likely the same, misspelled; a list is "too short"
    # where all of it fails, which is no problem of its own.
    last = {"missing": 1, "too_short": 2}
    first = min(problems, key=lambda p: last.get(p["type"], 0))
    paths = {_path(p) for p in problems}
    # What fails because a part of it fails is no problem of its own.
    more = len({p for p in paths if not any(q != p and q.startswith(p) for q in paths)}) - 1
    rest = f" (and {more} more)" if more else ""
    return f"{where}: {_path(first) or 'the recipe'}: {_problem(first)}{rest}"


def _problem(first: ErrorDetails) -> str:
    kind, value = first["type"], in_short(first["input"])
    if kind == "extra_forbidden":
        return f"unknown key; keys are {_keys(_owner(first))}"
    if kind == "missing":
        return "missing; add it"
    if kind == "too_short":
        return "empty; give at least one"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        tag = first.get("ctx", {}).get("tag", value)
        return f"no step '{tag}'; steps are {', '.join(STEPS)}"
    if kind in ("model_type", "model_attributes_type") and first["loc"][0] == "text":
        return f"{value} is no list of settings; write them such as {{max_length: 64}}"
    if kind in ("model_type", "model_attributes_type"):
        return f"{value} is no step; write one such as 'prune: {{method: l1, target: macs=0.5}}'"
    if kind == "value_error" and isinstance(first["input"], dict):
        return complaint(first)  # of settings that do not go together; it names them
    return f"{value}: {complaint(first)}"


def _path(problem: ErrorDetails) -> str:
    """Where a problem is, as ``steps[1].prune.target``."""
    text = ""
    for part in problem["loc"]:
        if isinstance(part, int):
            text += f"[{part}]"
        elif _NAME.fullmatch(part):
            text += f".{part}" if text else part
    return text


def _owner(problem: ErrorDetails) -> type[Record]:
    path = problem["loc"][:-1]
    if path[:2] == ("text", "cleaning"):
        return Cleaning
    if path[:1] == ("text",):
        return TextOptions
    tags = [part for part in path if isinstance(part, str) and part in STEPS]
    return STEPS[tags[-1]] if tags else Recipe


def _keys(record: type[Record]) -> str:
    return ", ".join(name for name in record.model_fields if name != "step")


def _flat(step: Step) -> tuple[Step, ...]:
    return step.steps if isinstance(step, Repeat) else (step,)


def _pin(step: Any, precision: str, layout: str) -> Any:
    if isinstance(step, Repeat):
        steps = tuple(_pin(inner, precision, layout) for inner in step.steps)
        return step.model_copy(update={"steps": steps})
    if not isinstance(step, Train):
        return step
    changes: dict[str, str] = {}
    if step.precision == "auto":
        changes["precision"] = precision
    if step.layout == "auto":
        changes["layout"] = layout
    return step.model_copy(update=changes)
