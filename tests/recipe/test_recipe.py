"""Recipes read from YAML: what is written comes back, and what is wrong is named by its key path."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunus.errors import InputError
from prunus.recipe import (
    Deploy,
    Prune,
    Recalibrate,
    Recipe,
    Repeat,
    Train,
    load_recipe,
    make_recipe,
    parse_recipe,
)

TEXT = """
version: 1
model: digits_cnn
arguments: {width: 0.5}
weights: dense.safetensors
data: digits
seed: 3
ignore: [conv1, "conv*"]
min_units: 2
round_to: 4
steps:
  - repeat:
      times: 2
      schedule: [0.7, 0.5]
      steps:
        - prune: {method: taylor, target: macs=0.5, options: {images: 64}}
        - recalibrate
        - train: {epochs: 1, lr: 1e-2}
  - train: {epochs: 2, lr: 0.01, distill_alpha: 0.5, scratch_epochs: 9}
"""


def test_a_yaml_recipe_says_what_it_says() -> None:
    recipe = parse_recipe(TEXT)
    round_steps = (
        Prune(method="taylor", target="macs=0.5", options={"images": 64}),
        Recalibrate(),
        Train(epochs=1, lr=0.01),
    )
    assert recipe.steps == (
        Repeat(times=2, schedule=(0.7, 0.5), steps=round_steps),
        Train(epochs=2, lr=0.01, distill_alpha=0.5, scratch_epochs=9),
    )
    assert (recipe.seed, recipe.ignore, recipe.round_to) == (3, ("conv1", "conv*"), 4)


def test_off_is_a_word_though_yaml_calls_it_false() -> None:
    text = "model: digits_cnn\ndata: digits\nsteps: [{deploy: {weights: int8, smoothing: off}}]"
    (step,) = parse_recipe(text).steps
    assert isinstance(step, Deploy)
    assert step.smoothing == "off"


def test_yaml_json_and_plain_values_go_both_ways() -> None:
    recipe = parse_recipe(TEXT)
    assert parse_recipe(recipe.to_yaml()) == recipe
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe
    assert make_recipe(recipe.model_dump()) == recipe
    assert list(recipe.model_dump()["steps"][0]) == ["repeat"]


def test_numbers_need_no_dot_before_an_exponent() -> None:
    """Factories and methods get what stands in their settings as it is read."""
    recipe = parse_recipe(
        "arguments: {p: 1e-3, q: -1.5E3, name: '1e-3', code: 1e-3a}\n"
        "steps: [prune: {method: l1, target: macs=0.5, options: {tolerance: 2e-1}}]"
    )
    assert recipe.arguments == {"p": 0.001, "q": -1500.0, "name": "1e-3", "code": "1e-3a"}
    (step,) = recipe.steps
    assert isinstance(step, Prune)
    assert step.options == {"tolerance": 0.2}
    assert parse_recipe(recipe.to_yaml()) == recipe


@given(
    st.lists(
        st.one_of(
            st.builds(
                Prune,
                method=st.sampled_from(["l1", "random"]),
                target=st.sampled_from(["macs=0.5", "params=1000"]),
            ),
            st.builds(Recalibrate, images=st.integers(2, 999)),
            st.builds(Train, epochs=st.integers(1, 9), lr=st.floats(1e-6, 1.0)),
        ),
        min_size=1,
        max_size=4,
    ),
    st.integers(1, 5),
)
def test_any_recipe_survives_yaml(steps: list[Prune | Recalibrate | Train], times: int) -> None:
    recipe = make_recipe({"steps": (*steps, Repeat(times=times, steps=tuple(steps)))})
    assert parse_recipe(recipe.to_yaml()) == recipe


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("seed: 3", "sead: 3", ["sead", "unknown key", "seed"]),
        ("round_to: 4\nsteps:", "step:", ["my.yaml: step: unknown key", "steps"]),
        ("seed: 3", "seed: many", ["seed", "'many'", "integer"]),
        ("seed: 3", "seed: yes", ["seed: True: input should be a number, not a boolean"]),
        ("version: 1", "version: on", ["version: True: input should be a number"]),
        ("epochs: 2, lr: 0.01", "epochs: yes, lr: on", ["[1].train.epochs: True", "(and 1 more)"]),
        ("[0.7, 0.5]", "[0.7, on]", ["steps[0].repeat.schedule[1]: True: input should be a numb"]),
        ("version: 1", "version: 2", ["version", "2"]),
        ("options: {images: 64}", "option: {}", ["prune.option", "unknown key", "options"]),
        ("epochs: 2", "epochs: 0", ["steps[1].train.epochs", "0", "greater than or equal to 1"]),
        ("- recalibrate", "- rest", ["steps[0].repeat.steps[1]", "'rest'", "recalibrate"]),
        ("- recalibrate", "- 7", ["steps[0].repeat.steps[1]", "7"]),
        ("- recalibrate", "- recalibrate: 7", ["recalibrate", "mapping"]),
        (
            "- recalibrate",
            "- recalibrate: {augment: maybe}",
            ["augment: 'maybe'", "'auto', True or False"],
        ),
        ("- recalibrate", "- {train: {}, prune: {}}", ["one name", "train, prune"]),
        ("method: taylor, target: macs=0.5", "method: taylor, target: 0.5", ["write macs=0.5"]),
        (
            "- recalibrate",
            "- train: {epochs: 5}",
            ["steps[0].repeat.steps[1].train.lr: missing; add it"],
        ),
        ("schedule: [0.7, 0.5]", "schedule: fast", ["steps[0].repeat.schedule", "fast"]),
    ],
)
def test_a_wrong_key_is_named_with_path_value_and_remedy(
    old: str, new: str, said: list[str]
) -> None:
    assert old in TEXT
    with pytest.raises(InputError) as caught:
        parse_recipe(TEXT.replace(old, new), "my.yaml")
    message = str(caught.value)
    assert message.startswith("my.yaml: ")
    assert "\n" not in message
    for part in said:
        assert part in message


def test_a_list_that_is_too_long_is_told_with_how_many_it_may_hold() -> None:
    with pytest.raises(InputError) as caught:
        parse_recipe("steps: [deploy: {engine: openvino, shape: [1, 64, 3]}]", "my.yaml")
    assert str(caught.value) == "my.yaml: steps[0].deploy.shape: [1, 64, 3]: give at most 2"


def test_of_settings_that_do_not_go_together_those_are_told_and_not_all() -> None:
    with pytest.raises(InputError) as caught:
        parse_recipe("steps: [deploy: {engine: torch, shape: [1]}]", "my.yaml")
    told = "shape is for engine=openvino, which plans ahead for it; leave it out with engine=torch"
    assert str(caught.value) == f"my.yaml: steps[0].deploy: {told}"


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ("[train: {epochs: 5}]", "steps[0].train.lr: missing; add it"),
        ("[prune]", "steps[0].prune.method: missing; add it"),
        ("[prune: {}, train: {epochs: 5}]", "steps[0].prune.method: missing; add it (and 1 more)"),
        ("[]", "steps: empty; give at least one"),
    ],
)
def test_steps_that_all_lack_something_are_not_called_empty(steps: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_recipe(f"steps: {steps}", "my.yaml")
    assert str(caught.value) == f"my.yaml: {said}"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("steps: [", "line 1"),
        ("", "empty"),
        ("- 1", "a list"),
        ("steps: []", "steps"),
        ("!!python/object/apply:os.system [ls]", "no valid YAML"),
        ("1: 2", "no text"),
    ],
)
def test_what_is_no_recipe_is_refused(text: str, said: str) -> None:
    with pytest.raises(InputError, match=r"r\.yaml") as caught:
        parse_recipe(text, "r.yaml")
    assert said in str(caught.value)


MERGED = """
steps:
  - repeat:
      times: 2
      steps:
        - prune: {method: l1, target: macs=0.5}
        - train: &first {epochs: 1, lr: 0.1, batch_size: 16}
        - train: &base {<<: *first, lr: 0.05}
  - train: {<<: *base, lr: 0.01}
  - train: {<<: *base, epochs: 3}
"""


def test_settings_that_are_merged_are_given_once_wherever_they_are_merged_again() -> None:
    assert [(t.epochs, t.lr, t.batch_size) for t in parse_recipe(MERGED).trainings] == [
        (1, 0.1, 16),
        (1, 0.05, 16),
        (1, 0.01, 16),
        (3, 0.05, 16),
    ]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("{epochs: 1, lr: 0.1, batch_size: 16}", "{epochs: 1, lr: 0.1, epochs: 2}"),
        ("{<<: *first, lr: 0.05}", "{<<: *first, lr: 0.05, lr: 0.06}"),
        ("{<<: *base, lr: 0.01}", "{<<: *base, lr: 0.01, lr: 0.02}"),
    ],
)
def test_a_key_twice_is_refused_beside_merged_ones_too(old: str, new: str) -> None:
    assert old in MERGED
    with pytest.raises(InputError, match="the key '(epochs|lr)' is given twice"):
        parse_recipe(MERGED.replace(old, new))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.yaml.*No such file"):
        load_recipe(tmp_path / "none.yaml")


def test_picked_execution_replaces_auto_alone() -> None:
    recipe = make_recipe(
        {
            "steps": [
                Repeat(times=1, steps=(Train(epochs=1, lr=1.0, layout="contiguous"),)),
                Train(epochs=1, lr=1.0),
            ]
        }
    )
    assert recipe.wants_execution
    pinned = recipe.pinned("bfloat16", "channels_last")
    inner, outer = pinned.steps
    assert isinstance(inner, Repeat)
    assert isinstance(inner.steps[0], Train)
    assert (inner.steps[0].precision, inner.steps[0].layout) == ("bfloat16", "contiguous")
    assert isinstance(outer, Train)
    assert (outer.precision, outer.layout) == ("bfloat16", "channels_last")
    assert not pinned.wants_execution


def test_settings_of_the_cleaning_stand_beside_the_others_in_a_recipe() -> None:
    steps = "steps: [{recalibrate: {}}]"
    beside = parse_recipe(f"text: {{max_length: 64, lower: true, language: ru}}\n{steps}").text
    within = parse_recipe(
        f"text: {{max_length: 64, cleaning: {{lower: true, language: ru}}}}\n{steps}"
    ).text
    assert beside == within
    assert beside is not None
    assert (beside.max_length, beside.cleaning.lower, beside.cleaning.language) == (64, True, "ru")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{max_len: 64}", r"text\.max_len: unknown key; keys are text_column, label_column, "),
        ("{cleaning: {low: 1}}", r"text\.cleaning\.low: unknown key; keys are lower, stop_words, "),
        ("short", r"text: 'short' is no list of settings; write them such as \{max_length: 64\}"),
        ("{language: de}", r"text\.cleaning\.language: 'de': input should be 'en' or 'ru'"),
    ],
)
def test_a_wrong_setting_of_texts_is_told_with_those_that_there_are(text: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        parse_recipe(f"text: {text}\nsteps: [{{recalibrate: {{}}}}]")
