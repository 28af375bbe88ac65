"""Fronts: networks where their costs put them, stairs that only get better, one star per pick."""

import json
import math

import pytest

from prunus.records import Comparison, FrontPoint, RunRecord
from prunus.report import csv_table, figures, markdown_table, render_html, report_json

DENSE_MACS, DENSE_PARAMS = 40_800_000, 270_000
VIEWS = [
    "top-1 against executed MACs",
    "KL to dense against executed MACs",
    "loss against executed MACs",
    "top-1 against parameters",
    "KL to dense against parameters",
    "loss against parameters",
]
# Shares of the dense MACs and params in percent, kl, loss, top1: a front in kl, by falling quality.
# The third is no better than the second in top-1.
MEMBERS = [
    (100, 80, 0.1, 1.0, 0.90),
    (75, 50, 0.2, 1.2, 0.85),
    (60, 60, 0.3, 1.1, 0.70),
    (50, 40, 0.4, 1.5, 0.70),
]


def make_point(macs, params, kl, loss, top1, **changes):
    return FrontPoint(
        macs=DENSE_MACS * macs // 100,
        params=DENSE_PARAMS * params // 100,
        fitness=kl,
        kl=kl,
        loss=loss,
        top1=top1,
        **changes,
    )


def make_front(members=MEMBERS, chosen=-1):
    places = range(len(members))
    return tuple(make_point(*members[i], chosen=i == places[chosen]) for i in places)


def front_of(*runs):
    return figures(Comparison(title="t", runs=runs)).get("front")


def shown(figure, view):
    """Figure data and layout after a click in the menu."""
    data, layout = next(b for b in figure.layout.updatemenus[0].buttons if b.label == view).args
    again = type(figure)(figure)
    for trace, x, y in zip(again.data, data["x"], data["y"], strict=True):
        trace.update(x=x, y=y)
    # the page's script replaces a list, where this library merges it
    again.layout.shapes = ()
    again.update_layout({key.replace(".", "_"): value for key, value in layout.items()})
    return again


def parts(figure):
    """Lines, small marks and stars; not the entry of the legend."""
    placed = [t for t in figure.data if list(t.x) != [None]]
    lines = [t for t in placed if t.mode == "lines"]
    stars = [t for t in placed if t.mode == "markers" and t.marker.symbol == "star"]
    return lines, [t for t in placed if t not in lines and t not in stars], stars


def test_records_without_a_front_have_no_figure(comparison):
    assert "front" not in figures(comparison)
    assert 'id="plot-front"' not in render_html(comparison)


def test_marks_are_where_costs_and_qualities_are(run_of):
    figure = front_of(run_of(front=make_front()))
    (line,), (dots,), (star,) = parts(figure)
    # by rising cost, in percent of the dense network; the chosen one is a star, and no small mark
    assert list(dots.x) == pytest.approx([60, 75, 100])
    assert list(dots.y) == pytest.approx([70, 85, 90])
    assert (list(star.x), list(star.y)) == ([50], [70])
    # 60 % of the MACs buys nothing over 50 %
    assert line.line.shape == "hv"
    assert list(line.x) == pytest.approx([50, 75, 100])
    assert list(line.y) == pytest.approx([70, 85, 90])
    assert figure.layout.xaxis.title.text == "executed MACs [% of the dense network]"
    assert figure.layout.yaxis.title.text == "top-1 before training, search split [%]"


@pytest.mark.parametrize(
    ("view", "x", "y"),
    [
        (VIEWS[0], [50, 75, 100], [70, 85, 90]),
        (VIEWS[1], [50, 60, 75, 100], [0.4, 0.3, 0.2, 0.1]),
        (VIEWS[2], [50, 60, 100], [1.5, 1.1, 1.0]),
        (VIEWS[3], [40, 50, 80], [70, 85, 90]),
        (VIEWS[4], [40, 50, 80], [0.4, 0.2, 0.1]),
        (VIEWS[5], [40, 50, 60, 80], [1.5, 1.2, 1.1, 1.0]),
    ],
)
def test_stairs_of_each_view(run_of, view, x, y):
    figure = front_of(run_of(front=make_front()))
    assert [button.label for button in figure.layout.updatemenus[0].buttons] == VIEWS
    clicked = shown(figure, view)
    (line,), (dots,), (star,) = parts(clicked)
    assert list(line.x) == pytest.approx(x) and list(line.y) == pytest.approx(y)
    assert len(dots.x) == 3 and len(star.x) == 1
    # the pick costs least, and is nowhere better than the rest
    assert (star.x[0], star.y[0]) == (pytest.approx(x[0]), pytest.approx(y[0]))
    assert ("parameters" in clicked.layout.xaxis.title.text) == ("parameters" in view)


@pytest.mark.parametrize(
    ("target", "macs", "params"),
    [
        ({"macs": 0.5}, [(50, "budget macs=0.5")], []),
        ({"macs": 10_200_000}, [(25, "budget macs=10200000")], []),
        ({"params": 0.4}, [], [(40, "budget params=0.4")]),
        ({"size": 0.4}, [], []),
    ],
)
def test_the_budget_is_a_dotted_line_on_its_own_cost_only(run_of, target, macs, params):
    figure = front_of(run_of(front=make_front(), target=target))
    for views, expected in ((VIEWS[:3], macs), (VIEWS[3:], params)):
        for view in views:
            drawn = shown(figure, view).layout.shapes
            assert [(s.x0, s.label.text) for s in drawn] == [
                (pytest.approx(x), label) for x, label in expected
            ]
            assert all(s.x0 == s.x1 and s.yref == "paper" for s in drawn)
            assert all(s.line.dash == "dot" for s in drawn)


def test_budgets_of_all_targets_are_drawn_once(run_of):
    runs = [
        run_of(seed=seed, front=make_front(), target={"macs": share})
        for share in (0.5, 0.25)
        for seed in (0, 1)
    ]
    figure = front_of(*runs)
    assert [s.x0 for s in figure.layout.shapes] == pytest.approx([25, 50])
    names = [t.name for t in figure.data if t.showlegend]
    assert names == [
        f"genetic (macs={share}), seed {seed}" for share in (0.5, 0.25) for seed in (0, 1)
    ]
    assert len({line.line.dash for line in parts(figure)[0]}) == 4
    # small marks tell the targets apart
    assert [d.marker.symbol for d in parts(figure)[1]] == ["circle"] * 2 + ["square"] * 2


def test_a_line_per_seed_and_one_entry_for_the_star(run_of):
    figure = front_of(*(run_of(seed=seed, front=make_front()) for seed in range(3)))
    lines, _, stars = parts(figure)
    assert [line.name for line in lines] == [f"genetic, seed {seed}" for seed in range(3)]
    assert len({line.line.dash for line in lines}) == 3
    assert len({line.line.color for line in lines}) == 1
    assert [len(star.x) for star in stars] == [1, 1, 1]
    assert [t.name for t in figure.data].count("chosen") == 1
    # hiding a run hides its line, marks and star together
    groups = {t.legendgroup for t in figure.data if t.name != "chosen"}
    assert groups == {line.legendgroup for line in lines} and len(groups) == 3


def test_each_search_of_a_run_has_stairs_of_its_own(run_of):
    # Begun where the first ended, which no training changed: all of it is less good.
    later = [(45, 40, 0.45, 1.6, 0.65), (25, 20, 0.5, 2.0, 0.5)]
    second = (point.model_copy(update={"search": 1}) for point in make_front(later))
    figure = front_of(run_of(front=(*make_front(), *second)))
    lines, dots, stars = parts(figure)
    assert [list(line.x) for line in lines] == [pytest.approx([50, 75, 100]), [25, 45]]
    assert [list(star.x) for star in stars] == [[50], [25]]
    assert [line.showlegend for line in lines] == [True, False]
    assert "search 1 of 2" in dots[0].hovertext[0] and "search 2 of 2" in stars[1].hovertext[0]


def test_a_front_in_any_order_with_one_pick_is_one_front(run_of):
    (line,), (dots,), _ = parts(front_of(run_of(front=make_front(MEMBERS[::-1], chosen=0))))
    assert list(line.x) == pytest.approx([50, 75, 100])
    assert list(dots.x) == pytest.approx([60, 75, 100])


def test_hover_says_all_values(run_of):
    _, (dots,), (star,) = parts(front_of(run_of(front=make_front())))
    assert dots.hovertext[0] == (
        "<b>genetic at macs=0.5</b>, seed 0<br>top-1: 70.00 %<br>KL: 0.3, loss: 1.1, fitness: 0.3"
        "<br>executed MACs: 24.5 M, 60.0 % of dense<br>parameters: 162 k, 60.0 % of dense"
    )
    assert star.hovertext[0].endswith("<br>chosen: the run went on with it")


def test_unknown_dense_costs_leave_absolute_ones(run_of):
    unknown = run_of().dense_cost.model_copy(update={"macs": 0})
    figure = front_of(run_of(front=make_front(), dense_cost=unknown))
    (line,), _, _ = parts(figure)
    assert list(line.x) == [20_400_000, 30_600_000, 40_800_000]
    assert figure.layout.xaxis.title.text == "executed MACs"
    # a share of what is not known is no place
    assert figure.layout.shapes == ()


def test_wide_divergences_have_a_logarithmic_axis(run_of):
    def types(members):
        figure = front_of(run_of(front=make_front(members)))
        return [shown(figure, view).layout.yaxis.type for view in VIEWS[:3]]

    assert types(MEMBERS) == ["linear"] * 3
    wide = [(100, 100, 0.001, 1.0, 0.9), (50, 50, 0.2, 1.5, 0.001)]
    assert types(wide) == ["linear", "log", "linear"]
    # 0 has no place on such an axis
    assert types([(100, 100, 0.0, 1.0, 0.9), *wide]) == ["linear"] * 3


def test_values_that_are_no_numbers_are_left_out(run_of):
    members = [*MEMBERS[:3], (50, 40, math.inf, math.nan, 0.7)]
    clicked = shown(front_of(run_of(front=make_front(members))), VIEWS[1])
    (line,), (dots,), (star,) = parts(clicked)
    assert list(line.x) == pytest.approx([60, 75, 100]) and len(dots.x) == 3
    assert list(star.y) == [None]


def test_hostile_names_are_escaped(run_of):
    hostile = '<a href="https://example.org">x</a>'
    run = run_of(hostile, front=make_front(), target={"macs": 0.5, hostile: 1})
    written = front_of(run).to_json().replace("\\u003c", "<")
    assert "<a" not in written and "&lt;a href=" in written


def test_records_with_a_front_come_back_and_fill_every_report(run_of):
    plain, found = run_of("geometry"), run_of(front=make_front())
    assert RunRecord.model_validate_json(found.model_dump_json()) == found
    record = Comparison(title="t", runs=(plain, found))
    written = json.loads(report_json(record))["comparison"]
    assert Comparison.model_validate(written) == record
    assert [p["chosen"] for p in written["runs"][1]["front"]] == [False, False, False, True]
    page = render_html(record)
    assert 'id="plot-front"' in page and "Front of the search" in page
    # the tables hold a line per method, with or without a front
    bare = Comparison(title="t", runs=(plain, found.model_copy(update={"front": ()})))
    assert csv_table(record) == csv_table(bare)
    assert markdown_table(record) == markdown_table(bare)
