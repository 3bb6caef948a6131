import numpy as np
import pandas as pd
import pytest
from scipy import integrate, stats

from jaxsat.config import InputError
from jaxsat.laws import accuracy_linear, chinchilla, choose, held_out, power_law, power_law_floor
from jaxsat.laws.choice import _aicc


def rungs(noise=0.002, floor=1.5, seed=0):
    """Six sizes, eight runs each."""
    rng, x = np.random.default_rng(seed), np.repeat(10.0 ** np.arange(5, 11), 8)
    return {"x": x}, (floor + 40 / x**0.3) * np.exp(rng.normal(0, noise, len(x)))


def test_the_largest_rung_is_predicted_by_a_fit_that_has_not_seen_it():
    inputs, loss = rungs()
    largest = inputs["x"] == inputs["x"].max()
    held = held_out(power_law_floor, inputs, loss, largest, bootstrap=100)
    assert held.law.rows == 40 and len(held.rows) == 8
    predicted = held.law.predict(x=1e10).value
    assert held.rows["predicted"].to_numpy() == pytest.approx(predicted)
    assert held.rows["error_percent"].to_numpy() == pytest.approx(100 * (loss[largest] / predicted - 1))
    assert held.error_percent == pytest.approx(100 * np.sqrt(np.mean((loss[largest] / predicted - 1) ** 2)))
    assert held.coverage == held.rows["loss"].between(held.rows["low"], held.rows["high"]).mean()
    again = loss.copy()
    again[largest] *= 2  # what is held out changes nothing but its own error
    other = held_out(power_law_floor, inputs, again, largest, bootstrap=100)
    assert other.law.constants == held.law.constants and other.coverage == 0


def test_intervals_of_new_losses_hold_nine_in_ten():
    """160 losses of 20 draws, held out beyond the largest size seen."""
    inside = []
    for seed in range(20):
        inputs, loss = rungs(seed=seed)
        held = held_out(power_law_floor, inputs, loss, inputs["x"] == 1e10, bootstrap=100)
        inside.append(held.coverage)
    assert 0.8 < np.mean(inside) < 0.99


def test_weights_and_groups_go_with_their_rows():
    inputs, loss = rungs()
    held_R, groups = inputs["x"] == 1e10, np.tile(np.arange(8), 6)
    weights = np.where(inputs["x"] < 1e6, 1e-3, 1.0)
    held = held_out(power_law_floor, inputs, loss, held_R, weights=weights, groups=groups, bootstrap=100)
    free_of_the_first = held_out(power_law_floor, inputs, loss, held_R, bootstrap=100)
    assert held.law.constants["alpha"].value != free_of_the_first.law.constants["alpha"].value
    with pytest.raises(InputError, match="no row is held out"):
        held_out(power_law_floor, inputs, loss, np.zeros(48, bool))


def test_the_form_of_the_data_wins():
    inputs, loss = rungs()
    found = choose([power_law, power_law_floor], inputs, loss)
    assert found.winner == "power_law_floor" and list(found.table["form"]) == ["power_law_floor", "power_law"]
    assert found.table["aicc"][0] == 0 and found.table["cv_above"][0] == 0 and found.table["cv_above"][1] > 0


def test_a_constant_that_explains_nothing_does_not_win():
    """Without a floor the two forms fit alike, and the data cannot tell, or prefer the one of fewer constants."""
    for seed in range(3):
        inputs, loss = rungs(noise=0.01, floor=0.0, seed=seed)
        assert choose([power_law_floor, power_law], inputs, loss).winner in (None, "power_law")


def test_cross_validation_errs_as_the_noise_does():
    found = choose([power_law, power_law_floor], *rungs(noise=0.02))
    row = found.table.set_index("form").loc["power_law_floor"]
    # 48 residuals of a normal of 2 % have a mean of 1.6 %, with a standard error of 0.17 %.
    assert 0.011 < row["cv_error"] < 0.022


def test_groups_are_left_out_whole():
    """An offset that a group shares is a surprise to a fit without that group, and none to one that has the others."""
    inputs, loss = rungs(noise=0.001)
    groups = np.repeat(np.arange(6), 8)  # a rung each: without it the law is extrapolated or interpolated
    whole = choose([power_law, power_law_floor], inputs, loss, groups=groups)
    rows = choose([power_law, power_law_floor], inputs, loss, folds=6)
    assert whole.table["cv_error"][1] > 1.2 * rows.table["cv_error"][1]


@pytest.mark.parametrize("delta", [1e-3, 10.0])
def test_aicc_is_of_a_density_that_integrates_to_one(delta):
    """With a large delta it is the normal's, whose AICc is known; with a small one it is found by integration."""
    r = np.random.default_rng(0).normal(0, 0.01, 50)
    huber = np.where(np.abs(r) <= delta, r**2 / 2, delta * (np.abs(r) - delta / 2))
    penalty = 2 * 3 + 2 * 3 * 4 / (50 - 3 - 1)
    if delta > 1:
        expected = -2 * stats.norm.logpdf(r, scale=np.sqrt(np.mean(r**2))).sum()
    else:
        rho = lambda x: np.where(np.abs(x) <= delta, x**2 / 2, delta * (np.abs(x) - delta / 2))
        costs = []
        for s in np.geomspace(huber.mean() / 5, huber.mean() * 5, 200):
            z = 2 * integrate.quad(lambda x, s=s: np.exp(-rho(x) / s), 0, 0.5, points=[delta, 0.02], limit=200)[0]
            costs.append(2 * (50 * np.log(z) + huber.sum() / s))
        expected = min(costs)
    assert _aicc(huber.sum(), 50, 2, delta) == pytest.approx(expected + penalty, abs=0.02)
    assert _aicc(huber.sum(), 4, 2, delta) == np.inf


@pytest.mark.parametrize(
    "forms, message",
    [([power_law, power_law], "needs two forms"), ([power_law, accuracy_linear], "log and with linear residuals")],
)
def test_what_cannot_be_compared(forms, message):
    inputs, loss = rungs()
    with pytest.raises(InputError, match=message):
        choose(forms, inputs, loss)


def test_a_name_to_hold_that_no_form_has_is_an_error():
    inputs, loss = rungs()
    assert choose([power_law, power_law_floor], inputs, loss, hold={"E": 1.5}).winner == "power_law_floor"
    with pytest.raises(InputError, match="unknown constant in hold 'aplha'; did you mean 'alpha'"):
        choose([power_law, power_law_floor], inputs, loss, hold={"aplha": 0.3})


def test_the_published_rows_prefer_two_power_laws_and_a_floor(shared_data):
    table = pd.read_csv(shared_data / "scaling_chinchilla" / "svg_extracted_data.csv")
    n = table["Model Size"].to_numpy()
    d = table["Training FLOP"].to_numpy() / (6 * n)
    found = choose([power_law_floor, chinchilla], {"N": n, "D": d, "x": n * d}, table["loss"].to_numpy())
    assert found.winner == "chinchilla" and found.table["aicc"][1] > 100
