"""What the command line says beside a recipe takes the place of that alone which it names."""

import pytest

from prunus.cli.build import overridden
from prunus.cli.given import Cut, Subject
from prunus.data import Cleaning, TextOptions
from prunus.recipe import Recipe, make_recipe

WHOLE = Cut(None, (), ())
STEPS = [{"prune": {"method": "l1", "target": "macs=0.5"}}]
SAYS = {
    "model": "bert_tiny",
    "arguments": {"hidden": 32, "layers": 2},
    "data": "text:a.csv",
    "text": {"test_file": "b.csv", "vocab_size": 200, "max_length": 16, "lower": True},
    "steps": STEPS,
}


def _given(
    text: tuple[str, ...] = (), arguments: tuple[str, ...] = (), model: str | None = None
) -> Recipe:
    subject = Subject(model, arguments, None, None, text)
    return overridden(make_recipe(SAYS), subject, WHOLE, None)


def test_settings_of_texts_that_are_not_named_stay_the_recipes() -> None:
    said = TextOptions(
        test_file="b.csv", vocab_size=200, max_length=16, cleaning=Cleaning(lower=True)
    )
    assert _given().text == said
    assert _given(("max_length=32",)).text == said.model_copy(update={"max_length": 32})
    # A default and an empty value can be asked for, too.
    plain = said.model_copy(update={"max_length": 128, "test_file": None})
    assert _given(("max_length=128", "test_file=null")).text == plain


def test_settings_of_the_cleaning_are_replaced_one_by_one() -> None:
    found = _given(("stop_words=true",)).text
    assert found is not None
    assert found.cleaning == Cleaning(lower=True, stop_words=True)
    found = _given(("lower=false",)).text
    assert found is not None
    assert found.cleaning == Cleaning()
    assert found.test_file == "b.csv"


def test_a_recipe_without_settings_of_texts_takes_the_given_ones() -> None:
    recipe = make_recipe({**SAYS, "text": None})
    subject = Subject(None, (), None, None, ("max_length=32",))
    assert overridden(recipe, subject, WHOLE, None).text == TextOptions(max_length=32)


def test_arguments_that_are_not_named_stay_the_recipes() -> None:
    assert _given().arguments == {"hidden": 32, "layers": 2}
    assert _given(arguments=("layers=3",)).arguments == {"hidden": 32, "layers": 3}
    assert _given(arguments=("layers=3",), model="bert_tiny").arguments["hidden"] == 32
    # Another network need not know them.
    assert _given(arguments=("hidden=8",), model="bilstm").arguments == {"hidden": 8}
    assert _given(model="bilstm").arguments == {}


@pytest.mark.parametrize(("asked", "found"), [(None, (4, 8)), (1, (1, 1)), (2, (2, 2))])
def test_widths_of_one_unit_can_be_asked_for_in_the_place_of_a_recipes(
    asked: int | None, found: tuple[int, int]
) -> None:
    recipe = make_recipe({**SAYS, "min_units": 4, "round_to": 8})
    subject = Subject(None, (), None, None)
    mine = overridden(recipe, subject, Cut(None, (), (), asked, asked), None)
    assert (mine.min_units, mine.round_to) == found


def test_a_seed_of_zero_can_be_asked_for_in_the_place_of_a_recipes() -> None:
    recipe = make_recipe({**SAYS, "seed": 3})
    assert overridden(recipe, Subject(None, (), None, None), WHOLE, 0).seed == 0
