"""Rows of a report: the dense baseline first, then each method and target. No torch."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from prunus.records import UNTRAINED, Comparison, RunRecord, Stage
from prunus.report.alike import unlike_seeds
from prunus.report.check import check_comparison, target_text
from prunus.report.columns import (
    LATENCY_KEYS,
    STAGES,
    Column,
    conditions,
    final_stage,
    table_columns,
)
from prunus.report.pace import Pace, pace_of
from prunus.report.spread import (
    Missing,
    Value,
    clear_winner,
    summarize,
    summarize_fixed,
)

_NULL_NAMES = frozenset({"random", "scratch", "random-search"})
"""Null baselines of records made before they said so: what every other method has to beat."""

Kind = Literal["dense", "method", "null"]


@dataclass(frozen=True)
class CertificateSummary:
    """All certificates of a row; differences are the largest in eval and train mode."""

    passed: bool
    count: int
    largest: float
    largest_float64: float | None


@dataclass(frozen=True)
class Row:
    """The dense network, or one method at one target over its seeds.

    Attributes:
        kind: A null baseline that was not trained is none.
        values: Column key to number over seeds.
        final: Quality on the test split after the last stage that was measured.
        bold: Keys of the columns where this row leads outside the spread.
        conditions: Engine, device, batch and threads of the latency.
        pace: What to know of the latency, which is one of the warnings, too.
        warnings: What a reader of the row must know, each a full sentence.
    """

    method: str
    target: str
    kind: Kind
    seeds: tuple[int, ...]
    values: Mapping[str, Value]
    final: Value
    final_stage: Stage
    certificate: CertificateSummary | None
    conditions: str
    runs: tuple[RunRecord, ...] = field(repr=False)
    bold: frozenset[str] = frozenset()
    pace: Pace | None = None
    warnings: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """Method and target, for messages."""
        return f"{self.method} at {self.target}" if self.target else self.method


def comparison_rows(comparison: Comparison) -> tuple[Row, ...]:
    """Turn a comparison into rows.

    Runs of the same method and target are one row: mean, sample standard deviation and count over
    their seeds. A number is bold where ``clear_winner`` says so, among the rows of one target.

    Raises:
        InputError: The comparison is empty, or its runs do not belong together.
    """
    check_comparison(comparison)
    columns = table_columns(comparison)
    groups: dict[tuple[str, str], list[RunRecord]] = {}
    for run in comparison.runs:
        groups.setdefault((run.method, target_text(run.target)), []).append(run)
    methods = [_method_row(columns, *key, runs) for key, runs in groups.items()]
    return (*_dense_rows(columns, comparison.runs), *_set_bold(columns, methods))


def _dense_rows(columns: Sequence[Column], runs: Sequence[RunRecord]) -> list[Row]:
    """One dense row for each engine and setting of its latency, the most frequent first."""
    settings: dict[str, list[RunRecord]] = {}
    for run in runs:
        settings.setdefault(conditions(run.dense_latency), []).append(run)
    measured = {setting: group for setting, group in settings.items() if setting} or settings
    order = sorted(measured.items(), key=lambda item: -len(item[1]))
    rows = []
    for setting, group in order:
        values = {
            c.key: summarize_fixed(
                [c.read_dense(r) for r in (group if c.key in LATENCY_KEYS else runs)]
            )
            for c in columns
        }
        rows.append(
            Row(
                method="dense" if len(order) == 1 else f"dense ({setting})",
                target="",
                kind="dense",
                seeds=(),
                values=values,
                final=values[columns[0].key],
                final_stage="dense",
                certificate=None,
                conditions=setting,
                runs=(),
            )
        )
    return rows


def _method_row(
    columns: Sequence[Column], method: str, target: str, runs: Sequence[RunRecord]
) -> Row:
    runs = sorted(runs, key=lambda run: run.seed)
    values = {column.key: summarize([column.read(run) for run in runs]) for column in columns}
    settings = sorted({conditions(run.latency) for run in runs if run.latency is not None})
    if len(settings) > 1:
        different = Missing("seeds were measured differently: " + "; ".join(settings))
        values |= dict.fromkeys(LATENCY_KEYS, different)
    stage = max((final_stage(run) for run in runs), key=list(STAGES).index)
    row = Row(
        method=method,
        target=target,
        kind="null" if all(map(_is_null, runs)) and not any(map(untrained, runs)) else "method",
        seeds=tuple(run.seed for run in runs),
        values=values,
        final=summarize([s.value for run in runs if (s := run.score(stage)) is not None]),
        final_stage=stage,
        certificate=_certificates(runs),
        conditions=settings[0] if len(settings) == 1 else "",
        runs=tuple(runs),
        pace=pace_of(runs, values["macs_fold"]),
    )
    return replace(row, warnings=tuple(_warnings(row)))


def _is_null(run: RunRecord) -> bool:
    return run.method in _NULL_NAMES if run.null is None else run.null


def untrained(run: RunRecord) -> str:
    """The note of a run whose fresh weights are what was judged: no method has to beat that."""
    return next((note for note in run.notes if note.startswith(UNTRAINED)), "")


def _set_bold(columns: Sequence[Column], rows: Sequence[Row]) -> list[Row]:
    bold: dict[int, set[str]] = {i: set() for i in range(len(rows))}
    for target in {row.target for row in rows}:
        rivals = [i for i, row in enumerate(rows) if row.target == target]
        for column in columns:
            if column.better is None:
                continue
            timed = column.key.startswith(("latency", "seconds"))
            if timed and not same_machine([rows[i] for i in rivals]):
                continue
            winner = clear_winner({i: rows[i].values[column.key] for i in rivals}, column.better)
            if winner is not None:
                bold[winner].add(column.key)
    return [replace(row, bold=frozenset(bold[i])) for i, row in enumerate(rows)]


def same_machine(rows: Sequence[Row]) -> bool:
    """Whether times may be compared: one machine, and one device, batch and thread count."""
    runs = [run for row in rows for run in row.runs]
    machines = {(r.environment.cpu, r.environment.gpu, r.environment.threads) for r in runs}
    settings = {(t.device, t.batch, t.threads) for r in runs if (t := r.latency) is not None}
    return len(machines) == 1 and len(settings) <= 1


def _certificates(runs: Sequence[RunRecord]) -> CertificateSummary | None:
    proofs = [proof for run in runs for proof in run.certificates]
    if not proofs:
        return None
    double = [
        d
        for proof in proofs
        for d in (proof.eval_difference_float64, proof.train_difference_float64)
        if d is not None
    ]
    single = [d for p in proofs for d in (p.eval_difference, p.train_difference) if d is not None]
    return CertificateSummary(
        passed=all(proof.passed for proof in proofs),
        count=len(proofs),
        largest=_largest(single),
        largest_float64=_largest(double) if double else None,
    )


def _largest(differences: Sequence[float]) -> float:
    """The largest; infinite where one is NaN, which ``max`` may pass over."""
    return math.inf if any(math.isnan(d) for d in differences) else max(differences)


def _warnings(row: Row) -> list[str]:
    found = []
    if unlike := unlike_seeds(row.runs):
        found.append(f"{row.label}: its seeds were not done alike, and are no one mean: {unlike}.")
    if row.certificate is not None and not row.certificate.passed:
        reasons = {
            p.reason for run in row.runs for p in run.certificates if not p.passed and p.reason
        }
        found.append(
            f"{row.label}: a certificate failed {'; '.join(sorted(reasons))}".rstrip() + "."
        )
    bare = [run.seed for run in row.runs if not run.certificates]
    if row.certificate is not None and bare:
        found.append(f"{row.label}: no certificate for the seeds {', '.join(map(str, bare))}.")
    return found + ([] if row.pace is None else [row.pace.sentence(row.label)])
