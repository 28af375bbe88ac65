"""What is said of latencies: fewer MACs that bought no time, times that are noise, engines as fast."""

import pytest

from prunus.records import Comparison
from prunus.report import markdown_table, rich_table
from prunus.report.advice import advice
from prunus.report.pace import noise, pace_of
from prunus.report.rows import comparison_rows
from prunus.report.spread import Missing, Stat
from prunus.report.summary import report_warnings

HALF = Stat(2.0, None, 1)


@pytest.mark.parametrize(
    ("mine", "kind"),
    [
        (9.6, None),  # 0.4 ms less than 10, with a spread of 0.3
        (9.8, "idle"),
        (10.2, "idle"),
        (10.4, "slower"),
    ],
)
def test_fewer_macs_are_faster_idle_or_slower(run_of, latency_of, mine, kind):
    pace = pace_of([run_of(latency=latency_of(mine), dense_latency=latency_of(10.0))], HALF)
    assert (pace and pace.kind) == kind


def test_the_larger_of_both_spreads_decides(run_of, latency_of):
    """0.4 ms less than 10 ms: within the spread of 0.5 ms, whichever of the two has it."""
    for mine, dense in ((0.1, 0.5), (0.5, 0.1)):
        run = run_of(
            latency=latency_of(9.6, iqr_ms=mine), dense_latency=latency_of(10.0, iqr_ms=dense)
        )
        pace = pace_of([run], HALF)
        assert pace is not None
        assert pace.kind == "idle"
        assert noise([run]) == pytest.approx((0.05, 0.5))


def test_a_network_that_became_slower_is_not_said_to_have_become_faster(run_of, latency_of):
    run = run_of(latency=latency_of(25.0), dense_latency=latency_of(10.0))
    comparison = Comparison(title="t", runs=(run,))
    (told,) = (w for w in report_warnings(comparison, comparison_rows(comparison)) if "rose" in w)
    assert "but the measured latency rose (25.0 ms, dense 10.0 ms, spread 0.300 ms)" in told
    assert "fell by no more" not in told


@pytest.mark.parametrize("fold", [Missing(), Stat(1.0, None, 1)])
@pytest.mark.parametrize(
    ("mine", "spread", "kind"), [(6.0, 5.0, "noise"), (6.0, 3.0, None), (9.8, 5.0, None)]
)
def test_less_time_without_fewer_macs_may_be_noise(run_of, latency_of, fold, mine, spread, kind):
    """4 ms less of 10 within a spread of 5; a fiftieth less nobody takes for faster."""
    run = run_of(latency=latency_of(mine, iqr_ms=spread), dense_latency=latency_of(10.0))
    pace = pace_of([run], fold)
    assert (pace and pace.kind) == kind
    if pace is not None:
        said = pace.sentence("zeros")
        assert said.startswith(
            "zeros: the measured latency is less than the dense network's (0.60 of it)"
        )
    assert noise([run]) == pytest.approx((spread / 10, spread))


def test_several_rows_have_one_sentence_of_each_kind(run_of, latency_of):
    times = {"a": 9.9, "b": 10.1, "c": 30.0, "d": 20.0}
    runs = tuple(
        run_of(latency=latency_of(t), dense_latency=latency_of(10.0)).model_copy(
            update={"method": name}
        )
        for name, t in times.items()
    )
    comparison = Comparison(title="t", runs=runs)
    told = [w for w in report_warnings(comparison, comparison_rows(comparison)) if "MACs fell" in w]
    assert len(told) == 2
    assert told[0].startswith("MACs fell, but the measured latency fell by no more than its spread")
    assert told[0].count("dense 10.0 ms") == 2
    assert told[1].startswith("MACs fell, but the measured latency rose: c at ")
    assert "d at " in told[1]


def test_engines_within_each_others_spread_are_said_to_be(run_of, latency_of, deployed_of):
    def deployed(engine: str, ms: float, spread: float):
        dense, mine = latency_of(10.0), latency_of(ms, engine=engine, iqr_ms=spread)
        row = deployed_of(mine, dense)
        run = run_of(latency=mine, dense_latency=dense)
        as_good = tuple(s.model_copy(update={"value": 0.93, "top1": 0.93}) for s in run.scores)
        changes = {"method": f"int8 ({engine})", "target": {}, "scores": as_good, "deployed": row}
        return run.model_copy(update=changes)

    for spread, said in ((3.0, True), (0.3, False)):
        runs = (deployed("onnxruntime", 5.0, spread), deployed("openvino", 6.0, spread))
        comparison = Comparison(title="t", runs=runs)
        told = " ".join(advice(comparison, comparison_rows(comparison)))
        assert ("openvino takes 1.20× as long, within the spread of 3.00 ms" in told) == said
        near = "not told from it by the spread of times: int8 (openvino) (3.00 ms)"
        assert (near in told) == said


def test_markdown_says_how_latencies_were_measured(run_of, latency_of):
    setting = {"batch": 32, "threads": 8}
    run = run_of(latency=latency_of(5.0, **setting), dense_latency=latency_of(9.0, **setting))
    written = markdown_table(Comparison(title="t", runs=(run,)))
    assert "- Latency: median with " in written
    assert "batch 32" in written and "8 threads" in written
    assert "Latency: median with torch, cpu, batch 32" in str(
        rich_table(Comparison(title="t", runs=(run,))).caption
    )
    other = run.model_copy(update={"latency": latency_of(5.0), "dense_latency": latency_of(9.0)})
    mixed = Comparison(title="t", runs=(run, other.model_copy(update={"method": "other"})))
    assert "Latency: median with" not in markdown_table(mixed)


def test_macs_that_leave_other_operations_out_are_not_compared(run_of):
    run = run_of()
    short = run.dense_cost.model_copy(update={"uncounted": ("aten._fft_c2c",)})
    comparison = Comparison(title="t", runs=(run.model_copy(update={"dense_cost": short}),))
    rows = comparison_rows(comparison)
    assert isinstance(rows[-1].values["macs_fold"], Missing)
    assert "dense: MACs leave out aten._fft_c2c." in report_warnings(comparison, rows)
    both = run.model_copy(
        update={
            "dense_cost": short,
            "cost": run.cost.model_copy(update={"uncounted": short.uncounted}),
        }
    )
    assert isinstance(
        comparison_rows(Comparison(title="t", runs=(both,)))[-1].values["macs_fold"], Stat
    )
