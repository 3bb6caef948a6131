import json
import math

import numpy as np
import pytest

from jaxsat.laws import chinchilla, fit, power_law
from jaxsat.laws.noise import Noise
from jaxsat.laws.objective import objective
from tests.laws.planted import QUICK


def about(form, inputs, loss, theta, unit_R=None, misfit=None, delta=1e-3, residuals=None):
    rows = len(loss)
    o = objective(form, inputs, loss, None, delta, residuals)
    return Noise(o, np.asarray(theta), np.ones(rows), np.arange(rows) if unit_R is None else unit_R, misfit)


def power(noise=0.01, rows=30, seed=0):
    x = np.geomspace(1e5, 1e9, rows)
    return {"x": x}, 40 / x**0.15 * np.exp(np.random.default_rng(seed).normal(0, noise, rows))


THETA = (np.log(40), 0.15)


def test_rows_have_as_many_degrees_of_freedom_as_are_left():
    assert about(power_law, *power(), THETA).freedom == 28


def test_groups_lose_what_the_constants_can_take_from_them():
    """Seeds that see all sizes alike lose one, the mean; sizes lose the constants that tell sizes apart: E or B/D^0, A
    and alpha."""
    n, d = (a.ravel() for a in np.meshgrid(np.geomspace(1e5, 1e8, 6), np.geomspace(1e6, 1e8, 4)))
    inputs, loss = {"N": n, "D": d}, 1 + 15 / n**0.15 + 60 / d**0.25
    theta = (0.0, np.log(15), np.log(60), 0.15, 0.25)
    seeds, sizes = np.arange(24) % 5, np.unique(n, return_inverse=True)[1]
    scattered = about(
        chinchilla, {"N": np.tile(n, 5), "D": np.tile(d, 5)}, np.tile(loss, 5), theta, np.repeat(range(5), 24)
    )
    assert scattered.freedom == pytest.approx(4, abs=0.01)
    assert about(chinchilla, inputs, loss, theta, sizes).freedom == pytest.approx(3, abs=0.1)
    three = n < 1e7
    few = about(chinchilla, {"N": n[three], "D": d[three]}, loss[three], theta, sizes[three])
    assert few.freedom == pytest.approx(1, abs=0.1) and len(np.unique(sizes[three])) == 4
    assert about(chinchilla, inputs, loss, theta, seeds).freedom <= 5


def test_draws_have_the_size_that_is_known_or_told():
    unit_R = np.repeat(np.arange(10), 3)
    rng = np.random.default_rng(0)
    inputs, loss = power(noise=0.0)
    shared = rng.normal(0, 0.02, 10)
    noise = about(power_law, inputs, loss * np.exp(shared[unit_R] + rng.normal(0, 0.001, 30)), THETA, unit_R)
    sizes = noise.sizes(rng, 4000)
    assert np.median(sizes) == pytest.approx(np.sqrt((shared**2).sum() / noise.freedom), rel=0.1)
    drawn = np.log(noise.targets(rng, sizes) / loss)
    assert drawn.shape == (4001, 30) and np.allclose(drawn[0], np.log(noise.o.target_R / loss))
    assert (
        np.corrcoef(drawn[1:, 0], drawn[1:, 1])[0, 1] > 0.98 > 0.1 > abs(np.corrcoef(drawn[1:, 0], drawn[1:, 3])[0, 1])
    )
    known = about(power_law, inputs, loss, THETA, unit_R, misfit=0.005)
    drawn = np.log(known.targets(rng, known.sizes(rng, 4000))[1:] / loss)
    assert drawn.std() == pytest.approx(0.005, rel=0.05)
    linear = about(power_law, inputs, loss, THETA, unit_R, misfit=0.005, residuals="linear")
    drawn = linear.targets(rng, linear.sizes(rng, 4000))[1:] / loss - 1
    assert drawn.std() == pytest.approx(0.005, rel=0.05)


@pytest.mark.parametrize("delta", [1e-3, 1.0])
@pytest.mark.parametrize("misfit", [None, 0.01])
def test_the_objective_at_the_truth_is_admitted_nine_times_in_ten(delta, misfit):
    """500 draws of 30 rows, with the scale of a power law held: one constant, whose optimum is a weighted median."""
    admitted = 0
    for seed in range(500):
        inputs, loss = power(seed=seed)
        o = objective(power_law, inputs, loss, {"A": 40.0}, delta, None)
        alphas = np.linspace(0.148, 0.152, 801)[:, None]
        r = np.abs(o.residuals(alphas))
        f = np.where(r <= delta, r * r / 2, delta * (r - delta / 2)).sum(axis=1)
        noise = Noise(o, alphas[f.argmin()], np.ones(30), np.arange(30), misfit)
        admitted += bool(noise.admits(f[400], f.min(), 0.9))
    assert 0.86 < admitted / 500 < 0.94


def test_roughness_is_what_a_law_leaves_above_a_smooth_curve():
    inputs, loss = power()
    assert 0.5 < about(power_law, inputs, loss, THETA).roughness < 1.5
    assert about(power_law, inputs, loss, (np.log(40), 0.10)).roughness > 20
    exact = power(noise=0.0)
    assert about(power_law, *exact, THETA).roughness < 1e-6  # delta is what counts as none
    assert about(power_law, {"x": exact[0]["x"][:3]}, exact[1][:3], (0.0, 0.0)).roughness == 0  # too few for a line


def test_a_surface_with_rows_on_a_grid_and_twice_is_smooth():
    n, d, _ = (a.ravel() for a in np.meshgrid(np.geomspace(1e5, 1e8, 4), np.geomspace(1e6, 1e8, 4), [0, 1]))
    noise = np.random.default_rng(0).normal(0, 0.01, 32)
    loss, theta = (1 + 15 / n**0.15 + 60 / d**0.25) * np.exp(noise), [0.0, np.log(15), np.log(60), 0.15, 0.25]
    assert 0.2 < about(chinchilla, {"N": n, "D": d}, loss, theta).roughness < 2
    theta[3] = 0.05
    assert about(chinchilla, {"N": n, "D": d}, loss, theta).roughness > 10


def flat(n, d):
    return 1 + 15 / n**0.15 + 60 / d**0.25


def widths(count, seed, misfit=0.01, noise=0.003):
    """Of each width three budgets and two seeds, which share its misfit: inputs, losses, widths."""
    rng = np.random.default_rng(seed)
    sizes = 18e3 * 2.3 ** np.arange(count)
    n, d, _ = (a.ravel() for a in np.meshgrid(sizes, [384e3, 768e3, 1536e3], [0, 1], indexing="ij"))
    width = np.repeat(np.arange(count), 6)
    off = rng.normal(0, misfit, count)[width] + rng.normal(0, noise, len(n))
    return {"N": n, "D": d}, flat(n, d) * np.exp(off), width


def held_at(count, draws, **options):
    """How often the law within the sizes, and at the next, lies in its interval."""
    inside = np.zeros(2)
    for seed in range(draws):
        inputs, loss, width = widths(count, seed)
        fitted = fit(QUICK, inputs, loss, groups=width, bootstrap=100, seed=seed, **options)
        n = 18e3 * 2.3 ** np.array([(count - 1) / 2, count])
        curve = fitted.predict(N=n, D=1e6)
        inside += (curve.low <= flat(n, 1e6)) & (flat(n, 1e6) <= curve.high)
    return inside / draws


@pytest.mark.slow
@pytest.mark.parametrize("count, options", [(3, {"misfit": 0.01}), (4, {}), (6, {}), (12, {})])
def test_intervals_of_groups_hold_in_85_of_100_draws(count, options):
    """Of 4 widths, rows resampled alone held 58 %; of 3, groups resampled 47 %."""
    assert (held_at(count, 100, **options) >= 0.85).all()


def test_groups_no_more_than_the_constants_that_tell_them_apart_bound_nothing():
    inputs, loss, width = widths(3, 0)
    fitted = fit(QUICK, inputs, loss, groups=width, bootstrap=50)
    curve = fitted.predict(N=1e6, D=1e6)
    assert curve.low == 0 and curve.high == math.inf and set(fitted.unidentified) == set(QUICK.names)
    new = fitted.predict_new(N=1e6, D=1e6)
    assert new.low == 0 and new.high == math.inf
    point = json.loads(fitted.to_json([{"N": 1e6, "D": 1e6}]), parse_constant=pytest.fail)["predictions"][0]
    assert point["low"] == 0 and point["high"] is None and point["value"] == pytest.approx(curve.value)
    told = fit(QUICK, inputs, loss, groups=width, misfit=0.01, bootstrap=50).predict(N=1e5, D=1e6)
    assert 0 < told.low < told.value < told.high < 2 * told.low
