"""Runs that were not done alike: seeds of one mean, and methods whose lead may be their training's."""

import pytest

from prunus.records import Comparison
from prunus.report import comparison_rows, report_warnings


def recipe(method, epochs=None, *, more=None, **keys):
    """As a record holds it; ``more``: of the training."""
    steps = [{"prune": {"method": method, "target": "macs=0.5"}}, {"recalibrate": {"images": 64}}]
    if epochs is not None:
        steps.append({"train": {"epochs": epochs, "lr": 0.01, "layout": "auto", **(more or {})}})
    return {"name": method, "steps": steps, "ignore": [], **keys}


@pytest.fixture
def told(run_of):
    """Warnings on runs that were not done alike; each run is a method, a seed and a recipe."""

    def make(*runs):
        records = tuple(run_of(name, seed, recipe=done) for name, seed, done in runs)
        comparison = Comparison(title="t", runs=records)
        warnings = report_warnings(comparison, comparison_rows(comparison))
        return [warning for warning in warnings if "alike" in warning]

    return make


def test_seeds_that_were_trained_differently_are_no_one_mean(told):
    runs = [("l1", 0, recipe("l1", 4))]
    runs += [("l1", seed, recipe("l1", 1, more={"lr": 0.001})) for seed in (1, 2)]
    (warning,) = told(*runs)
    assert warning == (
        "l1 at macs=0.5: its seeds were not done alike, and are no one mean: "
        "steps[2].train.epochs is 4 for seed 0, 1 for seed 1 and seed 2; "
        "steps[2].train.lr is 0.01 for seed 0, 0.001 for seed 1 and seed 2."
    )
    assert told(("mine", 0, recipe("l1", 4)), ("mine", 1, recipe("l1", 4, ignore=["conv1"])))


def test_seeds_that_differ_in_what_decides_nothing_are_alike(told):
    other = recipe("l1", 4, more={"layout": "channels_last"}, weights="elsewhere", seed=1)
    assert told(("l1", 0, recipe("l1", 4)), ("l1", 1, other)) == []


def test_methods_that_were_trained_differently_are_told_of(told):
    names = ("l1", "l2", "taylor")
    runs = [(name, 0, recipe(name, epochs)) for name, epochs in zip(names, (4, 1, 4), strict=True)]
    (warning,) = told(*runs)
    assert warning == (
        "Methods were not trained alike, and a lead may be the training's: epochs is 4 for l1 at "
        "macs=0.5 and taylor at macs=0.5, 1 for l2 at macs=0.5."
    )
    (bare,) = told(runs[0], ("l2", 0, recipe("l2")))
    assert bare.endswith("l1 at macs=0.5 had one, l2 at macs=0.5 had none.")


@pytest.mark.parametrize(
    ("name", "method"),
    [("scratch", "scratch"), ("mine", "l2")],  # a length of its own; a recipe of one's own
)
def test_rows_that_promise_no_equal_training_are_not_told_of(told, name, method):
    assert told(("l1", 0, recipe("l1", 4)), (name, 0, recipe(method, 9))) == []


@pytest.mark.parametrize(
    "steps",
    [None, [], ["prune"], [{"prune": None}], [{"prune": {}}], [{"train": {"epochs": 1}}]],
    ids=str,
)
def test_recipes_of_any_form_are_read(told, steps):
    assert told(("l1", 0, {"steps": steps}), ("l2", 0, recipe("l2", 4))) == []


def test_settings_of_fresh_weights_do_nothing_for_others(told):
    """``--scratch-epochs`` stands in the training of all rows, and holds for one."""
    longer = {"scratch_epochs": 3, "scratch_lr": 0.1}
    assert not told(("l1", 0, recipe("l1", 2)), ("taylor", 0, recipe("taylor", 2, more=longer)))
    assert not told(("l1", 0, recipe("l1", 2)), ("l1", 1, recipe("l1", 2, more=longer)))
    shorter = recipe("scratch", 2, more={"scratch_epochs": 4})
    assert told(("scratch", 0, recipe("scratch", 2, more=longer)), ("scratch", 1, shorter))
