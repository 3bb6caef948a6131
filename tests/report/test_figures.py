import dataclasses

import matplotlib
import numpy as np
import pandas as pd
import pytest

from jaxsat import laws
from jaxsat.report import figures as F

FROM_TABLES = [
    F.loss_against_tokens,
    F.rise_above_minimum,
    F.head_spectra,
    F.degeneration,
    F.loss_against_rank,
    F.anisotropy_by_layer,
    F.weight_decay_probe,
]
NEEDS = {
    F.loss_against_tokens: "heldout_loss",
    F.rise_above_minimum: "heldout_loss",
    F.head_spectra: "singular_value",
    F.loss_against_rank: "heldout_loss",
    F.weight_decay_probe: "singular_entropy",
}


def lines(figure: matplotlib.figure.Figure) -> dict[tuple[int, str], np.ndarray]:
    """(panel, label) -> points, of every labelled line."""
    found = [(i, line) for i, ax in enumerate(figure.axes) for line in ax.lines]
    return {(i, line.get_label()): line.get_xydata() for i, line in found if not line.get_label().startswith("_")}


def curve(measurements: pd.DataFrame, runs: pd.Index, metric: str) -> np.ndarray:
    """The mean over these runs at every checkpoint but step 0."""
    rows = measurements[measurements["run"].isin(runs) & measurements["metric"].eq(metric) & measurements["step"].gt(0)]
    return rows.groupby("tokens")["value"].mean().to_numpy()


@pytest.fixture(scope="module")
def main(tables):
    measurements, runs = tables
    return measurements, runs[runs["part"] == "main"]


def test_loss_has_a_panel_a_width_and_a_line_a_rank(main):
    measurements, runs = main
    shown = lines(F.loss_against_tokens(measurements, runs))
    expected = {(0, 2), (0, 4), (0, 8), *((1, 2**k) for k in range(1, 5)), *((2, 2**k) for k in range(1, 6))}
    expected |= {(3, 2**k) for k in range(2, 7)}
    assert set(shown) == {(panel, f"r = {r}") for panel, r in expected}
    ids = runs.index[(runs["model.width"] == 16) & (runs["model.head_rank"] == 4)]
    assert shown[1, "r = 4"][:, 1] == pytest.approx(curve(measurements, ids, "heldout_loss"))


def test_loss_of_full_heads_is_one_panel(main):
    measurements, runs = main
    shown = lines(F.loss_against_tokens(measurements, runs[runs["model.head_rank"].isna()]))
    assert set(shown) == {(0, f"d = {d}") for d in (8, 16, 32, 64)}


def test_rise_is_measured_from_the_lowest_so_far(main):
    measurements, runs = main
    run = runs.index[(runs["model.width"] == 8) & runs["model.head_rank"].isna()][:1]
    late = measurements["run"].isin(run) & measurements["metric"].eq("heldout_loss") & measurements["step"].ge(1250)
    low = curve(measurements, run, "heldout_loss")[:-2].min()
    raised = measurements.assign(value=measurements["value"].mask(late, low + 0.1))
    shown = lines(F.rise_above_minimum(raised, runs.loc[run]))[0, "d = 8"]
    assert shown[-2:, 1] == pytest.approx([0.1, 0.1]) and shown[:-2, 1] == pytest.approx(0, abs=0.02)


def test_spectra_start_at_one_and_thin_out_wide_heads():
    runs = pd.DataFrame({"model.width": [2048], "seed": [0]}, index=["a"])
    rows = [("a", s, 1024 * s, -1, i, "singular_value", 3.0 / (i + 1)) for s in (0, 1, 2) for i in range(2048)]
    table = pd.DataFrame(rows, columns=["run", "step", "tokens", "layer", "index", "metric", "value"])
    shown = lines(F.head_spectra(table, runs))
    assert set(shown) == {(0, "0 tokens"), (0, "1.02k tokens"), (0, "2.05k tokens")}
    xy = shown[0, "0 tokens"]
    assert len(xy) <= 128 and xy[0].tolist() == [1, 1] and xy[-1] == pytest.approx([2048, 1 / 2048])


def test_entropy_is_over_log_r(main):
    measurements, runs = main
    runs = runs[(runs["model.width"] == 8) & runs["model.head_rank"].isna()]
    shown = lines(F.degeneration(measurements, runs))
    entropy = curve(measurements, runs.index, "singular_entropy")
    assert shown[1, "d = 8"][:, 1] == pytest.approx(entropy / np.log(8))
    assert {label for panel, label in shown if panel == 2} == {"d = 8", "d = 8, after gain"}


def test_loss_against_rank_shows_joint_and_frozen_heads(main):
    shown = lines(F.loss_against_rank(*main))
    assert shown[0, "d = 64"][:, 0].tolist() == [4, 8, 16, 32, 64]
    assert shown[0, "d = 64, frozen backbone"][:, 0].tolist() == [2, 4, 8, 16, 32, 64]
    assert (np.diff(shown[0, "d = 64"][:, 1]) < 0).all() and (0, "d = 8, frozen backbone") not in shown


def test_anisotropy_runs_from_the_embedding_to_after_the_gain(main):
    figure = F.anisotropy_by_layer(*main)
    assert lines(figure)[0, "d = 32"][:, 0].tolist() == [0, 1, 2, 3]
    ticks = [t.get_text() for t in figure.axes[0].get_xticklabels()]
    assert ticks == ["embedding", "block 1", "2", "after the\nfinal gain"]


def test_a_size_has_one_colour_in_every_figure(main):
    for figure in (F.loss_against_rank, F.rise_above_minimum, F.degeneration, F.anisotropy_by_layer):
        for ax in figure(*main).axes:
            shown = {line.get_label(): line.get_color() for line in ax.lines}
            assert [shown[f"d = {d}"] for d in (8, 16, 32, 64)] == [F.RAMP[i] for i in (0, 2, 5, 7)], figure


def test_probe_has_a_line_a_weight_decay_and_rate(tables):
    measurements, runs = tables
    shown = lines(F.weight_decay_probe(measurements, runs[runs["part"] == "probe"]))
    assert {label for _, label in shown} == {f"decay {wd}, lr {lr}" for wd in ("0", "0.1") for lr in ("0.04", "0.12")}


def test_synthetic_control_leaves_out_what_a_log_axis_cannot_hold(tables):
    shown = lines(F.synthetic_control(tables[0]))
    assert {name for _, name in shown} == {f"i^-{p}, {how}" for p in (0.5, 1.5) for how in ("truncated", "trained")}
    assert all(len(xy) == 7 and (xy > 0).all() for xy in shown.values())  # r = 16, the true rank, has no tail


def test_law_shows_every_point_and_its_gap(law):
    fit, points, held_out = law
    shown = lines(F.law(fit, points, held_out))
    assert len(shown[0, "1.54M tokens, held out of the fit"]) == len(held_out) == 2
    assert sum(len(xy) for (panel, label), xy in shown.items() if panel == 1) == len(points)
    curve = shown[0, "D = 1.54M"]
    assert curve[:, 1] == pytest.approx(np.asarray(fit.predict(N=curve[:, 0], D=1500 * 1024.0).value))


def test_an_unbounded_band_does_not_hide_the_points(law):
    fit, points, held_out = law
    wild = {name: np.array([1e6 if name == "A" else x[0]]) for name, x in fit.samples.items()}
    top, bottom = F.law(dataclasses.replace(fit, extremes=wild), points, held_out).axes
    assert top.get_ylim()[1] < 2 * points["loss"].max() and bottom.get_ylim()[1] < 50


def test_a_law_of_one_variable_is_one_curve(law):
    _, points, held_out = law
    full = points[points["tokens"] == points["tokens"].max()]
    fit = laws.fit(laws.power_law, {"x": full["params.total"]}, full["loss"], bootstrap=30)
    shown = lines(F.law(fit, points, held_out))
    assert [label for _, label in shown if label.startswith("D = ")] == ["D = 1.54M"]


def test_a_fit_of_one_input_is_a_curve_with_its_band():
    x = np.geomspace(1e5, 1e9, 20)
    loss = 40 / x**0.15 * np.exp(np.random.default_rng(0).normal(0, 0.01, 20))
    fit = laws.fit(laws.power_law, {"x": x}, loss, bootstrap=30)
    predicted, low, high = fit.predict(x=x)
    rows = pd.DataFrame({"x": x, "loss": loss, "predicted": predicted, "low": low, "high": high})
    figure = F.fitted(fit, rows)
    shown = lines(figure)
    assert shown[0, "rows"][:, 1] == pytest.approx(loss)
    assert shown[0, "law"][[0, -1], 1] == pytest.approx(predicted[[0, -1]])
    assert shown[1, "rows"][:, 1] == pytest.approx(100 * (loss / predicted - 1))
    band = figure.axes[0].collections[0].get_paths()[0].vertices
    assert band[:, 1].min() == pytest.approx(low.min()) and band[:, 1].max() == pytest.approx(high.max())


def test_a_fit_of_several_inputs_is_against_its_predictions(law):
    fit, points, held_out = law
    seen = points.drop(held_out)
    predicted, low, high = fit.predict(N=seen["params.total"], D=seen["tokens"])
    rows = pd.DataFrame({"loss": seen["loss"], "predicted": predicted, "low": low, "high": 1e9})
    top, bottom = F.fitted(fit, rows).axes
    assert top.lines[0].get_xydata() == pytest.approx(np.column_stack([predicted, seen["loss"]]))
    assert len(top.collections[0].get_segments()) == len(seen)
    assert top.get_ylim()[1] < 10 and bottom.get_ylim()[1] < 50  # an unbounded interval does not set the view


@pytest.mark.parametrize("figure", FROM_TABLES)
def test_nothing_measured_gives_no_figure(figure, tables):
    measurements, runs = tables
    assert figure(measurements.iloc[:0], runs) is None
    assert figure(measurements, runs.iloc[:0]) is None


@pytest.mark.parametrize("figure", NEEDS)
def test_a_missing_metric_gives_no_figure(figure, tables):
    measurements, runs = tables
    assert figure(measurements[measurements["metric"] != NEEDS[figure]], runs[runs["part"] == "probe"]) is None


@pytest.mark.parametrize("figure", FROM_TABLES)
def test_one_run_without_seed_or_rank_is_enough_or_gives_none(figure, tables):
    measurements, runs = tables
    one = runs[runs["part"] == "probe"].iloc[:1].drop(columns=["seed", "model.head_rank", "part", "state"])
    drawn = figure(measurements, one)
    assert (drawn is None) == (figure is F.loss_against_rank)
    if drawn is not None:
        assert lines(drawn)


def test_no_law_and_no_control_give_no_figure(tables):
    measurements, _ = tables
    assert F.law(None, pd.DataFrame()) is None
    assert F.synthetic_control(measurements[~measurements["run"].str.startswith("synthetic")]) is None


def test_the_users_style_is_left_alone(main):
    before = dict(matplotlib.rcParams)
    F.loss_against_rank(*main)
    assert dict(matplotlib.rcParams) == before
