"""Figures: points where the records put them, and no text of a record read as markup."""

import pytest

from prunus.records import Comparison, FrontPoint, HistoryPoint
from prunus.report import figures


def trace(figure, name):
    found = [t for t in figure.data if t.name == name]
    assert len(found) >= 1
    return found[0]


def test_all_figures_from_full_records(comparison):
    assert list(figures(comparison)) == ["pareto", "stages", "widths", "search", "training"]


def test_figures_without_records_are_left_out(run_of):
    bare = Comparison(title="t", runs=(run_of(scores=(), widths=(), history=()),))
    assert figures(bare) == {}


def test_pareto_points_error_bars_and_menu(comparison):
    figure = figures(comparison)["pareto"]
    genetic = trace(figure, "genetic")
    assert genetic.x[0] == pytest.approx(20.3e6)
    assert genetic.y[0] == pytest.approx(91.2)
    assert genetic.error_y.array[0] == pytest.approx(0.2)
    assert "seeds 0, 1, 2" in genetic.hovertext[0] and "6.10 ± 0.10 ms" in genetic.hovertext[0]
    # geometry and random cost more than genetic and score less: they are not on the front.
    front = trace(figure, "Pareto front")
    assert list(front.y) == pytest.approx([91.2, 92.1])
    assert list(front.x) == pytest.approx([20.3e6, 40.8e6])
    buttons = figure.layout.updatemenus[0].buttons
    assert [b.label for b in buttons][:3] == ["MACs", "Parameters", "Latency, median [ms]"]
    along_latency = buttons[2].args[0]["x"]
    assert len(along_latency) == len(figure.data)
    names = [t.name for t in figure.data]
    assert along_latency[names.index("geometry")] == [None]
    assert along_latency[names.index("genetic")] == [pytest.approx(6.1)]


def test_stage_bars(comparison):
    genetic = trace(figures(comparison)["stages"], "genetic")
    assert list(genetic.y) == pytest.approx([92.1, 42.0, 81.0, 91.2])
    assert list(genetic.error_y.array) == pytest.approx([0.0, 2.0, 1.0, 0.2])


def test_widths_are_shares_and_refusals_have_reasons(comparison):
    drawn = figures(comparison)["widths"]
    kept, refused = drawn.data
    names, groups = drawn.layout.xaxis.ticktext, list(drawn.layout.yaxis.ticktext)
    column = names.index("genetic")
    # 16 units; 11, 12 and 13 stay: (11 + 12 + 13) / 3 / 16
    assert kept.z[groups.index("conv1")][column] == pytest.approx(0.75)
    line = groups.index("view.fixed")
    assert kept.z[line][column] is None and refused.z[line][column] == 1
    assert "refused: a reshape with a fixed size" in refused.hovertext[line][column]


def test_search_shows_best_and_candidates(comparison):
    figure = figures(comparison)["search"]
    lines = [t for t in figure.data if t.visible and t.mode == "lines"]
    dots = [t for t in figure.data if t.visible and t.mode == "markers"]
    assert len(lines) == len(dots) == 3
    assert list(lines[0].y) == sorted(lines[0].y)
    assert all(d <= b for b, d in zip(lines[0].y, dots[0].y, strict=True))


def test_best_so_far_is_computed_where_it_is_not_recorded(run_of):
    values = [0.3, 0.5, 0.4]
    history = tuple(
        HistoryPoint(phase="search", step=i, seconds=i, values={"fitness": value})
        for i, value in enumerate(values)
    )
    figure = figures(Comparison(title="t", runs=(run_of(history=history),)))["search"]
    best, candidates = figure.data
    assert list(best.y) == [0.3, 0.5, 0.5] and list(candidates.y) == values


# (kl, top1, images, complete) of four candidates on 64, 256 or 1000 images; lower kl is better
CANDIDATES = [(0.5, 0.6, 64, 0), (0.3, 0.7, 1000, 1), (0.4, 0.8, 256, 0), (0.2, 0.5, 1000, 1)]


@pytest.fixture
def halved(run_of):
    def run(seed=0, candidates=CANDIDATES):
        best, points = [0.5, 0.3, 0.3, 0.2], []
        for step, (kl, top1, images, complete) in enumerate(candidates):
            values = {"kl": kl, "top1": top1, "images": images, "complete": complete}
            values |= {"best_kl": best[step]}
            points.append(HistoryPoint(phase="any", step=step, seconds=1, values=values))
        return run_of(seed=seed, history=tuple(points))

    return run


def test_the_best_of_a_quantity_is_shown_with_that_quantity(halved):
    figure = figures(Comparison(title="t", runs=(halved(),)))["search"]
    best, candidates = [t for t in figure.data if t.visible]
    assert (best.mode, list(best.y)) == ("lines", [0.5, 0.3, 0.3, 0.2])
    assert (candidates.mode, list(candidates.y)) == ("markers", [0.5, 0.3, 0.4, 0.2])
    assert list(candidates.marker.symbol) == ["circle-open", "circle", "circle-open", "circle"]
    assert "images: 256" in candidates.hovertext[2]
    labels = [button.label for button in figure.layout.updatemenus[0].buttons]
    assert labels == ["kl, best so far", "top1", "images"]
    assert figure.layout.yaxis.title.text == "kl, best so far"
    # each button shows its own traces: a line and dots of kl, dots of top1, dots of images; what was
    # dropped was seen on few images, so that no line of a best top1 is made up from such dots
    shown = [button.args[0]["visible"] for button in figure.layout.updatemenus[0].buttons]
    assert [sum(view) for view in shown] == [2, 1, 1]
    assert [any(view) for view in zip(*shown, strict=True)] == [True] * 4


def test_a_best_without_its_quantity_is_shown_alone(run_of):
    history = tuple(
        HistoryPoint(phase="any", step=i, seconds=1, values={"best loss": 2.0 - i, "mean": 3.0})
        for i in range(2)
    )
    figure = figures(Comparison(title="t", runs=(run_of(history=history),)))["search"]
    assert [b.label for b in figure.layout.updatemenus[0].buttons] == ["best so far", "mean"]
    assert [list(t.y) for t in figure.data] == [[2.0, 1.0], [3.0, 3.0]]


def test_a_best_loss_is_not_drawn_with_a_top1(run_of):
    history = tuple(
        HistoryPoint(phase="any", step=i, seconds=1, values={"best loss": 2.0 - i, "top1": 0.5})
        for i in range(2)
    )
    figure = figures(Comparison(title="t", runs=(run_of(history=history),)))["search"]
    assert [b.label for b in figure.layout.updatemenus[0].buttons] == ["best so far", "top1"]
    assert [(t.mode, list(t.y)) for t in figure.data] == [
        ("lines", [2.0, 1.0]),
        ("markers", [0.5, 0.5]),
    ]


def views_of(figure):
    """What each button of the menu shows: label, title below, traces."""
    return {
        button.label: (
            button.args[1]["xaxis.title.text"],
            [t for t, on in zip(figure.data, button.args[0]["visible"], strict=True) if on],
        )
        for button in figure.layout.updatemenus[0].buttons
    }


def test_generations_are_drawn_together_and_apart_from_candidates(halved, run_of):
    steps = [
        {"best of the generation": 0.3, "mean of the parents": 0.4, "best_fitness": 0.3},
        {"best of the generation": 0.5, "mean of the parents": 0.35, "best_fitness": 0.3},
    ]
    history = tuple(
        HistoryPoint(phase="search by generation", step=i, seconds=1, values=values)
        for i, values in enumerate(steps)
    )
    run = run_of(history=(*halved().history, *history))
    views = views_of(figures(Comparison(title="t", runs=(run,)))["search"])
    assert list(views) == ["kl, best so far", "top1", "images", "fitness by generation"]
    below, (best, mean, each) = views["fitness by generation"]
    assert below == "generation" and views["top1"][0].startswith("candidate")
    assert (best.mode, best.line.shape, list(best.y)) == ("lines+markers", "hv", [0.3, 0.3])
    assert (mean.mode, mean.line.dash, list(mean.y)) == ("lines+markers", "dash", [0.4, 0.35])
    assert (each.mode, list(each.y)) == ("markers", [0.3, 0.5])


def test_a_search_for_a_front_has_no_best_candidate(run_of):
    candidates = [
        {"kl": kl, "loss": 1.0, "top1": 0.5, "images": 200, "complete": 1, "best_kl": min(kl, 0.2)}
        for kl in (0.3, 0.1)
    ]
    history = [
        HistoryPoint(phase="genetic", step=i, seconds=1, values=values)
        for i, values in enumerate(candidates)
    ]
    history += [
        HistoryPoint(
            phase="search front",
            step=i,
            seconds=1,
            values={"hypervolume": 0.5 + i / 10, "networks on the front": 2.0 + i},
        )
        for i in range(2)
    ]
    member = FrontPoint(macs=1, params=1, fitness=0.1, kl=0.1, loss=1, top1=0.5, chosen=True)
    run = run_of(history=tuple(history), front=(member,))
    drawn = figures(Comparison(title="t", runs=(run,)))
    assert "training" not in drawn and "halving" not in drawn
    views = views_of(drawn["search"])
    # all were seen on the same images: those are no view
    assert list(views) == ["kl", "loss", "top1", "hypervolume", "networks on the front"]
    for name in ("kl", "loss", "top1"):
        (dots,) = views[name][1]
        assert dots.mode == "markers" and "best" not in dots.hovertext[0]
    below, (line,) = views["hypervolume"]
    assert (below, line.mode, list(line.y)) == ("generation", "lines+markers", [0.5, 0.6])


def test_rounds_on_the_search_split_are_no_candidates(halved, run_of):
    history = tuple(
        HistoryPoint(
            phase="search split after each step", step=i, seconds=1, values={"top1": 0.9 - i / 10}
        )
        for i in (1, 2)
    )
    run = run_of(history=(*halved().history, *history))
    views = views_of(figures(Comparison(title="t", runs=(run,)))["search"])
    below, (line,) = views["top1 on the search split"]
    assert (below, line.mode) == ("step of the recipe", "lines+markers")
    assert list(line.y) == pytest.approx([0.8, 0.7])
    assert len(views["top1"][1]) == 1


def test_halving_counts_those_that_were_seen_on_so_many_images(halved):
    runs = (halved(0), halved(1))
    lines = figures(Comparison(title="t", runs=runs))["halving"].data
    assert len(lines) == 2
    for line in lines:
        assert list(line.x) == [64, 256, 1000]
        assert list(line.y) == [4, 3, 2]
        assert "4 candidates seen on 64 images, 1 dropped there" in line.hovertext[0]
        assert "2 candidates seen on 1000 images, these are all" in line.hovertext[2]
    assert [line.showlegend for line in lines] == [True, False]


def test_where_none_was_dropped_there_is_no_halving(halved):
    whole = [(0.5, 0.6, 1000, 1)] * 4
    assert "halving" not in figures(Comparison(title="t", runs=(halved(0, whole),)))


def test_training_breaks_between_rounds(run_of):
    history = tuple(
        HistoryPoint(phase="train", step=step, seconds=1, values={"loss": 1.0})
        for step in (1, 2, 1, 2)
    )
    figure = figures(Comparison(title="t", runs=(run_of(history=history),)))["training"]
    assert list(figure.data[0].x) == [1, 2, None, 1, 2]


def test_training_panels(comparison):
    figure = figures(comparison)["training"]
    assert figure.layout.yaxis.title.text == "loss"
    assert figure.layout.xaxis2.title.text == "epoch"
    assert len(figure.data) == 2 * 9


def test_hostile_names_are_escaped_in_figures(run_of):
    hostile = '<a href="https://example.org">x</a>'
    drawn = figures(Comparison(title="t", runs=(run_of(hostile),)))
    for figure in drawn.values():
        # plotly writes < and > of strings as escapes of their own.
        text = figure.to_json().replace("\\u003c", "<")
        assert "<a" not in text
        assert "&lt;a href=" in text
