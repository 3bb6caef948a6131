import dataclasses

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from jaxsat import laws
from jaxsat.report import figures as F
from jaxsat.report.tables import residuals


def lines(figure: Figure) -> dict[tuple[int, str], np.ndarray]:
    """(panel, label) -> points, of every labelled line."""
    found = [(i, line) for i, ax in enumerate(figure.axes) for line in ax.lines]
    return {(i, line.get_label()): line.get_xydata() for i, line in found if not line.get_label().startswith("_")}


@pytest.fixture(scope="module")
def rows(law, fitted):
    return residuals(law, fitted.laws["L(N, D)"], fitted)


def test_every_light_colour_has_its_own_dark_one():
    assert len(set(F.DARK.values())) == len(F.DARK) == 4 + len(F.RAMP) + len(F.NAMES)
    assert all(len(color) == 7 for pair in F.DARK.items() for color in pair)


def test_a_law_of_two_inputs_is_a_curve_for_each_of_few_budgets(fitted, rows):
    fit = fitted.laws["L(N, D)"]
    shown = lines(F.fitted(fit, rows))
    assert {label for panel, label in shown if panel == 0 and "," not in label} == {"D = 1.54M", "D = 768k", "D = 384k"}
    curve = shown[0, "D = 1.54M"]
    assert curve[:, 1] == pytest.approx(np.asarray(fit.predict(N=curve[:, 0], D=1500 * 1024.0).value))
    assert len(shown[0, "D = 1.54M, held out"]) == 2
    below = [xy for (panel, label), xy in shown.items() if panel == 1 and label != "law"]
    gaps = sorted(np.concatenate(below)[:, 1])
    assert gaps == pytest.approx(sorted(rows["gap_percent"]))


def test_an_unbounded_band_does_not_hide_the_points(fitted, rows):
    fit = fitted.laws["L(N, D)"]
    wild = {name: np.array([1e6 if name == "A" else x[0]]) for name, x in fit.samples.items()}
    top, bottom = F.fitted(dataclasses.replace(fit, extremes=wild), rows).axes
    assert top.get_ylim()[1] < 2 * rows["loss"].max() and bottom.get_ylim()[1] < 50


def test_a_fit_of_one_input_is_a_curve_with_its_band():
    x = np.geomspace(1e5, 1e9, 20)
    loss = 40 / x**0.15 * np.exp(np.random.default_rng(0).normal(0, 0.01, 20))
    fit = laws.fit(laws.power_law, {"x": x}, loss, bootstrap=30)
    predicted, low, high = fit.predict(x=x)
    figure = F.fitted(fit, pd.DataFrame({"x": x, "loss": loss, "predicted": predicted, "low": low, "high": high}))
    shown = lines(figure)
    assert shown[0, "rows"][:, 1] == pytest.approx(loss)
    curve = shown[0, "law"]
    assert curve[:, 1] == pytest.approx(fit.predict(x=curve[:, 0]).value) and curve[0, 0] < x[0] < x[-1] < curve[-1, 0]
    assert shown[1, "rows"][:, 1] == pytest.approx(100 * (loss / predicted - 1))
    band = figure.axes[0].collections[0].get_paths()[0].vertices
    ends = fit.predict(x=curve[[0, -1], 0])
    assert band[:, 1].min() == pytest.approx(ends.low[1]) and band[:, 1].max() == pytest.approx(ends.high[0])
    assert figure.axes[0].get_xscale() == "log"


def test_a_fit_of_many_budgets_is_against_its_predictions(fitted, rows):
    fit = fitted.laws["L(N, D)"]
    many = rows.assign(D=rows["D"] * np.linspace(1, 2, len(rows)), high=1e9).drop(columns="in_fit")
    top, bottom = F.fitted(fit, many).axes
    assert top.lines[0].get_xydata() == pytest.approx(np.column_stack([many["predicted"], many["loss"]]))
    assert len(top.collections[0].get_segments()) == len(many)
    assert top.get_ylim()[1] < 10 and bottom.get_ylim()[1] < 50  # an unbounded interval does not set the view
    assert top.get_xscale() == "linear"


def test_residuals_of_a_law_of_the_output_itself_are_differences():
    loss = np.linspace(2, 4, 12)
    accuracy = 0.9 - 0.15 * loss + np.random.default_rng(0).normal(0, 0.004, 12)
    fit = laws.fit(laws.accuracy_linear, {laws.accuracy_linear.inputs[0]: loss}, accuracy, bootstrap=30)
    predicted, low, high = fit.predict(**{fit.form.inputs[0]: loss})
    rows = pd.DataFrame(
        {fit.form.inputs[0]: loss, fit.form.output: accuracy, "predicted": predicted, "low": low, "high": high}
    )
    figure = F.fitted(fit, rows)
    assert lines(figure)[1, "rows"][:, 1] == pytest.approx(accuracy - predicted)
    assert figure.axes[1].get_ylabel() == "residual"
