"""The report as one self-contained HTML file: no request leaves the page. No torch."""

import json
from collections.abc import Mapping
from html import escape
from importlib import resources
from string import Template

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from prunus.records import Comparison
from prunus.report.formats import printable
from prunus.report.plots import figures
from prunus.report.rows import comparison_rows
from prunus.report.sections import (
    certificate_section,
    data_section,
    environment_section,
    recipe_section,
    table_section,
)
from prunus.report.summary import report_warnings, summary_sentences

# Nothing may be fetched, whatever a record or a library tries: plotly.js carries addresses of map
# tiles and of its own services, none of which these figures use.
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
)
_PLOTS = {
    "pareto": (
        "Trade-off",
        (
            "Means over seeds with one sample standard deviation (vertical bars); small marks are "
            "single seeds. The dotted line joins the means that no other mean beats both ways."
        ),
    ),
    "stages": (
        "Stages",
        "Quality on the test split after each stage, with one sample standard deviation.",
    ),
    "widths": (
        "Widths",
        (
            "Share of the units that stay in each coupled group, mean over seeds; grey groups cannot "
            "be cut (point at one for the reason)."
        ),
    ),
    "front": (
        "Front of the search",
        (
            "Networks that a search found in one go, on images of the search split, before any "
            "training. A line is the best at each cost; a star is what the run went on with, after "
            "it filled what the budget (dotted) had left."
        ),
    ),
    "search": (
        "Search history",
        (
            "Every seed is a line of its own. Hollow dots are candidates that were dropped on the "
            "way. By generation, the line is the best so far, dashes are the mean of the parents, "
            "dots the best of each generation. Point at one for all values."
        ),
    ),
    "halving": (
        "Candidates dropped on the way",
        "A candidate is dropped when few images show that it is not among the best.",
    ),
    "training": (
        "Training history",
        "Every seed is a line of its own. Point at it for all values.",
    ),
}


def render_html(comparison: Comparison) -> str:
    """Render a comparison as one HTML page that needs no network, in light and dark.

    The element ``comparison-data`` holds the comparison itself as JSON, so that
    ``Comparison.model_validate_json`` reads it back from the page.

    Raises:
        InputError: The comparison is empty, or its runs do not belong together.
    """
    rows = comparison_rows(comparison)
    drawn = figures(comparison)
    sections = {"table": ("Table", table_section(comparison, rows))}
    for name, (title, note) in _PLOTS.items():
        if name in drawn:
            about = f'role="figure" aria-label="{title}" aria-describedby="note-{name}"'
            body = (
                f'<p class="note" id="note-{name}">{escape(note)}</p>\n'
                f'<div class="plot" id="plot-{name}" {about}></div>'
            )
            sections[name] = (title, body)
    sections["certificates"] = ("Certificates", certificate_section(comparison))
    sections["environment"] = ("Environment", environment_section(comparison))
    sections["recipes"] = ("Recipes, seeds, notes", recipe_section(rows))
    sections["data"] = ("Data", data_section())
    warnings = "".join(f"<li>{escape(text)}</li>" for text in report_warnings(comparison, rows))
    first = comparison.runs[0]
    count = len(comparison.runs)
    facts = f"{first.source.model} on {first.data}; {count} run{'' if count == 1 else 's'}"
    return Template(_asset("page.html")).substitute(
        policy=escape(_POLICY),
        title=escape(printable(comparison.title)),
        css=_asset("page.css"),
        facts=escape(printable(facts)),
        summary="".join(f"<p>{escape(s)}</p>" for s in summary_sentences(comparison, rows)),
        warnings=f'<ul class="warnings" aria-label="Warnings">{warnings}</ul>' if warnings else "",
        links="".join(
            f'<a href="#{name}">{escape(title)}</a>' for name, (title, _) in sections.items()
        ),
        sections="\n".join(
            f'<section id="{name}">\n<h2>{escape(title)}</h2>\n{body}\n</section>'
            for name, (title, body) in sections.items()
        ),
        comparison=json_for_script(comparison.model_dump_json()),
        figures=json_for_script(_figure_json(drawn)),
        plotly=get_plotlyjs(),
        script=_asset("page.js"),
    )


def json_for_script(text: str) -> str:
    r"""JSON that may stand inside a script element: it cannot end the element or open a comment.

    Outside strings JSON has none of these characters, so that escapes leave its meaning alone.

    >>> print(json_for_script('{"a": "</script>"}'))
    {"a": "\u003c/script\u003e"}
    """
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _figure_json(drawn: Mapping[str, go.Figure]) -> str:
    return json.dumps({name: json.loads(figure.to_json()) for name, figure in drawn.items()})


def _asset(name: str) -> str:
    return (resources.files("prunus.report") / "assets" / name).read_text(encoding="utf-8").strip()
