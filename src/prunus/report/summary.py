"""Sentences of a report, computed from its rows: who leads, and what to know. No torch."""

import math
import re
from collections import Counter
from collections.abc import Sequence

from prunus.records import AT_CHANCE, SHARED, UNTRAINED, Comparison, Environment, RunRecord
from prunus.report.advice import advice
from prunus.report.alike import unlike_trainings
from prunus.report.columns import (
    LATENCY_KEYS,
    STAGES,
    conditions,
    metric_name,
    score_style,
    table_columns,
)
from prunus.report.formats import DASH, Style, format_difference, format_value, listed, printable
from prunus.report.pace import gathered
from prunus.report.rows import Row, untrained
from prunus.report.spread import MIN_SEEDS, Missing, Stat, clear_winner

_FAILED = re.compile(r"(.+ \(seed \d+\)) failed: (.+)")
"""How ``compare`` notes a method and a seed that ended in an error."""
_AS_MANY = "1.00×"
_ROUNDING = 1e-12
NOTHING_CUT = "nothing was cut"
"""How the note of a step ends that found nothing to do, as ``recipe.execute`` writes it."""
RULES = (
    (
        "± is the sample standard deviation over the seeds of a row, of the dense network over all "
        "runs that measured it; a number without ± stands for one seed, or is equal for all."
    ),
    (
        "Bold: the best mean at a target, if its gap to the runner-up exceeds the larger of their two "
        f"standard deviations, which is not 0, and both have at least {MIN_SEEDS} seeds. Costs are "
        "never bold: the budget asks for them."
    ),
    (
        "One multiply-add is one MAC, at batch 1; MACs and parameters with × say how many times fewer "
        "than dense. Size is the model file, in MB of 10⁶ bytes."
    ),
)


def summary_sentences(comparison: Comparison, rows: Sequence[Row]) -> tuple[str, ...]:
    """One sentence per target: the best method, what it scores and costs, and how sure that is."""
    targets = dict.fromkeys(row.target for row in rows if row.kind != "dense")
    best = [_sentence(comparison, rows, target) for target in targets]
    return (*best, *advice(comparison, rows))


def latency_setting(rows: Sequence[Row]) -> str:
    """How latencies were measured, where all were alike; else nothing."""
    settings = {row.conditions for row in rows if row.conditions}
    return f"Latency: median with {settings.pop()}." if len(settings) == 1 else ""


def report_warnings(comparison: Comparison, rows: Sequence[Row]) -> tuple[str, ...]:
    """What the numbers do not say themselves, each a full sentence."""
    found = [*_guessing(comparison), *_failed(comparison), *_told(rows)]
    found += _untrained(rows)
    found += _unlike(rows)
    found += _luck(rows)
    found += _idle(rows)
    found += _missing(comparison, rows)
    found += _uncounted(rows)
    nulls = dict.fromkeys(row.method for row in rows if row.kind == "null")
    if nulls:
        found.append(f"Null baselines, which every method has to beat: {', '.join(nulls)}.")
    if any(run.search_seen_in_pretraining for run in comparison.runs):
        found.append(
            "The dense weights may have seen the search split in their training: what decisions see "
            "there is then too good."
        )
    weights = {run.source.weights for run in comparison.runs}
    if len(weights) > 1:
        names = ", ".join(sorted(printable(str(w)) for w in weights))
        found.append(f"Runs start from different dense weights: {names}.")
    environments = distinct_environments(comparison)
    if any(environment.dirty for environment in environments):
        found.append(
            "Some runs were made with uncommitted changes: they cannot be repeated exactly."
        )
    if any(e.commit is None and "prunus" not in e.versions for e in environments):
        found.append("Some runs do not know the commit or the version that made them.")
    if len({(e.cpu, e.gpu, e.threads) for e in environments}) > 1:
        found.append(
            "Runs come from different machines or thread counts: compare times within a run only."
        )
    settings = {conditions(run.latency) for run in comparison.runs if run.latency is not None}
    if len(settings) > 1:
        found.append(
            "Latencies were measured in different ways: " + "; ".join(sorted(settings)) + "."
        )
    return tuple(found)


def _guessing(comparison: Comparison) -> list[str]:
    """Of a dense network that has learned nothing: as good as that is no praise."""
    notes = dict.fromkeys(note for run in comparison.runs for note in run.notes)
    return [f"{note[:1].upper()}{note[1:]}." for note in notes if note.startswith(AT_CHANCE)]


def _untrained(rows: Sequence[Row]) -> list[str]:
    """Of networks with fresh weights, which would be taken for a null that every method beats."""
    whose: dict[str, list[str]] = {}
    for row in rows:
        for note in dict.fromkeys(filter(None, map(untrained, row.runs))):
            whose.setdefault(note, []).append(printable(row.label))
    return [f"{listed(labels)}: {printable(note)}." for note, labels in whose.items()]


def told_notes(comparison: Comparison) -> list[str]:
    """Notes of all runs, each once: as it is where all runs share it, else with whose it is.

    What failed names its cell itself, and some notes their method. Left out is what warnings tell in
    the same words, and what rows took over from each other.
    """
    whose: dict[str, list[RunRecord]] = {}
    for run in comparison.runs:
        for note in run.notes:
            whose.setdefault(printable(note), []).append(run)
    total = Counter(run.method for run in comparison.runs)
    told = []
    for note, runs in whose.items():
        if note.startswith((AT_CHANCE, UNTRAINED)) or SHARED in note:
            continue
        shared = len(runs) == len(comparison.runs) or _FAILED.fullmatch(note)
        own = note.removeprefix(f"{printable(runs[0].method)}: ")
        told.append(note if shared else f"{_whose(runs, total)}: {own}")
    return told


def _whose(runs: Sequence[RunRecord], total: Counter[str]) -> str:
    """Names of rows, with the seed where the row has others.

    Args:
        runs: Those that are meant.
        total: How many runs there are of each row.
    """
    mine = Counter(run.method for run in runs)
    names = [
        run.method if mine[run.method] == total[run.method] else f"{run.method} (seed {run.seed})"
        for run in runs
    ]
    return listed([printable(name) for name in dict.fromkeys(names)])


def failures(comparison: Comparison) -> dict[str, str]:
    """Methods and seeds that ended in an error, each with what it said."""
    notes = dict.fromkeys(note for run in comparison.runs for note in run.notes)
    found = (_FAILED.fullmatch(printable(note)) for note in notes)
    return {failed[1]: failed[2] for failed in found if failed is not None}


def _failed(comparison: Comparison) -> list[str]:
    """Who reads the rows alone would not miss them."""
    return [
        f"Failed, and in no number here: {cell}: {why.rstrip('.')}."
        for cell, why in failures(comparison).items()
    ]


def _told(rows: Sequence[Row]) -> list[str]:
    """Warnings of the rows; one sentence for what several have to be told of their latency."""
    paces = [(printable(row.label), row.pace) for row in rows if row.pace is not None]
    rest = [
        printable(warning)
        for row in rows
        for warning in row.warnings
        if row.pace is None or warning != row.pace.sentence(row.label)
    ]
    return [*gathered(paces), *rest]


def distinct_environments(comparison: Comparison) -> tuple[Environment, ...]:
    """The environments of all runs, each once, in order of appearance."""
    return tuple(
        {run.environment.model_dump_json(): run.environment for run in comparison.runs}.values()
    )


def certificate_text(row: Row, *, compact: bool = False) -> str:
    """Whether all certificates of a row passed, and the largest difference that they found."""
    proof = row.certificate
    if proof is None:
        return DASH if row.kind == "dense" else "none"
    if compact:
        return f"{'ok' if proof.passed else 'FAIL'} {format_difference(proof.largest, digits=0)}"
    text = f"{'pass' if proof.passed else 'FAIL'}, largest {format_difference(proof.largest)}"
    if proof.largest_float64 is not None:
        text += f" (float64 {format_difference(proof.largest_float64)})"
    return text


def _sentence(comparison: Comparison, rows: Sequence[Row], target: str) -> str:
    where = f" at {target}" if target else ""
    rivals = [row for row in rows if row.kind != "dense" and row.target == target]
    scored = {i: row.final for i, row in enumerate(rivals) if isinstance(row.final, Stat)}
    if not scored:
        looked = any(run.score(row.final_stage) for row in rivals for run in row.runs)
        why = f"has a finite {metric_name(comparison)}" if looked else "was measured"
        return f"No method{where} {why} on the test split."
    winner = max(scored, key=lambda i: scored[i].mean)
    best, final, style = rivals[winner], scored[winner], score_style(comparison)
    word = "Best" if len(scored) > 1 else "Only"
    text = f"{word} method{where}: {printable(best.method)}, {metric_name(comparison)} "
    text += f"{format_value(final, style, of=len(best.seeds))} {STAGES[best.final_stage]}"
    dense = rows[0].final
    if isinstance(dense, Stat):
        change = final.mean - dense.mean
        points = f"{100 * change:+.2f} points" if style is Style.PERCENT else f"{change:+.4f}"
        text += f" (dense {format_value(dense, style)}, {points})"
    text += _costs(best)
    text += "; " + _certainty(rivals, scored, winner, style)
    if best.kind == "null":
        text += "; it is a null baseline, which every method has to beat"
    if best.certificate is not None and not best.certificate.passed:
        text += "; its certificate FAILED"
    return text + "."


def _costs(row: Row) -> str:
    text = ""
    for key, what in (("macs_fold", "MACs"), ("params_fold", "parameters")):
        fold = row.values[key]
        if not isinstance(fold, Stat):
            continue
        many, word = (fold.mean, "fewer") if fold.mean >= 1 else (1 / fold.mean, "more")
        written = format_value(Stat(many, None, 1), Style.FOLD)
        if written != _AS_MANY:
            text += f", {written} {word} {what}"
    ratio = row.values["latency_ratio"]
    if isinstance(ratio, Stat):
        text += f", {format_value(Stat(ratio.mean, None, 1), Style.RATIO)} of the dense latency"
    return text


def _certainty(rivals: Sequence[Row], scored: dict[int, Stat], winner: int, style: Style) -> str:
    others = {i: stat for i, stat in scored.items() if i != winner}
    if not others:
        return "no other method was measured"
    second = max(others, key=lambda i: others[i].mean)
    name, stage = printable(rivals[second].method), rivals[second].final_stage
    # With its score: the terminal's table has one decimal less, where a lead may not show.
    about = [format_value(others[second], style)]
    if stage != rivals[winner].final_stage:
        # Not the same treatment: a network that was trained on leads one that was not.
        about.insert(0, STAGES[stage])
    name += f" ({', '.join(about)})"
    best = scored[winner].mean
    ties = [i for i in others if math.isclose(best, others[i].mean, rel_tol=_ROUNDING)]
    if len(ties) > 1:
        return f"{listed([printable(rivals[i].method) for i in ties])} score the same"
    if ties:
        return f"{name} scores the same"
    if min(scored[winner].n, others[second].n) < MIN_SEEDS:
        return f"fewer than {MIN_SEEDS} seeds: its lead over {name} may be chance"
    if not (scored[winner].std or others[second].std):
        return f"neither score depends on the seed, so seeds do not tell whether it leads {name}"
    if clear_winner(scored, "higher") is None:
        return f"its lead over {name} is within the spread of the seeds"
    return f"its lead over {name} exceeds the spread of the seeds"


def _missing(comparison: Comparison, rows: Sequence[Row]) -> list[str]:
    """Reasons behind the cells that say n/a, each with the rows and columns that it covers."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        for column in table_columns(comparison):
            value = row.values[column.key]
            if isinstance(value, Missing) and value.reason:
                # Where there is no latency, its three columns share one reason and need it told once.
                untimed = value == row.values[LATENCY_KEYS[0]]
                what = "Latency" if column.key in LATENCY_KEYS and untimed else column.header
                names = reasons.setdefault((what, printable(value.reason)), [])
                if printable(row.label) not in names:
                    names.append(printable(row.label))
    return [f"{what} n/a for {listed(names)}: {why}." for (what, why), names in reasons.items()]


def _unlike(rows: Sequence[Row]) -> list[str]:
    """Of methods that did not get the same training, as their names alone would let a reader think."""
    found = []
    for target in dict.fromkeys(row.target for row in rows):
        runs = {row.label: row.runs[0] for row in rows if row.target == target and row.runs}
        if unlike := unlike_trainings(runs):
            found.append(
                f"Methods were not trained alike, and a lead may be the training's: {unlike}."
            )
    return found


def _luck(rows: Sequence[Row]) -> list[str]:
    """Who takes the row that leads on the test split selects by it, whatever the methods saw."""
    scored = sum(row.final_stage != "dense" and isinstance(row.final, Stat) for row in rows)
    if scored < 2:
        return []
    named = "Rows are named by their scores on the test split"
    luck = f"the best of {scored} is in part the luckiest: expect somewhat less of it on new data"
    return [f"{named}, where {luck}."]


def _idle(rows: Sequence[Row]) -> list[str]:
    """Rows with a step that found nothing to do: such a row's name promises more than it holds."""
    names = [
        printable(row.label)
        for row in rows
        if any(note.endswith(NOTHING_CUT) for run in row.runs for note in run.notes)
    ]
    return [f"A step cut nothing: {listed(names)}; the notes say which."] if names else []


def _uncounted(rows: Sequence[Row]) -> list[str]:
    found = []
    of_dense = {name for row in rows for run in row.runs for name in run.dense_cost.uncounted}
    if of_dense:
        found.append(f"dense: MACs leave out {printable(', '.join(sorted(of_dense)))}.")
    for row in rows:
        names = sorted({name for run in row.runs for name in run.cost.uncounted})
        if names:
            found.append(f"{printable(row.label)}: MACs leave out {printable(', '.join(names))}.")
    return found
