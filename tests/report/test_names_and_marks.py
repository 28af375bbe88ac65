"""Many rows and long names in figures and on the page: nothing falls together, all can be reached."""

import re

from prunus.records import Comparison
from prunus.report import figures, render_html


def many(run_of, names):
    return Comparison(title="t", runs=tuple(run_of(name) for name in names))


def test_no_two_of_twenty_methods_share_color_and_symbol(run_of):
    names = [f"method {i}" for i in range(18)]
    names[4:4] = ["random", "scratch"]  # among the others: they have colors of their own
    drawn = figures(many(run_of, names))["pareto"]
    marks = [t for t in drawn.data if t.mode == "markers" and t.showlegend is not False]
    looks = {(t.marker.color, t.marker.symbol) for t in marks}
    assert len(marks) == len(looks) == 21  # and the dense network


def test_long_names_are_short_in_legends_and_whole_where_pointed_at(run_of):
    name = "a name as long as a sentence " * 4
    drawn = figures(many(run_of, [name + "one", name + "two"]))
    for figure in ("pareto", "stages", "training"):
        assert all(len(t.name or "") <= 40 for t in drawn[figure].data)
    assert any("one" in text for t in drawn["stages"].data for text in t.hovertext)


def test_rows_whose_short_names_are_equal_stay_apart(run_of):
    names = ["begin " * 8 + middle + " end" * 12 for middle in ("one", "two")]
    drawn = figures(many(run_of, names))
    assert len(drawn["widths"].data[0].x) == 2
    assert len({t.legendgroup for t in drawn["training"].data}) == 2
    assert len([t for t in drawn["training"].data if t.showlegend]) == 2


def test_a_row_that_is_called_like_the_dense_network_is_drawn_apart_from_it(run_of):
    runs = [run_of(name, seed) for name in ("dense", "l1") for seed in (0, 1)]
    drawn = figures(Comparison(title="t", runs=tuple(runs)))["pareto"]
    named = [t for t in drawn.data if t.name == "dense"]
    assert [len(t.x) for t in named] == [1, 1]
    assert len({(t.legendgroup, t.marker.color, t.marker.symbol) for t in named}) == 2
    (dots,) = (
        t
        for t in drawn.data
        if t.hovertext and t.hovertext[0].endswith("seed 0") and t.hovertext[0].startswith("dense")
    )
    assert dots.legendgroup == named[1].legendgroup != named[0].legendgroup


def test_names_that_stand_upright_have_a_place(run_of):
    few = figures(many(run_of, ["a", "b"]))["widths"]
    wide = figures(many(run_of, [f"a method of a long name, {i}" for i in range(30)]))["widths"]
    # 27 letters of about 7 pixels
    assert wide.layout.height >= few.layout.height + 27 * 7
    assert few.data[0].texttemplate and not wide.data[0].texttemplate


def test_one_seed_has_no_error_bar(run_of):
    runs = [run_of("a", 0), run_of("b", 0), run_of("b", 1)]
    drawn = figures(Comparison(title="t", runs=tuple(runs)))["stages"]
    first, second = (list(trace.error_y.array) for trace in drawn.data)
    assert first[1:] == [None] * 3 and None not in second


def test_one_run_is_not_runs(run_of):
    assert "cifar10; 1 run<" in render_html(Comparison(title="t", runs=(run_of(),)))


def test_certificates_sort_by_size_and_not_by_their_first_digit(run_of):
    proof = run_of().certificates[0]
    runs = [
        run_of(f"m{i}", certificates=(proof.model_copy(update={"eval_difference": d}),))
        for i, d in enumerate((9e-7, 1e-6, float("inf"), 3.5e-7))
    ]
    page = render_html(Comparison(title="t", runs=tuple(runs)))
    keys = re.findall(r'<td class="pass" data-sort="([^"]+)"', page)
    assert sorted(range(4), key=keys.__getitem__) == [3, 0, 1, 2]


def test_figures_and_boxes_have_names(comparison):
    page = render_html(comparison)
    for name in figures(comparison):
        (about,) = re.findall(rf'id="plot-{name}" role="figure" aria-label="([^"]+)"', page)
        assert about and f'aria-describedby="note-{name}"' in page and f'id="note-{name}"' in page
    boxes = re.findall(r'<div class="scroll"[^>]*>', page)
    assert boxes and all('role="region" aria-label=' in box for box in boxes)
    assert "<noscript>" in page and not re.search(r"<th(?![^>]*scope=)(?!ead)[ >]", page)
