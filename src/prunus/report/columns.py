"""The columns of a report: how each is read from a run, and from its dense side. No torch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from prunus.records import Comparison, Latency, RunRecord, Stage
from prunus.report.formats import Style
from prunus.report.spread import Missing, Reading

Reader = Callable[[RunRecord], Reading]

STAGES: Mapping[Stage, str] = MappingProxyType(
    {
        "dense": "dense",
        "after_cut": "after cut",
        "after_recalibration": "after recalibration",
        "after_training": "after training",
        "deployed": "deployed",
    }
)
LATENCY_KEYS = ("latency_ms", "latency_p95_ms", "latency_ratio")
LATENCY_NOTE = "latency:"
"""A note of a run that begins so says why its latency is missing."""

_METRICS = {"top1": ("top-1", Style.PERCENT), "f1": ("F1", Style.FRACTION)}
_SHORT_STAGES = {
    "dense": "dense",
    "after_cut": "cut",
    "after_recalibration": "recal.",
    "deployed": "deployed",
}
_DETAILS = {"top1": ("Accuracy", Style.PERCENT), "f1": ("F1", Style.FRACTION)}
_DETAILS |= {"precision": ("Precision", Style.FRACTION), "recall": ("Recall", Style.FRACTION)}
_OTHER_OPERATIONS = "an engine runs other operations than those that are counted"


@dataclass(frozen=True)
class Column:
    """One number of a row.

    Attributes:
        key: Name in CSV and JSON; unit of the raw number included.
        header: Head of the column in Markdown and HTML.
        short: Head in the terminal, or "" where the column is left out there.
        read: Reads it from a run; ``read_dense`` from the dense side of the run.
        better: Direction in which the best is sought; None where the best is never set in bold
            (costs are what the budget asks for, not a merit).
        beside: Key of a column that is written in brackets in the same cell.
        inside: Whether it is such a column, without a cell of its own in Markdown and HTML.
    """

    key: str
    header: str
    short: str
    style: Style
    read: Reader
    read_dense: Reader
    better: Literal["higher", "lower"] | None = None
    beside: str = ""
    inside: bool = False


def table_columns(comparison: Comparison) -> tuple[Column, ...]:
    """The columns for a comparison; effective MACs only where they differ from the others."""
    effective = any(run.cost.effective_macs != run.cost.macs for run in comparison.runs)
    columns = [_score_column(comparison, stage) for stage in STAGES]
    if metric_name(comparison) != _METRICS["top1"][0]:
        columns += [_detail_column(name) for name in ("top1", "precision", "recall")]
    columns += [
        Column("macs", "MACs", "MACs", Style.COUNT, _macs, _dense_macs, beside="macs_fold"),
        Column("macs_fold", "MACs fewer", "×", Style.FOLD, _macs_fold, _absent, inside=True),
    ]
    if effective:
        columns.append(
            Column(
                "effective_macs",
                "Effective MACs",
                "eff.",
                Style.COUNT,
                _effective,
                _dense_effective,
            )
        )
    return (
        *columns,
        Column(
            "params", "Params", "params", Style.COUNT, _params, _dense_params, beside="params_fold"
        ),
        Column("params_fold", "Params fewer", "", Style.FOLD, _params_fold, _absent, inside=True),
        Column("size_bytes", "Size", "MB", Style.MEGABYTES, _size, _dense_size),
        Column("latency_ms", "Latency", "ms", Style.MILLISECONDS, _median, _dense_median, "lower"),
        Column("latency_p95_ms", "p95", "", Style.MILLISECONDS, _p95, _dense_p95),
        Column("latency_ratio", "Latency / dense", "ms ÷\ndense", Style.RATIO, _ratio, _absent),
        *(_engine_columns() if any(run.deployed for run in comparison.runs) else ()),
        Column("seconds_search", "Search", "", Style.SECONDS, _seconds("search"), _absent),
        Column("seconds_train", "Training", "", Style.SECONDS, _seconds("train"), _absent),
        Column(
            "seconds_total", "Total", "time", Style.SECONDS, _seconds("total"), _absent, "lower"
        ),
    )


def metric_name(comparison: Comparison) -> str:
    """Name of the comparison's metric, as written in text: "top-1" or "F1"."""
    return _metric(comparison)[0]


def score_style(comparison: Comparison) -> Style:
    """How the comparison's metric is written."""
    return _metric(comparison)[1]


def final_stage(run: RunRecord) -> Stage:
    """The last stage with a score on the test split; "dense" where nothing came after it."""
    found: Stage = "dense"
    for stage in STAGES:
        if run.score(stage) is not None:
            found = stage
    return found


def conditions(latency: Latency | None) -> str:
    """Everything that two latencies must share before they may be compared."""
    if latency is None:
        return ""
    threads = f"{latency.threads} thread{'' if latency.threads == 1 else 's'}"
    return f"{latency.engine}, {latency.device}, batch {latency.batch}, {threads}"


def _metric(comparison: Comparison) -> tuple[str, Style]:
    return _METRICS[next((s.metric for run in comparison.runs for s in run.scores), "top1")]


def _score_column(comparison: Comparison, stage: Stage) -> Column:
    name, style = _metric(comparison)
    # Rows of many kinds do not all have all stages: a suite of them says so by its blanks. A stage
    # that no run has is missing in none.
    expected = any(run.score(stage) for run in comparison.runs)
    why = "not measured" if expected and not any(r.deployed for r in comparison.runs) else ""

    def read(run: RunRecord) -> Reading:
        score = run.score(stage)
        return Missing(why) if score is None else score.value

    return Column(
        key=f"{'f1' if style is Style.FRACTION else 'top1'}_{stage}",
        header=f"{name} {STAGES[stage]}",
        short=f"{name}\n{_SHORT_STAGES.get(stage, 'trained')}",
        style=style,
        read=read,
        read_dense=read if stage == "dense" else _absent,
        # The dense score is the same network in every row: there is nothing to win.
        better=None if stage == "dense" else "higher",
    )


def _detail_column(name: str) -> Column:
    """Another measure of the last look."""
    header, style = _DETAILS[name]

    def at(run: RunRecord, stage: Stage) -> Reading:
        score = run.score(stage)
        found = None if score is None else getattr(score, name)
        return Missing() if found is None else float(found)

    return Column(
        key=f"{name}_last" if name == "top1" else name,
        header=header,
        short="",
        style=style,
        read=lambda run: at(run, final_stage(run)),
        read_dense=lambda run: at(run, "dense"),
    )


def _engine_columns() -> tuple[Column, ...]:
    """What an engine alone gives, and what the method adds to it."""
    return (
        Column(
            "own_float32_ms",
            "Dense, float32, same engine",
            "",
            Style.MILLISECONDS,
            _own_float32,
            _absent,
        ),
        Column(
            "faster_than_own_float32",
            "Faster than that",
            "× own\nfp32",
            Style.FOLD,
            _faster_than_own,
            _absent,
        ),
        Column(
            "faster_than_dense",
            "Faster than dense in PyTorch",
            "× torch\nfp32",
            Style.FOLD,
            _faster_than_dense,
            _absent,
        ),
    )


def _own_float32(run: RunRecord) -> Reading:
    own = None if run.deployed is None else run.deployed.own_float32_latency
    return Missing() if own is None else own.median_ms


def _faster_than_own(run: RunRecord) -> Reading:
    own = _own_float32(run)
    if isinstance(own, Missing) or run.latency is None:
        return Missing()
    return own / run.latency.median_ms


def _faster_than_dense(run: RunRecord) -> Reading:
    if run.latency is None or run.dense_latency is None:
        return Missing()
    return run.dense_latency.median_ms / run.latency.median_ms


def _absent(_: RunRecord) -> Reading:
    return Missing()


def _macs(run: RunRecord) -> Reading:
    return run.cost.macs if run.deployed is None else Missing(_OTHER_OPERATIONS)


def _dense_macs(run: RunRecord) -> Reading:
    return run.dense_cost.macs


def _macs_fold(run: RunRecord) -> Reading:
    if run.deployed is not None:
        return Missing()
    if set(run.dense_cost.uncounted) != set(run.cost.uncounted):
        return Missing("MACs of this row and of the dense network leave out different operations")
    return _fold(run.dense_cost.macs, run.cost.macs)


def _effective(run: RunRecord) -> Reading:
    return run.cost.effective_macs if run.deployed is None else Missing()


def _dense_effective(run: RunRecord) -> Reading:
    return run.dense_cost.effective_macs


def _params(run: RunRecord) -> Reading:
    return run.cost.params


def _dense_params(run: RunRecord) -> Reading:
    return run.dense_cost.params


def _params_fold(run: RunRecord) -> Reading:
    return _fold(run.dense_cost.params, run.cost.params)


def _fold(before: int, after: int) -> Reading:
    return before / after if after else Missing("nothing is left")


def _size(run: RunRecord) -> Reading:
    size = run.cost.size_bytes
    return Missing("not measured") if size is None else size


def _dense_size(run: RunRecord) -> Reading:
    size = run.dense_cost.size_bytes
    return Missing("not measured") if size is None else size


def _median(run: RunRecord) -> Reading:
    return _no_latency(run) if run.latency is None else run.latency.median_ms


def _dense_median(run: RunRecord) -> Reading:
    dense = run.dense_latency
    return Missing("not measured") if dense is None else dense.median_ms


def _p95(run: RunRecord) -> Reading:
    return _no_latency(run) if run.latency is None else run.latency.p95_ms


def _dense_p95(run: RunRecord) -> Reading:
    dense = run.dense_latency
    return Missing("not measured") if dense is None else dense.p95_ms


def _ratio(run: RunRecord) -> Reading:
    if run.latency is None:
        return _no_latency(run)
    mine, dense = conditions(run.latency), conditions(run.dense_latency)
    if run.dense_latency is None or run.dense_latency.median_ms <= 0:
        return Missing("the dense network was not measured")
    if mine != dense and run.deployed is None:  # else both were timed in turns
        return Missing(f"measured on {mine}, but dense on {dense}")
    return run.latency.median_ms / run.dense_latency.median_ms


def _no_latency(run: RunRecord) -> Missing:
    notes = (
        note[len(LATENCY_NOTE) :].strip() for note in run.notes if note.startswith(LATENCY_NOTE)
    )
    return Missing(next(notes, "") or "not measured")


def _seconds(key: str) -> Reader:
    def read(run: RunRecord) -> Reading:
        if key in run.seconds:
            return run.seconds[key]
        if key == "total" and run.seconds:
            return sum(run.seconds.values())
        # Seconds are told by kind of work: what is not among them was not done.
        return Missing("" if run.seconds else "not recorded")

    return read
