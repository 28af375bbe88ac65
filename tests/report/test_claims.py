"""What the sentences may claim: ties, equal seeds, seeds without a score, failures, other machines."""

import math

import pytest

from prunus.records import AT_CHANCE, SHARED, UNTRAINED, Comparison, RunRecord, Score
from prunus.report import comparison_rows, figures, markdown_table, report_warnings
from prunus.report import summary_sentences as sentences
from prunus.report.summary import told_notes

STAGE = "after_training"


@pytest.fixture
def scored(run_of):
    """A run with one score on the test split, or none, beside the dense network's."""

    def make(method: str, seed: int, value: float | None, stage=STAGE, **changes) -> RunRecord:
        found = {"dense": 0.92} if value is None else {"dense": 0.92, stage: value}
        scores = tuple(
            Score(value=v, samples=10_000, split="test", stage=s) for s, v in found.items()
        )
        fields = {"scores": scores, "test_evaluations": {}, **changes}
        run: RunRecord = run_of(method, seed, **fields)
        return run

    return make


def said(*runs):
    comparison = Comparison(title="t", runs=runs)
    rows = comparison_rows(comparison)
    return rows, sentences(comparison, rows), report_warnings(comparison, rows)


def test_equal_means_are_no_lead(scored):
    # 0.90 + 0.91 + 0.92 and 3 x 0.91: one mean, in another order of rounding
    first = [scored("a", seed, value) for seed, value in enumerate((0.90, 0.91, 0.92))]
    rows, told, _ = said(*first, *(scored("b", seed, 0.91) for seed in range(3)))
    assert told[0].endswith("; b (91.00 %) scores the same.") and "lead" not in told[0]
    assert not any(row.bold for row in rows)


def test_all_who_score_the_same_are_named(scored):
    _, told, _ = said(*(scored(name, 0, 1.0) for name in "abc"), scored("d", 0, 0.9))
    assert told[0].endswith("; b, c score the same.")


def test_a_row_that_is_named_by_its_test_score_is_said_to_have_luck(scored):
    names = ("a", "b", "c")
    _, _, warnings = said(*(scored(name, 0, 0.8) for name in names), scored("d", 0, None))
    (luck,) = [warning for warning in warnings if "luckiest" in warning]
    assert "test split, where the best of 3 is in part the luckiest" in luck
    _, _, warnings = said(scored("a", 0, 0.8), scored("a", 1, 0.9))  # nothing to choose from
    assert not any("luckiest" in warning for warning in warnings)


def test_a_lead_that_the_table_rounds_away_shows_in_the_sentence(scored):
    # 99.5±0.2 beside 99.4±0.2 in the terminal, of one decimal
    runs = [scored("a", seed, 0.9938 + 0.0016 * seed) for seed in range(3)]
    _, told, _ = said(*runs, *(scored("b", seed, 0.9921 + 0.0015 * seed) for seed in range(3)))
    assert "a, top-1 99.54 ± 0.16 % after training" in told[0]
    assert told[0].endswith("its lead over b (99.36 ± 0.15 %) exceeds the spread of the seeds.")


def test_seeds_that_change_nothing_are_one_measurement(scored):
    runs = [scored("a", seed, 0.9001) for seed in range(3)]
    rows, told, _ = said(*runs, *(scored("b", seed, 0.9) for seed in range(3)))
    # One image of 10,000, and the same in every seed: three seeds have not shown it three times.
    assert "neither score depends on the seed" in told[0] and "exceeds" not in told[0]
    assert not any(row.bold & {f"top1_{STAGE}"} for row in rows)


def test_a_mean_over_some_seeds_says_so(scored):
    runs = [scored("a", seed, value) for seed, value in enumerate((0.95, None, math.nan))]
    _, told, _ = said(*runs, *(scored("b", seed, 0.9) for seed in range(3)))
    assert "a, top-1 95.00 % (1 of 3 seeds) after training" in told[0]


def test_scores_that_are_no_numbers_were_measured(scored):
    _, told, _ = said(*(scored("a", seed, math.nan) for seed in range(3)))
    assert told[0] == "No method at macs=0.5 has a finite top-1 on the test split."
    _, told, _ = said(scored("a", 0, None).model_copy(update={"scores": ()}))
    assert told[0] == "No method at macs=0.5 was measured on the test split."


def test_a_lead_over_a_network_that_was_not_trained_names_its_stage(scored):
    runs = [scored("a", seed, 0.91 + 0.001 * seed) for seed in range(3)]
    runs += [scored("b", seed, 0.90, stage="after_recalibration") for seed in range(3)]
    _, told, _ = said(*runs)
    assert told[0].endswith(
        "its lead over b (after recalibration, 90.00 %) exceeds the spread of the seeds."
    )


def test_what_failed_is_a_warning(scored):
    note = "b: wide (x) (seed 2) failed: method 'b' refused\nthe target."
    comparison = Comparison(title="t", runs=(scored("a", 0, 0.9, notes=("other", note)),))
    expected = "Failed, and in no number here: b: wide (x) (seed 2): method 'b' refused the target."
    assert report_warnings(comparison, comparison_rows(comparison))[0] == expected
    assert "in no number here: b: wide" in markdown_table(comparison)
    assert not [w for w in report_warnings(comparison, comparison_rows(comparison)) if "other" in w]


def test_a_dense_network_that_guesses_is_a_warning(scored):
    guess = f"{AT_CHANCE} a guess: top-1 33.33%; train it first"
    _, _, warnings = said(scored("a", 0, 0.3, notes=(guess,)), scored("a", 1, 0.3, notes=(guess,)))
    assert (
        warnings[0] == "The dense network is no better than a guess: top-1 33.33%; train it first."
    )
    assert sum("no better than" in warning for warning in warnings) == 1


def test_a_null_baseline_that_was_not_trained_is_none(scored):
    note = f"{UNTRAINED}, and answers by chance; train it"
    bare = scored("scratch", 0, 0.95, null=True, notes=(note,))
    rows, told, warnings = said(bare, scored("l1", 0, 0.9), scored("random", 0, 0.9, null=True))
    assert [row.kind for row in rows] == ["dense", "method", "method", "null"]
    assert f"scratch at macs=0.5: {note}." in warnings
    assert "Null baselines, which every method has to beat: random." in warnings
    assert "null baseline" not in told[0]
    trained = scored("scratch", 0, 0.95, null=True)
    rows, told, warnings = said(trained, scored("l1", 0, 0.9))
    assert rows[1].kind == "null" and "null baseline" in told[0]
    assert not any("not trained" in warning for warning in warnings)


def test_notes_of_all_rows_are_told_once_with_whose_they_are(scored):
    failed, warned = "b (seed 2) failed: no", (f"{AT_CHANCE} a guess", f"{UNTRAINED}; train it")
    runs = (
        scored("a", 0, 0.9, notes=("of all", "of a", "of two", failed, *warned)),
        scored(
            "a", 1, 0.9, notes=("of all", "of a", "a: of its own", f"steps[0].prune: {SHARED} 'b'")
        ),
        scored("b", 0, 0.9, notes=("of all", "of two")),
        scored("c", 0, 0.9, notes=("of all", "of\nc", "c: of its own")),
    )
    assert told_notes(Comparison(title="t", runs=runs)) == [
        "of all",
        "a: of a",
        "a (seed 0), b: of two",
        failed,
        "a (seed 1): of its own",
        "c: of c",
        "c: of its own",
    ]


def test_a_method_without_rivals_is_no_best_one(scored):
    _, told, _ = said(scored("a", 0, 0.9))
    assert told[0].startswith("Only method at macs=0.5: a, top-1 90.00 %")


def test_an_installed_package_is_known_by_its_version(scored, environment_of):
    bare = environment_of(commit=None, versions={"torch": "2"})
    installed = environment_of(commit=None, versions={"torch": "2", "prunus": "0.1.0"})
    texts = [" ".join(said(scored("a", 0, 0.9, environment=e))[2]) for e in (bare, installed)]
    assert ["do not know" in text for text in texts] == [True, False]


def test_a_ratio_that_is_missing_is_not_called_a_latency(scored, latency_of):
    run = scored("a", 0, 0.9, latency=latency_of(5.0, threads=2))
    _, _, warnings = said(run)
    assert any(w.startswith("Latency / dense n/a for a at macs=0.5: measured on") for w in warnings)
    assert not any(w.startswith("Latency n/a") for w in warnings)


def test_steps_that_a_recipe_does_not_have_are_not_missing(scored):
    _, _, warnings = said(scored("a", 0, 0.9, seconds={"deploy": 2.0, "total": 2.0}))
    assert not any(w.startswith(("Search", "Training")) for w in warnings)
    _, _, warnings = said(scored("a", 0, 0.9, seconds={}))
    assert "Search n/a for a at macs=0.5: not recorded." in warnings


@pytest.mark.parametrize(
    ("params", "expected"),
    [(270_000, None), (540_000, "2.00× more parameters"), (90_000, "3.00× fewer parameters")],
)
def test_costs_that_rise_or_stay_are_not_called_fewer(scored, params, expected):
    run = scored("a", 0, 0.9)
    run = run.model_copy(update={"cost": run.cost.model_copy(update={"params": params})})
    _, told, _ = said(run)
    assert "2.00× fewer MACs" in told[0]
    assert expected in told[0] if expected else "parameters" not in told[0]


def test_rows_of_one_finding_keep_names_with_any_sign(scored, latency_of):
    runs = [scored(name, 0, 0.9, latency=latency_of(10.0)) for name in ("a: (x, y)", "b")]
    _, _, warnings = said(*runs)
    assert warnings[0] == (
        "MACs fell, but the measured latency fell by no more than its spread: a: (x, y) at macs=0.5 "
        "2.00×, 10.0 ms, dense 10.0 ms, spread 0.300 ms; b at macs=0.5 2.00×, 10.0 ms, dense 10.0 ms, "
        "spread 0.300 ms."
    )


@pytest.fixture
def deployed(scored, latency_of, deployed_of):
    def make(name: str, engine: str, value: float, ms: float, **changes) -> RunRecord:
        latency, dense = latency_of(ms, engine=engine), latency_of(40.0)
        row = deployed_of(latency, dense)
        fields = {"latency": latency, "dense_latency": dense, "deployed": row, "target": {}}
        run = scored(name, 0, value, stage="deployed", **{**fields, **changes})
        cost = run.cost.model_copy(update={"size_bytes": 5_000_000})
        deployed: RunRecord = run.model_copy(update={"cost": cost})
        return deployed

    return make


def test_engines_are_told_apart_by_the_record_and_not_by_brackets(deployed):
    rows = [deployed(f"cut ({n} %) (torch)", "torch", 0.92, 5.0 + n) for n in (30, 50)]
    rows += [deployed("cut (30 %) (onnxruntime)", "onnxruntime", 0.92, 70.0)]
    bare = [deployed(f"l1 ({n})", "torch", 0.9, 9.0, deployed=None) for n in ("short", "long")]
    _, told, _ = said(*rows, *bare)
    # 70 ms against 35 ms
    (engines,) = [sentence for sentence in told if "takes" in sentence]
    assert engines.startswith("cut (30 %): torch is the fastest")
    assert "onnxruntime takes 2.00× as long" in engines


def test_targets_are_not_engines_of_one_row(deployed):
    runs = [
        deployed("int8 (torch)", "torch", value, 8.0, target={"macs": macs})
        for macs, value in ((0.5, 0.92), (0.3, 0.91))
    ]
    _, told, _ = said(*runs)
    assert not any("takes" in sentence for sentence in told)
    assert "Smallest within 0.5 points of dense in top-1: int8 (torch) at macs=0.5, " in told[2]


def test_times_of_two_machines_are_not_set_beside_each_other(deployed, environment_of):
    fast = environment_of(cpu="another")
    runs = (
        deployed("int8 (torch)", "torch", 0.92, 8.0),
        deployed("int8 (onnxruntime)", "onnxruntime", 0.92, 2.0, environment=fast),
    )
    _, told, _ = said(*runs)
    assert not any("astest" in sentence for sentence in told)
    buttons = figures(Comparison(title="t", runs=runs))["pareto"].layout.updatemenus[0].buttons
    lines = {b.label: b.args[0]["x"][0] for b in buttons}  # of the first trace, the front
    assert not lines["Latency, median [ms]"] and lines["Model file [MB]"]


def test_of_two_of_one_size_the_better_is_named(deployed):
    runs = [deployed(n, "torch", v, 9.0) for n, v in (("a", 0.8), ("b", 0.9))]

    def beside(megabytes):
        size = int(megabytes * 1e6)
        cost = runs[0].dense_cost.model_copy(update={"size_bytes": size})
        return said(*(run.model_copy(update={"dense_cost": cost}) for run in runs))[1]

    assert "Smallest of all: b, 90.00 %, 5.00 MB, 9.00 ms." in beside(6.0)
    # A small file of a network grows in some formats: that is no success.
    assert not any("Smallest of all" in sentence for sentence in beside(5.0))


def test_a_drop_of_just_the_allowed_size_is_allowed(deployed):
    # In binary 0.5016 - 0.005 is above 0.4966, by rounding alone.
    run = deployed("a", "torch", 0.4966, 9.0)
    dense = run.scores[0].model_copy(update={"value": 0.5016})
    _, told, _ = said(run.model_copy(update={"scores": (dense, *run.scores[1:])}))
    assert 0.5016 - 0.005 > 0.4966 and told[1].startswith("Smallest within 0.5 points")
