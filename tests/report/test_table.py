"""Tables: the same numbers four ways, in columns that fit, with text that cannot break out."""

import csv
import io
import json

import pytest
from rich.console import Console

from prunus.records import Comparison
from prunus.report import Missing, Stat, csv_table, json_rows, markdown_table, rich_table
from prunus.report.formats import Style, format_difference, format_value, printable


@pytest.mark.parametrize(
    ("value", "style", "text"),
    [
        (Stat(0.9123, 0.00123, 3), Style.PERCENT, "91.23 ± 0.12 %"),
        (Stat(0.9123, None, 1), Style.FRACTION, "0.9123"),
        (Stat(40_800_000, None, 1), Style.COUNT, "40.8 M"),
        (Stat(1_234_000_000, 4e7, 3), Style.COUNT, "1.23 ± 0.04 G"),
        (Stat(999, None, 1), Style.COUNT, "999"),
        (Stat(545_000, 0.0, 3), Style.MEGABYTES, "0.545 MB"),
        (Stat(6.1, 0.1, 3), Style.MILLISECONDS, "6.10 ± 0.10 ms"),
        (Stat(2.0, 0.0, 3), Style.FOLD, "2.00×"),
        (Stat(90.0, None, 1), Style.SECONDS, "90.0 s"),
        (Stat(600.0, None, 1), Style.SECONDS, "10.0 min"),
        (Stat(18_000.0, None, 1), Style.SECONDS, "5.0 h"),
        (Stat(0.0, None, 1), Style.COUNT, "0"),
        (Missing("why"), Style.COUNT, "n/a"),
        (Missing(), Style.COUNT, "–"),
    ],
)
def test_numbers_with_units(value, style, text):
    assert format_value(value, style) == text


def test_fewer_seeds_than_the_row_are_said():
    assert format_value(Stat(0.5, 0.1, 2), Style.FRACTION, of=3) == "0.5000 ± 0.1000 (2 of 3 seeds)"
    assert format_difference(3.14e-7) == "3.1e-7"
    assert printable("a\x1b[31m\nb") == "a\N{REPLACEMENT CHARACTER}[31m b"


def markdown_cells(text):
    lines = [line for line in text.splitlines() if line.startswith("|")]
    split = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return split[0], split[2:]


def test_markdown_numbers_and_bold(comparison):
    heads, rows = markdown_cells(markdown_table(comparison))
    genetic = dict(zip(heads, rows[1], strict=True))
    assert rows[0][0] == "dense"
    assert genetic["top-1 after training"] == "**91.20 ± 0.20 %**"
    assert genetic["MACs"] == "20.3 ± 0.1 M (2.01×)"
    assert genetic["Params"] == "135 k (2.00×)"
    assert genetic["Size"] == "0.545 MB"
    assert genetic["Latency"] == "**6.10 ± 0.10 ms**"
    assert genetic["Certificate"] == "pass, largest 6.0e-7"
    geometry = dict(zip(heads, rows[2], strict=True))
    assert geometry["top-1 after training"] == "90.00 ± 0.40 %"
    assert geometry["Latency"] == "n/a (needs the extra 'openvino')"
    assert rows[3][0] == "random (null baseline)"


def test_effective_macs_only_where_they_differ(comparison, run_of):
    assert "Effective MACs" not in markdown_table(comparison)
    cost = comparison.runs[0].cost.model_copy(update={"effective_macs": 10_000_000})
    sparse = Comparison(title="t", runs=(run_of(cost=cost),))
    heads, rows = markdown_cells(markdown_table(sparse))
    assert rows[1][heads.index("Effective MACs")] == "10.0 M"


def test_engines_are_compared_with_the_dense_network_on_them_and_in_pytorch(
    run_of, latency_of, deployed_of
):
    # 5 ms, where the dense network takes 20 ms on the same engine and 50 ms in PyTorch.
    latency, dense = latency_of(5.0, engine="onnxruntime"), latency_of(50.0)
    own = latency_of(20.0, engine="onnxruntime")
    row = deployed_of(latency, dense).model_copy(update={"own_float32_latency": own})
    runs = (run_of(latency=latency, dense_latency=dense, deployed=row), run_of("random"))
    heads, rows = markdown_cells(markdown_table(Comparison(title="t", runs=runs)))
    told = dict(zip(heads, rows[-2], strict=True))
    assert told["Dense, float32, same engine"] == "20.0 ms"
    assert told["Faster than that"] == "4.00×"
    assert told["Faster than dense in PyTorch"] == "10.00×"
    assert told["Latency / dense"] == "0.10"
    plain = dict(zip(heads, rows[-1], strict=True))
    assert plain["Dense, float32, same engine"] == plain["Faster than that"] == "–"
    heads, _ = markdown_cells(markdown_table(Comparison(title="t", runs=runs[1:])))
    assert not any("Faster" in head for head in heads)


def test_markdown_escapes_hostile_names(run_of):
    text = markdown_table(Comparison(title="<b>|*", runs=(run_of("<script>|`x`"),)))
    assert "<" not in text
    heads, rows = markdown_cells(text)
    assert len(rows[1]) == len(heads)
    assert rows[1][0] == "&lt;script&gt;\\|\\`x\\`"


def test_csv_parses_to_the_raw_numbers(comparison):
    lines = list(csv.DictReader(io.StringIO(csv_table(comparison))))
    assert [line["method"] for line in lines] == ["dense", "genetic", "geometry", "random"]
    assert float(lines[1]["top1_after_training_mean"]) == pytest.approx(0.912)
    assert float(lines[1]["top1_after_training_std"]) == pytest.approx(0.002)
    assert lines[1]["top1_after_training_n"] == "3"
    assert lines[1]["seeds"] == "0 1 2"
    assert float(lines[0]["macs_mean"]) == 40_800_000
    assert lines[2]["latency_ms_mean"] == ""
    assert lines[2]["latency_ms_missing"] == "needs the extra 'openvino'"
    assert lines[1]["certificate_passed"] == "True"


def test_json_rows_are_json(comparison):
    rows = json.loads(json.dumps(json_rows(comparison), allow_nan=False))
    assert rows[1]["values"]["latency_ms"]["mean"] == pytest.approx(6.1)
    assert "top1_after_training" in rows[1]["bold"]


def render(comparison, width):
    written = io.StringIO()
    Console(width=width, file=written, legacy_windows=False).print(rich_table(comparison))
    return written.getvalue().splitlines()


@pytest.mark.parametrize("width", [100, 120])
def test_terminal_table_fits(comparison, run_of, width):
    more = [run_of("random_search", seed, target={"macs": 0.25}) for seed in range(2)]
    for runs in (comparison.runs, (*comparison.runs, *more)):
        lines = render(comparison.model_copy(update={"runs": runs}), width)
        assert max(map(len, lines)) <= width
        (genetic,) = [line.split() for line in lines if line.startswith(" genetic ")]
        assert {"91.2±0.2", "20.3M", "6.1±0.1", "0.61"} <= set(genetic)
        assert genetic[-2:] == ["ok", "6e-7"]
        head = "".join(lines[:8])
        assert "…" not in "".join(lines) and "certif." in head
    assert "macs=0.25" in "".join(lines)


def test_terminal_shows_the_latency_warning(comparison):
    text = " ".join(" ".join(render(comparison, 120)).split())
    assert "! random at macs=0.5: MACs fell 2.00×, but the measured latency fell by no more" in text


def test_terminal_does_not_read_markup_in_names(run_of):
    lines = render(Comparison(title="[red]t", runs=(run_of("[red]x"),)), 120)
    assert any("[red]x" in line for line in lines) and "[red]t" in lines[0]
