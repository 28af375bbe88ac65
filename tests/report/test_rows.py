"""Rows: mean, spread and count by hand calculation; what is bold; what is refused."""

import math
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunus.errors import InputError
from prunus.records import Certificate, Comparison, Score
from prunus.report import (
    Missing,
    Stat,
    clear_winner,
    comparison_rows,
    report_warnings,
    summarize,
    summary_sentences,
)
from prunus.report.spread import Value, summarize_fixed


def one(rows, method):
    (row,) = [row for row in rows if row.method == method]
    return row


def number(value: Value) -> Stat:
    assert isinstance(value, Stat), value
    return value


def reason(value: Value) -> str:
    assert isinstance(value, Missing), value
    return value.reason


def spread(stat: Stat) -> float:
    assert stat.std is not None, stat
    return stat.std


def near(value: Value, mean: float, std: float, n: int) -> bool:
    """Equal but for rounding; the count exactly."""
    stat = number(value)
    return (stat.mean, spread(stat)) == pytest.approx((mean, std)) and stat.n == n


def test_dense_baseline_is_first_and_null_baselines_are_marked(comparison):
    rows = comparison_rows(comparison)
    assert [row.kind for row in rows] == ["dense", "method", "method", "null"]
    assert [row.method for row in rows] == ["dense", "genetic", "geometry", "random"]


def test_mean_std_n_by_hand(comparison):
    row = one(comparison_rows(comparison), "genetic")
    # 0.910, 0.914, 0.912: mean 0.912; deviations -2, 2, 0 (times 1e-3); 8e-6 / (3 - 1) = (2e-3)^2
    assert near(row.values["top1_after_training"], 0.912, 0.002, 3)
    # 20.3, 20.4, 20.2 million: mean 20.3, std 0.1
    assert near(row.values["macs"], 20.3e6, 0.1e6, 3)
    # 6.0, 6.2, 6.1 ms of 10 ms
    assert near(row.values["latency_ratio"], 0.61, 0.01, 3)
    # p95 is 1 ms above each median
    assert near(row.values["latency_p95_ms"], 7.1, 0.1, 3)
    # search 60, 61, 62 s, training 300 s, total is their sum
    assert near(row.values["seconds_total"], 361, 1, 3)
    assert row.values["params_fold"] == Stat(2.0, 0.0, 3)
    # largest of 1e-7 (seed + 1) in eval and 2e-7 (seed + 1) in train mode
    assert (row.certificate.passed, row.certificate.count) == (True, 3)
    assert row.certificate.largest == pytest.approx(6e-7)


def test_dense_row_is_one_network_and_not_nine_samples(comparison):
    dense = comparison_rows(comparison)[0]
    assert dense.values["top1_dense"] == Stat(0.921, None, 1)
    assert dense.values["macs"] == Stat(40_800_000, None, 1)
    assert dense.values["latency_ms"] == Stat(10.0, None, 1)
    assert dense.values["top1_after_cut"] == Missing()


def test_a_record_tells_a_null_baseline_and_the_name_where_it_is_of_before(run_of):
    runs = (
        run_of("mine", null=True),
        run_of("random", null=False),
        run_of("l1"),
        *(run_of(name) for name in ("scratch", "random-search")),
    )
    assert runs[-1].null is None  # as where a file does not hold it
    rows = comparison_rows(Comparison(title="t", runs=runs))
    kinds = ["dense", "null", "method", "method", "null", "null"]
    assert [row.kind for row in rows] == kinds


def test_dense_row_for_every_engine(run_of, latency_of):
    onnx = {"engine": "onnxruntime"}
    runs = [run_of(seed=seed) for seed in range(3)]
    runs += [
        run_of(
            "geometry",
            seed,
            latency=latency_of(2.0, **onnx),
            dense_latency=latency_of(4.0, **onnx),
        )
        for seed in range(2)
    ]
    rows = comparison_rows(Comparison(title="two engines", runs=tuple(runs)))
    assert [number(row.values["latency_ms"]).mean for row in rows[:2]] == [10.0, 4.0]
    assert "onnxruntime" in rows[1].method
    assert one(rows, "geometry").values["latency_ratio"].mean == 0.5


def test_ratio_needs_dense_on_the_same_engine(run_of, latency_of):
    run = run_of(latency=latency_of(1.0, engine="onnxruntime"))
    row = comparison_rows(Comparison(title="t", runs=(run,)))[-1]
    assert "dense on torch" in reason(row.values["latency_ratio"])
    assert row.values["latency_ms"] == Stat(1.0, None, 1)


def test_seeds_measured_differently_are_not_pooled(run_of, latency_of):
    runs = (run_of(seed=0), run_of(seed=1, latency=latency_of(3.0, threads=2)))
    row = comparison_rows(Comparison(title="t", runs=runs))[-1]
    assert "measured differently" in reason(row.values["latency_ms"])


def test_missing_latency_takes_its_reason_from_the_notes(comparison):
    row = one(comparison_rows(comparison), "geometry")
    assert row.values["latency_ms"] == Missing("needs the extra 'openvino'")


def test_bold_only_outside_the_spread(comparison, run_of):
    rows = comparison_rows(comparison)
    # 91.2 leads 90.0 by 1.2 points; the larger std is 0.4 points
    assert "top1_after_training" in one(rows, "genetic").bold
    assert "latency_ms" in one(rows, "genetic").bold
    assert not one(rows, "geometry").bold and not one(rows, "random").bold
    assert not any(key.startswith(("macs", "params", "size")) for r in rows for key in r.bold)
    # Two seeds are too few for the same lead.
    two = [run for run in comparison.runs if run.seed < 2]
    rows = comparison_rows(comparison.model_copy(update={"runs": tuple(two)}))
    assert not any(row.bold for row in rows)
    # No runner-up, no lead.
    alone = Comparison(title="t", runs=tuple(run_of(seed=seed) for seed in range(3)))
    assert not any(row.bold for row in comparison_rows(alone))


def test_the_shortest_total_time_is_bold(run_of):
    runs = [
        run_of(method, seed, seconds={"search": seconds + seed})
        for method, seconds in (("quick", 100.0), ("slow", 300.0))
        for seed in range(3)
    ]
    rows = comparison_rows(Comparison(title="t", runs=tuple(runs)))
    assert "seconds_total" in one(rows, "quick").bold
    assert "seconds_total" not in one(rows, "slow").bold


def test_targets_do_not_compete(comparison, run_of):
    runs = [run for run in comparison.runs if run.method == "genetic"]
    runs += [run_of("geometry", seed, target={"macs": 0.25}) for seed in range(3)]
    rows = comparison_rows(comparison.model_copy(update={"runs": tuple(runs)}))
    assert not any(row.bold for row in rows)
    assert len(summary_sentences(comparison, rows)) == 2


def test_times_of_different_machines_do_not_compete(comparison, environment_of):
    runs = [
        run.model_copy(update={"environment": environment_of(cpu=f"CPU of {run.method}")})
        for run in comparison.runs
    ]
    row = one(comparison_rows(comparison.model_copy(update={"runs": tuple(runs)})), "genetic")
    assert "latency_ms" not in row.bold and "top1_after_training" in row.bold


@pytest.mark.parametrize(
    ("gap", "stds", "counts", "wins"),
    [
        (0.030, (0.010, 0.020), (3, 3), True),
        (0.020, (0.010, 0.0200001), (3, 3), False),
        (0.030, (0.010, 0.040), (3, 3), False),
        (0.030, (0.040, 0.010), (3, 3), False),
        (0.030, (0.010, 0.010), (2, 3), False),
        (0.030, (0.010, 0.010), (3, 2), False),
    ],
)
def test_clear_winner(gap, stds, counts, wins):
    stats = {0: Stat(0.9, stds[0], counts[0]), 1: Stat(0.9 - gap, stds[1], counts[1])}
    assert clear_winner(stats, "higher") == (0 if wins else None)
    assert clear_winner(stats, "lower") == (1 if wins else None)


NUMBERS = st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=8)


@given(NUMBERS, st.randoms(use_true_random=False))
def test_summary_ignores_order_and_keeps_bounds(values, random):
    stat = number(summarize(values))
    shuffled = list(values)
    random.shuffle(shuffled)
    again = number(summarize(shuffled))
    assert again.mean == stat.mean and math.isclose(spread(again), spread(stat), abs_tol=1e-9)
    slack = 1e-9 * max(1.0, *map(abs, values))
    assert min(values) - slack <= stat.mean <= max(values) + slack
    assert stat.n == len(values) and spread(stat) >= 0


def test_missing_and_not_finite_readings_are_left_out():
    assert near(summarize([1.0, Missing("gone"), 3.0]), 2.0, math.sqrt(2), 2)
    assert summarize([math.nan, 1.0]) == Stat(1.0, None, 1)
    assert summarize([Missing("gone"), Missing("other")]) == Missing("gone")
    assert summarize([math.nan]) == Missing("not a finite number")
    assert summarize_fixed([2.0, Missing("gone"), 2.0]) == Stat(2.0, None, 1)
    assert number(summarize_fixed([1.0, 3.0])).n == 2


def test_warns_where_macs_fell_but_latency_did_not(comparison, run_of, latency_of):
    rows = comparison_rows(comparison)
    assert any("measured latency fell by no more" in text for text in one(rows, "random").warnings)
    assert not one(rows, "genetic").warnings
    # A gain of 0.2 ms is within the spread of 0.3 ms, one of 0.4 ms is not.
    for median, warned in ((9.8, True), (9.6, False)):
        run = run_of(latency=latency_of(median))
        row = comparison_rows(Comparison(title="t", runs=(run,)))[-1]
        assert bool(row.warnings) == warned


def test_failed_certificate_is_named(run_of):
    bad = Certificate(
        passed=False,
        eval_difference=0.3,
        train_difference=None,
        samples=4,
        reason="layer2.0.conv1 differs",
    )
    row = comparison_rows(Comparison(title="t", runs=(run_of(certificates=(bad,)),)))[-1]
    assert row.certificate is not None
    assert not row.certificate.passed and row.certificate.largest == 0.3
    assert any("layer2.0.conv1 differs" in text for text in row.warnings)


def test_summary_says_what_the_records_say(comparison):
    rows = comparison_rows(comparison)
    (sentence,) = summary_sentences(comparison, rows)
    assert sentence.startswith("Best method at macs=0.5: genetic, top-1 91.20 ± 0.20 %")
    assert "dense 92.10 %, -0.90 points" in sentence
    assert "exceeds the spread" in sentence
    few = comparison.model_copy(update={"runs": tuple(r for r in comparison.runs if r.seed == 0)})
    (sentence,) = summary_sentences(few, comparison_rows(few))
    assert "may be chance" in sentence


def test_refuses_what_does_not_belong_together(comparison, run_of):
    def refused(match, *runs):
        # model_copy does not validate: the checks must not lean on the record's own.
        bad = comparison.model_copy(update={"runs": runs})
        with pytest.raises(InputError, match=match):
            comparison_rows(bad)

    run = run_of()
    refused("has no runs")
    refused("appears twice", run, run)
    refused("same network and data", run, run_of(seed=1, data="cifar100"))
    other = run.dense_cost.model_copy(update={"macs": 7})
    refused("7 dense macs", run, run_of(seed=1, dense_cost=other))
    refused("more than once", run.model_copy(update={"test_evaluations": {"dense": 2}}))
    refused("more than once", run.model_copy(update={"scores": run.scores + run.scores[-1:]}))
    fewer = tuple(score.model_copy(update={"samples": 100}) for score in run.scores)
    refused("tested on 100 samples, runs before it on 10000", run, run_of(seed=1, scores=fewer))
    f1 = Score(metric="f1", value=0.5, samples=9, split="search", stage="dense")
    refused("one metric", run, run_of(seed=1, scores=(f1,)))


def test_targets_that_six_digits_do_not_tell_apart_are_rows_of_their_own(comparison, run_of):
    runs = [run_of(target={"macs": macs}) for macs in (20_000_000.0, 20_000_049.0)]
    rows = comparison_rows(comparison.model_copy(update={"runs": tuple(runs)}))
    assert [row.target for row in rows[1:]] == ["macs=20000000", "macs=20000049"]


def test_report_imports_no_torch():
    code = "import sys, prunus.report; print('torch' in sys.modules, 'plotly' in sys.modules)"
    path = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=path, check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["False", "True"]


def test_a_stage_is_missed_where_other_runs_have_it_and_else_not(comparison):
    rows = comparison_rows(comparison)
    assert not any("deployed" in said for said in report_warnings(comparison, rows))
    first, *others = comparison.runs
    shorter = first.model_copy(
        update={"scores": tuple(s for s in first.scores if s.stage != "after_recalibration")}
    )
    fewer = Comparison(title="", runs=tuple(r for r in others if r.method != first.method))
    fewer = fewer.model_copy(update={"runs": (shorter, *fewer.runs)})
    said = report_warnings(fewer, comparison_rows(fewer))
    assert any("after recalibration n/a for" in s and "not measured" in s for s in said)


def test_a_row_whose_step_cut_nothing_is_told(comparison, run_of):
    idle = run_of("tucker").model_copy(update={"notes": ("steps[0].prune: nothing was cut",)})
    told = comparison.model_copy(update={"runs": (*comparison.runs, idle)})
    rows = comparison_rows(told)
    wanted = f"A step cut nothing: {one(rows, 'tucker').label}; the notes say which."
    assert wanted in report_warnings(told, rows)
    quiet = report_warnings(comparison, comparison_rows(comparison))
    assert not any("cut nothing" in said for said in quiet)
