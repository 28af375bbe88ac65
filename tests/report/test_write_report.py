"""Writing: four files, all or nothing; records that looked twice at the test split are refused."""

import csv
import json
import math

import pytest

from prunus.errors import InputError
from prunus.records import Certificate, Comparison, HistoryPoint
from prunus.report import write_report

NAMES = ["report.csv", "report.html", "report.json", "report.md"]


def test_writes_four_files(comparison, tmp_path):
    path = write_report(comparison, tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / "report.html"
    assert sorted(p.name for p in path.parent.iterdir()) == NAMES
    content = json.loads((path.parent / "report.json").read_text(encoding="utf-8"))
    assert Comparison.model_validate(content["comparison"]) == comparison
    assert content["rows"][0]["method"] == "dense"
    with (path.parent / "report.csv").open(encoding="utf-8", newline="") as lines:
        assert len(list(csv.DictReader(lines))) == 4


def test_writes_to_a_folder_named_by_a_text(comparison, tmp_path):
    assert write_report(comparison, str(tmp_path / "text")) == tmp_path / "text" / "report.html"


def test_the_record_of_one_run_is_reported_like_a_comparison(run_of, tmp_path):
    record = run_of()
    write_report(record, tmp_path)
    content = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert content["title"] == f"{record.source.model} on {record.data}"
    assert Comparison.model_validate(content["comparison"]).runs == (record,)


@pytest.mark.parametrize("given", ["runs/first", None, []])
def test_what_is_no_record_is_refused_in_one_line(given, tmp_path):
    with pytest.raises(InputError, match=r"comparison is .*; give what compare") as caught:
        write_report(given, tmp_path)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_refuses_a_second_look_at_the_test_split(comparison, run_of, tmp_path):
    worn = run_of().model_copy(update={"test_evaluations": {"after_training": 2}})
    with pytest.raises(InputError, match="more than once"):
        write_report(comparison.model_copy(update={"runs": (worn,)}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_not_a_number_still_makes_valid_json(run_of, tmp_path):
    bad = Certificate(
        passed=False, eval_difference=1e-7, train_difference=math.nan, samples=4, reason="NaN"
    )
    history = (HistoryPoint(phase="train", step=1, seconds=1, values={"loss": math.nan}),)
    run = run_of(certificates=(bad,), history=history)
    path = write_report(Comparison(title="t", runs=(run,)), tmp_path)

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    text = path.with_name("report.json").read_text(encoding="utf-8")
    rows = json.loads(text, parse_constant=refuse)["rows"]
    assert rows[1]["certificate"] == {
        "passed": False,
        "count": 1,
        "largest": None,
        "largest_float64": None,
    }
    assert "FAIL, largest inf" in path.with_name("report.md").read_text(encoding="utf-8")


def test_refuses_an_empty_comparison(tmp_path):
    with pytest.raises(InputError, match="'nothing' has no runs"):
        write_report(Comparison(title="nothing", runs=()), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_error_leaves_the_older_report(comparison, tmp_path, monkeypatch):
    write_report(comparison, tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    # A folder where the last part file should go: it cannot be written.
    (tmp_path / "report.json.part").mkdir()
    changed = comparison.model_copy(update={"title": "changed"})
    with pytest.raises(InputError, match="cannot write the report"):
        write_report(changed, tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()} == before


def test_a_file_in_place_of_the_folder_is_named(comparison, tmp_path):
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(InputError, match="cannot write the report to folder"):
        write_report(comparison, tmp_path / "file")
