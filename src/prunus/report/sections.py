"""The parts of the HTML page that are text and tables. All text of records is escaped. No torch."""

import json
from collections.abc import Iterable, Sequence
from html import escape

from prunus.records import Certificate, Comparison, Environment
from prunus.report.check import target_text
from prunus.report.columns import Column
from prunus.report.formats import DASH, format_difference, printable
from prunus.report.rows import Row
from prunus.report.spread import Missing
from prunus.report.summary import (
    RULES,
    certificate_text,
    distinct_environments,
    latency_setting,
)
from prunus.report.table import cell_text, shown_columns


def table_section(comparison: Comparison, rows: Sequence[Row]) -> str:
    """The main table; heads sort it, dense rows stay on top in a body of their own."""
    columns = shown_columns(comparison, rows)
    heads = [_head("Method"), _head("Target"), _head("Seeds", number=True)]
    heads += [_head(column.header, number=True) for column in columns]
    heads.append(_head("Certificate"))
    measured = latency_setting(rows)
    several = not measured and any(row.conditions for row in rows)
    if several:
        heads.append(_head("Latency measured with"))
    bodies = []
    for dense in (True, False):
        lines = [
            _table_row(comparison, row, columns, conditions=several)
            for row in rows
            if (row.kind == "dense") == dense
        ]
        bodies.append(f"{_open('tbody', 'dense' if dense else '')}{''.join(lines)}</tbody>")
    rules = "".join(f"<li>{escape(rule)}</li>" for rule in (*RULES, measured) if rule)
    return (
        f'{_scroll("Comparison")}<table class="sortable" id="comparison-table">'
        f"<thead><tr>{''.join(heads)}</tr></thead>{''.join(bodies)}</table></div>\n"
        f'<ul class="rules">{rules}</ul>'
    )


def certificate_section(comparison: Comparison) -> str:
    """Every certificate of every run."""
    lines = [
        "<tr>"
        f'<th scope="row">{_text(run.method)}</th>'
        f"<td>{_text(target_text(run.target) or DASH)}</td>"
        f'<td class="number">{run.seed}</td>' + _certificate_cells(proof) + "</tr>"
        for run in comparison.runs
        for proof in run.certificates
    ]
    note = (
        '<p class="note">The cut network against the dense network masked by the same plan, on '
        "real inputs: the largest difference, relative to the size of what differs. Passed within 1e-5 in float32, or 1e-10 in float64.</p>"
    )
    if not lines:
        return note + "<p>No run holds a certificate.</p>"
    numbers = ("Eval mode", "Train mode", "Eval, float64", "Train, float64", "Inputs")
    heads = ("Method", "Target", "Seed", "Verdict", *numbers, "Reason")
    head = "".join(_head(name, number=name in ("Seed", *numbers)) for name in heads)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    return f"{note}\n{_scroll('Certificates')}{table}</div>"


def environment_section(comparison: Comparison) -> str:
    """Machine, versions and commit, once for each that differs."""
    environments = distinct_environments(comparison)
    parts = []
    for environment in environments:
        if len(environments) > 1:
            runs = [run for run in comparison.runs if run.environment == environment]
            names = ", ".join(dict.fromkeys(f"{r.method} (seed {r.seed})" for r in runs))
            parts.append(f'<p class="note">{_text(names)}</p>')
        parts.append(_environment(environment))
    return "\n".join(parts)


def recipe_section(rows: Sequence[Row]) -> str:
    """Recipe, seeds, looks at the test split and notes of every run, folded."""
    parts = []
    for row in rows:
        for run in row.runs:
            looks = ", ".join(f"{stage} {n}" for stage, n in run.test_evaluations.items())
            facts = {
                "Source": json.dumps(run.source.model_dump()),
                "Seed": str(run.seed),
                "Looks at the test split": looks or "none recorded",
                "Search split seen in pretraining": "yes"
                if run.search_seen_in_pretraining
                else "no",
                "Plans": ", ".join(run.plans) or DASH,
                **{f"Note {i}": note for i, note in enumerate(run.notes, start=1)},
            }
            recipe = json.dumps(run.recipe, indent=2, ensure_ascii=False)
            parts.append(
                f"<details><summary>{_text(row.label)}, seed {run.seed}</summary>"
                f"{_facts(facts.items())}<pre>{escape(recipe)}</pre></details>"
            )
    return "\n".join(parts)


def data_section() -> str:
    """How to read the records back from the page."""
    return (
        "<p>This page holds all records as JSON, in the element <code>comparison-data</code>:</p>"
        "<pre>JSON.parse(document.getElementById('comparison-data').textContent)</pre>"
    )


def _table_row(
    comparison: Comparison, row: Row, columns: Sequence[Column], *, conditions: bool
) -> str:
    tag = ' <span class="tag">null baseline</span>' if row.kind == "null" else ""
    cells = [
        f'<th scope="row" data-sort="{_text(row.method)}">{_text(row.method)}{tag}</th>',
        f'<td data-sort="{_text(row.target)}">{_text(row.target) or DASH}</td>',
        f'<td class="number" data-sort="{len(row.seeds)}">{len(row.seeds) or DASH}</td>',
    ]
    cells += [_number_cell(comparison, row, column) for column in columns]
    proof = row.certificate
    look = "missing" if proof is None else ("pass" if proof.passed else "fail")
    # Letters sort it: as many digits before and behind the point, failures first, infinity last.
    order = "" if proof is None else f"{int(proof.passed)} {min(proof.largest, 1e8):030.20f}"
    cells.append(f'<td class="{look}" data-sort="{order}">{escape(certificate_text(row))}</td>')
    if conditions:
        cells.append(
            f'<td data-sort="{_text(row.conditions)}">{_text(row.conditions) or DASH}</td>'
        )
    return f'<tr class="{row.kind}">{"".join(cells)}</tr>'


def _number_cell(comparison: Comparison, row: Row, column: Column) -> str:
    value = row.values[column.key]
    text = escape(cell_text(comparison, row, column))
    if isinstance(value, Missing):
        reason = f' title="{_text(value.reason)}"' if value.reason else ""
        inner = f'<span class="reason">{text}</span>'
        return f'<td class="number missing" data-sort=""{reason}>{inner}</td>'
    exact = f"mean {value.mean:.10g}, n = {value.n}"
    if value.std is not None:
        exact += f", std {value.std:.6g}"
    if column.key in row.bold:
        text = f"<strong>{text}</strong>"
    return f'<td class="number" data-sort="{value.mean!r}" title="{exact}">{text}</td>'


def _certificate_cells(proof: Certificate) -> str:
    look, verdict = ("pass", "pass") if proof.passed else ("fail", "FAIL")
    differences = (
        proof.eval_difference,
        proof.train_difference,
        proof.eval_difference_float64,
        proof.train_difference_float64,
    )
    return (
        f'<td class="{look}">{verdict}</td>'
        + "".join(f'<td class="number">{format_difference(d)}</td>' for d in differences)
        + f'<td class="number">{proof.samples}</td><td class="wide">{_text(proof.reason)}</td>'
    )


def _environment(environment: Environment) -> str:
    state = {True: "uncommitted changes", False: "clean", None: "unknown"}[environment.dirty]
    gpu = environment.gpu or "none"
    facts = {
        "CPU": f"{environment.cpu}, {environment.cores} cores, {environment.threads} threads used",
        "Vector instructions": ", ".join(environment.instructions) or "unknown",
        **({"Idle threads wait": environment.waiting} if environment.waiting else {}),
        "GPU": gpu,
        "Platform": environment.platform,
        "Python": environment.python,
        "Versions": ", ".join(f"{k} {v}" for k, v in sorted(environment.versions.items())),
        "Commit": f"{environment.commit or 'unknown'} ({state})",
    }
    warning = '<p class="fail">Made with uncommitted changes.</p>' if environment.dirty else ""
    return _facts(facts.items()) + warning


def _facts(facts: Iterable[tuple[str, str]]) -> str:
    return "<dl>" + "".join(f"<dt>{_text(k)}</dt><dd>{_text(v)}</dd>" for k, v in facts) + "</dl>"


def _scroll(name: str) -> str:
    """A box that a wide table scrolls in, reached by the keyboard, too."""
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{name}">'


def _open(tag: str, look: str) -> str:
    return f'<{tag} class="{look}">' if look else f"<{tag}>"


def _head(name: str, *, number: bool = False) -> str:
    look = ' class="number"' if number else ""
    return f'<th scope="col"{look}>{escape(name)}</th>'


def _text(value: str) -> str:
    return escape(printable(value))
