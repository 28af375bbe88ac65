"""The page: self-contained, machine readable, and safe with whatever a record holds."""

import json
from html.parser import HTMLParser

import pytest

from prunus.errors import PrunusError
from prunus.records import Comparison, HistoryPoint
from prunus.report import render_html
from prunus.report.html import json_for_script


class Page(HTMLParser):
    """Elements, and the text of each script by its id."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.scripts, self.words, self._script = [], {}, [], None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag == "script":
            self._script = dict(attrs).get("id", f"script-{len(self.scripts)}")

    def handle_endtag(self, tag):
        if tag == "script":
            self._script = None

    def handle_data(self, data):
        if self._script is None:
            self.words.append(data)
        else:
            self.scripts[self._script] = self.scripts.get(self._script, "") + data


HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&"


@pytest.fixture
def hostile(run_of):
    runs = tuple(
        run_of(
            HOSTILE,
            seed,
            data=HOSTILE,
            notes=(HOSTILE, f"latency: {HOSTILE}"),
            latency=None,
            recipe={HOSTILE: HOSTILE},
            target={HOSTILE: 0.5},
        )
        for seed in range(3)
    )
    return Comparison(title=HOSTILE, runs=runs)


def test_embedded_json_is_the_comparison(comparison, hostile):
    for original in (comparison, hostile):
        page = Page(render_html(original))
        again = Comparison.model_validate_json(page.scripts["comparison-data"])
        assert again == original


def test_no_request_leaves_the_page(comparison):
    page = Page(render_html(comparison))
    for tag, attributes in page.elements:
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            value = attributes.get(name) or ""
            assert not value or value[0] == "#" or value == "data:,", (tag, attributes)
    policy = next(a["content"] for t, a in page.elements if a.get("http-equiv"))
    assert policy.startswith("default-src 'none'")
    assert sum("plotly.js" in text[:200] for text in page.scripts.values()) == 1


def test_hostile_records_add_no_element(comparison, hostile, run_of):
    def tags(record):
        return {tag for tag, _ in Page(render_html(record)).elements}

    assert "img" not in tags(hostile)
    page = Page(render_html(hostile))
    assert len(page.scripts) == 4
    assert all("alert" not in (name or "") for _, a in page.elements for name in a)
    assert not any(key.startswith("on") for _, a in page.elements for key in a)
    assert HOSTILE in " ".join(page.words)


def test_script_method_name_is_text(run_of):
    text = render_html(Comparison(title="t", runs=(run_of("<script>"),)))
    page = Page(text)
    assert "<script>" in "".join(page.words)
    assert len(page.scripts) == 4
    assert "&lt;script&gt;" in text


def test_sections_and_figures(comparison):
    page = Page(render_html(comparison))
    ids = {attributes.get("id") for _, attributes in page.elements}
    names = {"pareto", "stages", "widths", "search", "training"}
    assert {f"plot-{name}" for name in names} <= ids
    assert set(json.loads(page.scripts["figure-data"])) == names
    assert {"table", "certificates", "environment", "recipes", "data"} <= ids
    words = " ".join(page.words)
    assert "Best method at macs=0.5: genetic" in words and "Example CPU" in words


def test_a_search_that_dropped_candidates_has_its_figures(run_of):
    points = [
        {"kl": 0.5, "best_kl": 0.5, "images": 64, "complete": 0},
        {"kl": 0.2, "best_kl": 0.2, "images": 1000, "complete": 1},
    ]
    history = tuple(
        HistoryPoint(phase="random-search", step=i, seconds=1, values=values)
        for i, values in enumerate(points)
    )
    page = Page(render_html(Comparison(title="t", runs=(run_of(history=history),))))
    drawn = json.loads(page.scripts["figure-data"])
    assert {"search", "halving"} <= set(drawn) and "training" not in drawn
    assert drawn["search"]["data"][0]["y"] == [0.5, 0.2]
    assert drawn["halving"]["data"][0]["y"] == [2, 1]
    words = " ".join(page.words)
    assert "Candidates dropped on the way" in words and "Hollow dots" in words


def test_a_wait_policy_that_is_set_stands_in_the_environment(comparison, run_of, environment_of):
    assert "Idle threads wait" not in " ".join(Page(render_html(comparison)).words)
    passive = Comparison(title="t", runs=(run_of(environment=environment_of(waiting="passive")),))
    assert "Idle threads wait passive" in " ".join(Page(render_html(passive)).words)


def test_dirty_environment_is_a_warning(comparison, run_of, environment_of):
    assert "uncommitted" not in " ".join(Page(render_html(comparison)).words)
    dirty = Comparison(title="t", runs=(run_of(environment=environment_of(dirty=True)),))
    assert "uncommitted changes" in " ".join(Page(render_html(dirty)).words)


def test_failed_certificate_shows(comparison):
    bad = (
        comparison.runs[0]
        .certificates[0]
        .model_copy(update={"passed": False, "reason": "layer1 differs"})
    )
    runs = (comparison.runs[0].model_copy(update={"certificates": (bad,)}),)
    words = " ".join(Page(render_html(comparison.model_copy(update={"runs": runs}))).words)
    assert "FAIL" in words and "layer1 differs" in words and "certificate FAILED" in words


def test_empty_comparison_is_refused():
    with pytest.raises(PrunusError, match="has no runs"):
        render_html(Comparison(title="nothing", runs=()))


def test_json_for_script_keeps_the_meaning():
    value = {"</script>": "<!-- & \u2028 > é"}
    text = json_for_script(json.dumps(value, ensure_ascii=False))
    assert json.loads(text) == value
    assert not set("<>&\u2028") & set(text)
