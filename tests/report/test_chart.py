import dataclasses
from dataclasses import replace

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from jaxsat.config import InputError
from jaxsat.report import Chart, figures
from jaxsat.results import NotMeasured, Results

COLUMNS = ["series", "step", "tokens", "layer", "index", "metric", "value"]


def lines(figure: Figure) -> dict[tuple[int, str], np.ndarray]:
    """(panel, label) -> points, of every labelled line."""
    found = [(i, line) for i, ax in enumerate(figure.axes) for line in ax.lines]
    return {(i, line.get_label()): line.get_xydata() for i, line in found if not line.get_label().startswith("_")}


def named(figure: Figure) -> list[set[str]]:
    """The names at the ends of each panel's lines."""
    return [{text.get_text() for text in ax.texts} for ax in figure.axes]


def mean(results: Results, metric: str, rule: str, part: str = "main") -> np.ndarray:
    """Over seeds, at every checkpoint but step 0."""
    rows = results.rows(metric, part=part).query(rule)
    return rows[rows["step"] > 0].groupby("tokens")["value"].mean().to_numpy()


@pytest.fixture(scope="module")
def computed() -> Results:
    """Three series that are no runs, and no runs."""
    rows = [
        (f"alpha = {alpha}", step, 100 * step, -1, 0, metric, alpha * step)
        for alpha in (0.5, 1.0, 2.0)
        for step in (1, 2, 4)
        for metric in ("order", "error")
    ]
    return Results("laptop", pd.DataFrame(), pd.DataFrame(rows, columns=COLUMNS))


def test_a_line_is_the_mean_over_seeds_and_their_range_is_the_band(results):
    figure = Chart("heldout_loss", dash="rank", part="main", where="`model.width` == 16").draw(results)
    shown = lines(figure)
    assert set(shown) == {(0, f"r = {r}") for r in (2, 4, 8, 16)}
    rule = "`model.width` == 16 and rank == 4"
    assert shown[0, "r = 4"][:, 1] == pytest.approx(mean(results, "heldout_loss", rule))
    assert len(figure.axes[0].collections) == 4
    band = figure.axes[0].collections[0].get_paths()[0].vertices[:, 1]
    full = results.rows("heldout_loss", part="main").query("`model.width` == 16 and rank == 16 and step > 0")
    assert (band.min(), band.max()) == pytest.approx((full["value"].min(), full["value"].max()))


def test_spectra_of_every_matrix_are_logarithmic(computed):
    rows = computed.measurements.replace({"metric": {"error": "query.singular_value"}})
    figure = Chart("query.singular_value", colour="series").draw(Results("laptop", pd.DataFrame(), rows))
    assert (figure.axes[0].get_yscale(), figure.axes[0].get_ylabel()) == ("log", "singular value, query")


def test_nothing_is_averaged_that_the_chart_does_not_say(results):
    """Of runs that differ in head rank too, the colour alone would be a mean over ranks."""
    shown = lines(Chart("heldout_loss", part="main").draw(results))
    assert {label for _, label in shown if label.startswith("d = 8")} == {f"d = 8, r = {r}" for r in (2, 4, 8)}
    probe = lines(Chart("heldout_loss", part="probe").draw(results))
    assert {label for _, label in probe} == {f"lr {lr}, decay {wd}" for lr in ("0.04", "0.12") for wd in ("0", "0.1")}
    budgets = Chart("heldout_loss", x="model.width", colour="metric", part="budget")
    assert {label for _, label in lines(budgets.draw(results))} == {"steps 375", "steps 750"}


def test_settings_that_follow_from_others_do_not_part_a_line(results):
    """Heads and learning rate follow from the width."""
    shown = lines(Chart("heldout_loss", x="model.width", colour="rank", part="main").draw(results))
    assert set(shown) == {(0, f"r = {r}") for r in (2, 4, 8, 16, 32, 64)}
    assert shown[0, "r = 4"][:, 0].tolist() == [8, 16, 32, 64]


def test_layers_and_indices_are_lines_unless_they_are_x(results):
    where = "`model.width` == 8 and rank == 8"
    shown = lines(Chart("anisotropy", part="main", where=where).draw(results))
    assert {label for _, label in shown} == {"layer 0", "layer 1", "layer 2"}
    last = lines(Chart("anisotropy", x="layer", part="main", where=where).draw(results))
    assert last[0, "d = 8"][:, 0].tolist() == [0, 1, 2]
    every = lines(Chart("anisotropy", x="layer", part="main", where=where, at="every").draw(results))
    assert (0, "0 tokens") in every and (0, "1.54M tokens") in every


def test_no_band_shows_every_seed(results):
    chart = Chart("heldout_loss", part="main", where="`model.width` == 64 and rank == 64", band="")
    assert {label for _, label in lines(chart.draw(results))} == {"seed 0", "seed 1"}


def test_panels_are_of_a_column_unless_each_would_hold_one_line(results):
    chart = Chart("heldout_loss", panel="size", dash="rank", part="main")
    shown = lines(chart.draw(results))
    assert {label for panel, label in shown if panel == 3} == {f"r = {2**k}" for k in range(2, 7)}
    full = replace(chart, where="`model.head_rank`.isna()")
    assert set(lines(full.draw(results))) == {(0, f"d = {d}") for d in (8, 16, 32, 64)}


def test_metrics_have_panels_and_a_tuple_shares_one(results):
    pair = ("anisotropy_before_gain", "anisotropy_after_gain")
    chart = Chart(["heldout_loss", pair], dash="metric", part="main", where="`model.head_rank`.isna()")
    figure = chart.draw(results)
    assert len(lines(figure)) == 4 + 8 and named(figure) == [{f"d = {d}" for d in (8, 16, 32, 64)}] * 2
    key = [text.get_text() for text in figure.axes[1].get_legend().get_texts()]
    assert key == ["anisotropy before the final norm's gain", "anisotropy after the final norm's gain"]
    assert figure.axes[0].get_legend() is None
    assert [ax.get_ylabel() for ax in figure.axes][0] == "held-out loss\n(nats/token)"


def test_a_metric_that_is_missing_leaves_its_panel_empty_and_says_so(results):
    figure = Chart(["heldout_loss", "exact_match/cogs"], part="main").draw(results)
    assert named(figure)[1] == {"not measured"} and figure.axes[1].get_ylabel() == "exact match/cogs"


def test_the_largest_number_is_solid_and_colours_run_with_size(results):
    chart = Chart("heldout_loss", panel="size", dash="rank", part="main")
    first = {line.get_label(): line.get_linestyle() for line in chart.draw(results).axes[0].lines}
    assert first["r = 8"] == "-" and first["r = 4"] != "-"
    one = Chart("heldout_loss", part="main", where="`model.head_rank`.isna()").draw(results)
    colours = [line.get_color() for line in one.axes[0].lines]
    assert colours == [figures.RAMP[i] for i in (0, 5, 9, 14)]


def test_step_zero_is_left_out_of_a_logarithmic_axis_alone(results):
    one = {"part": "main", "where": "`model.width` == 8 and rank == 8"}
    assert lines(Chart("heldout_loss", **one).draw(results))[0, "d = 8"][0, 0] > 0
    linear = Chart("heldout_loss", log="", **one).draw(results)
    assert lines(linear)[0, "d = 8"][0, 0] == 0 and linear.axes[0].get_xscale() == "linear"


def test_last_is_of_runs_whose_training_has_ended(results):
    widest = results.runs.index[results.runs["model.width"] == 64]
    ends, rows = results.runs["train.steps"], results.measurements
    begun = rows[~rows["series"].isin(widest) | (rows["step"] < rows["series"].map(ends))]
    chart = Chart("heldout_loss", x="model.width", colour="rank", part="main")
    assert chart.data(replace(results, measurements=begun))["model.width"].max() == 32
    none = replace(results, measurements=rows[rows["step"] < rows["series"].map(ends)])
    with pytest.raises(NotMeasured, match="at the end of a run"):
        chart.draw(none)


def test_x_may_be_a_metric(results):
    chart = Chart("heldout_loss", x="effective_rank", part="main", where="seed == 0")
    shown = lines(chart.draw(results))
    assert {label for _, label in shown} == {f"d = {d}" for d in (8, 16, 32, 64)}
    ends = results.last("effective_rank", part="main").query("seed == 0 and `model.width` == 8")["value"]
    assert sorted(shown[0, "d = 8"][:, 0]) == pytest.approx(sorted(ends))
    path = lines(replace(chart, at="every", where="seed == 0 and `model.head_rank`.isna()").draw(results))
    rows = results.rows("effective_rank", part="main").query("seed == 0 and rank == 8 and `model.width` == 8")
    assert path[0, "d = 8"][:, 0] == pytest.approx(rows.sort_values("step")["value"].to_numpy())


def test_a_guide_has_its_slope_and_runs_through_the_middle(results):
    chart = Chart([("head_gap_truncated", "head_gap_trained")], x="head_tail", colour="series", dash="metric", slope=2)
    figure = chart.draw(results)
    assert {label for _, label in lines(figure)} == {
        f"{world}, loss of {head} head above the true entropy"
        for world in ("i^-0.5", "i^-1.5")
        for head in ("the truncated", "a trained")
    }
    assert all((xy > 0).all() and len(xy) == 7 for xy in lines(figure).values())  # rank 16 has no tail
    x, y = figure.axes[0].lines[-1].get_xydata().T
    assert np.log(y[1] / y[0]) / np.log(x[1] / x[0]) == pytest.approx(2)
    gaps = np.log(np.concatenate(list(lines(figure).values())))
    assert (np.log(y[0]) - 2 * np.log(x[0])) == pytest.approx((gaps[:, 1] - 2 * gaps[:, 0]).mean())
    assert (figure.axes[0].get_xscale(), figure.axes[0].get_yscale()) == ("log", "log")


def test_series_that_are_no_runs_have_their_own_names(computed):
    for colour in ("size", "series"):
        shown = lines(Chart("order", x="step", colour=colour).draw(computed))
        assert set(shown) == {(0, f"alpha = {a}") for a in (0.5, 1.0, 2.0)}
        assert shown[0, "alpha = 2.0"][:, 1].tolist() == [2, 4, 8]
    apart = lines(Chart(("order", "error"), colour="metric").draw(computed))
    assert len(apart) == 6  # no mean over series either


def test_a_table_of_runs_without_widths_and_ranks(results):
    """Of a model that is no transformer: its runs have a setting and a seed."""
    runs = pd.DataFrame({"alpha": [1, 1, 2], "seed": [0, 1, 0], "state": "done", "part": "main"}, index=["a", "b", "c"])
    rows = [(id, s, 10 * s, -1, 0, "error", v / s) for id, v in zip("abc", (1.0, 3.0, 5.0)) for s in (1, 2)]
    found = Results("laptop", runs, pd.DataFrame(rows, columns=COLUMNS), {"main": ("a", "b", "c")})
    shown = lines(Chart("error", colour="alpha").draw(found))
    assert shown[0, "alpha 1"].tolist() == [[10, 2], [20, 1]] and shown[0, "alpha 2"].tolist() == [[10, 5], [20, 2.5]]
    assert set(lines(Chart("error").draw(found))) == {(0, "a"), (0, "b"), (0, "c")}
    assert lines(Chart("error", x="alpha", colour="metric").draw(found))[0, "error"].tolist() == [[1, 1], [2, 2.5]]


def test_names_have_places_in_a_row(results):
    figure = Chart("heldout_loss", x="part", colour="rank", where="`model.width` == 8 and seed == 0").draw(results)
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == ["budget", "main", "probe"]


def test_crowded_lines_have_a_key_of_colours(results):
    figure = Chart("heldout_loss", part="main", band="").draw(results)
    assert len(lines(figure)) > 20 and named(figure) == [set()] and not figure.legends
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == [
        "d = 8", "d = 16", "d = 32", "d = 64",
    ]  # fmt: skip


def many(n: int, panels: int = 1) -> Results:
    names = [f"alpha {i:02}" for i in range(n)]
    rows = [(a, s, s, p, 0, "order", s + i) for p in range(panels) for i, a in enumerate(names) for s in (1, 2, 3)]
    return Results("laptop", pd.DataFrame(), pd.DataFrame(rows, columns=COLUMNS))


def test_twenty_lines_have_their_names(results):
    figure = Chart("order", colour="series").draw(many(20))
    assert named(figure) == [{f"alpha {i:02}" for i in range(20)}] and not figure.legends
    heights = sorted(text.get_window_extent().y0 for text in figure.axes[0].texts)
    assert min(np.diff(heights)) > 8 * figure.dpi / 72  # of 9 points


@pytest.mark.parametrize(
    "n, panels, title, shown",
    [
        (12, 2, "", range(12)),
        (15, 4, "", range(15)),
        (30, 1, "8 of 30, in order", (0, 4, 8, 12, 17, 21, 25, 29)),
    ],
)
def test_more_colours_than_a_panel_has_room_for_are_named_once_above_all(n, panels, title, shown):
    figure = Chart("order", colour="series", panel="layer").draw(many(n, panels))
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [f"alpha {i:02}" for i in shown]
    assert legend.get_title().get_text() == title and not any(ax.get_legend() for ax in figure.axes)
    drawn = {line.get_label(): line.get_color() for line in figure.axes[0].lines}
    assert all(drawn[t.get_text()] == h.get_color() for t, h in zip(legend.get_texts(), legend.legend_handles))
    figure.draw_without_rendering()
    box, top = legend.get_window_extent(), max(ax.get_tightbbox().y1 for ax in figure.axes)
    assert top <= box.y0 and 0 <= box.x0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1


def test_data_are_the_rows_drawn(results):
    chart = Chart("heldout_loss", panel="size", dash="rank", part="main")
    data = chart.data(results)
    assert list(data)[:4] == ["series", "metric", "size", "rank"] and {"seed", "tokens", "value"} <= {*data}
    assert len(data) == len(results.rows("heldout_loss", part="main").query("step > 0"))


def test_transform_changes_the_rows(results):
    double = Chart("heldout_loss", part="main", transform=lambda rows: rows.assign(value=2 * rows["value"]))
    assert double.data(results)["value"].mean() == pytest.approx(
        2 * Chart("heldout_loss", part="main").data(results)["value"].mean()
    )


def test_a_setting_that_some_runs_do_not_have_has_a_place_too(results):
    chart = Chart("heldout_loss", x="model.head_rank", part="main", where="`model.width` == 8")
    figure = chart.draw(results)
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == [
        "r = 2",
        "r = 4",
        "rank r of the head none",
    ]


def test_a_size_against_sizes_is_one_line(results):
    shown = lines(Chart("heldout_loss", x="params.total", part="main", where="`model.head_rank`.isna()").draw(results))
    assert shown[0, "held-out loss"].shape == (4, 2)


def test_names_of_files_come_from_what_is_shown():
    assert Chart("exact_match/cogs", x="model.depth").name == "exact_match_cogs_against_model_depth"
    assert Chart(("a", "b"), name="both").name == "both"


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"colour": "model.widht"}, "unknown colour of chart .* 'model.widht'; did you mean 'model.width'"),
        ({"x": "model.widht"}, "unknown x of chart .* 'model.widht'; did you mean 'model.width'"),
        ({"panel": "size", "dash": "rnak"}, "unknown dash of chart .* 'rnak'; did you mean 'rank'"),
        ({"band": "sede"}, "unknown band of chart .* 'sede'; did you mean 'seed'"),
        (
            {"where": "`model.widht` < 3"},
            "chart .*: unknown column 'model.widht'; did you mean 'model.width'",
        ),
        ({"where": "`model.width` <"}, "chart heldout_loss_against_tokens: '`model.width` <': invalid syntax"),
    ],
)
def test_what_does_not_exist_is_named(results, fields, message):
    with pytest.raises(InputError, match=message):
        Chart("heldout_loss", **fields).draw(results)


def test_contradictions_are_said_at_once():
    with pytest.raises(InputError, match="did you mean 'every'"):
        Chart("a", at="evry")
    with pytest.raises(InputError, match="two charts"):
        Chart(("a", "b"), panel="size")


@pytest.mark.parametrize(
    "x, said",
    [
        ("tokns", r"^tokns, which is no column either \(did you mean 'tokens'\?\)$"),
        ("efective_rank", "did you mean 'effective_rank'"),
        ("lr", "did you mean 'train.learning_rate'"),
        ("exact_match/cogs", "^exact_match/cogs, which is no column either$"),
    ],
)
def test_an_x_that_may_be_a_metric_yet_to_be_measured_is_not_measured_and_the_nearest_is_said(results, x, said):
    with pytest.raises(NotMeasured, match=said):
        Chart("heldout_loss", x=x).draw(results)


@pytest.mark.parametrize(
    "fields", [{"y": "exact"}, {"y": "heldout_loss", "x": "exact"}, {"y": "heldout_loss", "part": "exact"}]
)
def test_a_missing_metric_or_part_is_not_measured(results, fields):
    with pytest.raises(NotMeasured, match="exact"):
        Chart(**fields).draw(results)


def test_a_chart_is_a_value(results):
    chart = Chart("heldout_loss", part="main")
    assert chart == Chart("heldout_loss", part="main") and dataclasses.replace(chart, x="step") != chart
    before = dict(matplotlib.rcParams)
    chart.draw(results)
    assert dict(matplotlib.rcParams) == before  # the user's style is left alone
