import json
import math
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import curve_fit

from jaxsat.config import InputError
from jaxsat.laws import FORMS, Constant, Form, chinchilla, fit, power_law, power_law_floor
from jaxsat.laws.noise import Noise
from jaxsat.laws.objective import objective
from tests.laws.planted import QUICK, TRUTH, draw, huber_sum, law, values

FLAT = {"E": 1.0, "A": 15.0, "B": 60.0, "alpha": 0.15, "beta": 0.25}  # of a table too small to tell a floor

# Widths 8, 16 and 32, three budgets, two seeds: N, D in thousands, losses. Any floor below 3 fits them as well.
MEASURED = [
    (18024, 384, 4.564, 4.551), (18024, 768, 4.456, 4.432), (18024, 1536, 4.396, 4.372),
    (39248, 384, 4.359, 4.371), (39248, 768, 4.189, 4.223), (39248, 1536, 4.049, 4.079),
    (91296, 384, 4.157, 4.164), (91296, 768, 3.942, 3.953), (91296, 1536, 3.751, 3.755),
]  # fmt: skip


def sweep(seed, noise=0.01):
    """18 runs of four sizes and three budgets."""
    n, d = np.meshgrid([18e3, 39e3, 91e3, 234e3], [384e3, 768e3, 1536e3])
    inputs = {"N": np.resize(n, 18), "D": np.resize(d, 18)}
    noise_R = np.random.default_rng(seed).normal(0, noise, 18)
    return inputs, law(FLAT, inputs["N"], inputs["D"]) * np.exp(noise_R)


def _new(fitted, seed):
    """Intervals of new losses, and the losses."""
    inputs, loss = draw(seed=1000 + seed)
    return fitted.predict_new(**inputs), loss


def test_exact_data_give_back_their_constants():
    inputs, loss = draw(noise=0)
    fitted = fit(QUICK, inputs, loss, bootstrap=200)
    assert fitted.converged and not fitted.unidentified
    assert values(fitted) == pytest.approx(TRUTH, rel=1e-5)
    assert fitted.residuals == pytest.approx(0, abs=1e-8)


def test_noisy_data_give_intervals_that_hold_the_constants_and_the_curve():
    fitted = fit(QUICK, *draw(), bootstrap=200, level=0.99)
    for name, c in fitted.constants.items():
        assert c.low < TRUTH[name] < c.high and c.low < c.value < c.high
    n, d = np.geomspace(1e8, 1e11, 5), 1e12
    curve = fitted.predict(N=n, D=d)
    assert ((curve.low < law(TRUTH, n, d)) & (law(TRUTH, n, d) < curve.high)).all()
    assert curve.value == pytest.approx(law(values(fitted), n, d), rel=1e-12)


def test_held_constants_stay_and_the_others_are_optimal_given_them():
    inputs, loss = draw()
    fitted = fit(QUICK, inputs, loss, hold={"E": 1.69, "B": 410.7, "beta": 0.28}, bootstrap=20)
    assert fitted.constants["E"] == (1.69, 1.69, 1.69)
    best = values(fitted)
    assert best["B"] == 410.7 and best["beta"] == 0.28
    for name in ("A", "alpha"):
        for factor in (0.999, 1.001):
            assert huber_sum(best | {name: best[name] * factor}, inputs, loss) > fitted.objective


@settings(max_examples=10, deadline=None)
@given(st.floats(0.3, 3), st.permutations(range(60)))
def test_scaling_the_loss_scales_the_constants_and_the_order_of_rows_does_not_matter(scale, order):
    x = draw()[0]["N"]
    loss = (1.8 + 480 / x**0.35) * np.exp(np.random.default_rng(0).normal(0, 0.005, 60))
    one = fit(power_law_floor, {"x": x}, loss, bootstrap=20)
    other = fit(power_law_floor, {"x": x[order]}, scale * loss[order], bootstrap=20)
    expected = {name: c * (1 if name == "alpha" else scale) for name, c in values(one).items()}
    assert values(other) == pytest.approx(expected, rel=1e-3)
    assert other.objective == pytest.approx(one.objective, rel=1e-6)


def test_the_same_seed_gives_the_same_intervals():
    inputs, loss = draw()
    a, b, c = (fit(QUICK, inputs, loss, bootstrap=200, seed=seed) for seed in (1, 1, 2))
    assert a.constants == b.constants != c.constants


def test_a_weight_of_two_is_a_row_twice():
    inputs, loss = draw()
    twice = np.arange(60) % 3 == 0
    repeated = {name: np.append(x, x[twice]) for name, x in inputs.items()}
    hold = {"E": 1.8, "A": 480.0}
    doubled = fit(QUICK, repeated, np.append(loss, loss[twice]), hold=hold, bootstrap=20)
    weighted = fit(QUICK, inputs, loss, hold=hold, weights=1.0 + twice, bootstrap=20)
    assert values(weighted) == pytest.approx(values(doubled), rel=1e-4)
    assert weighted.objective == pytest.approx(doubled.objective, rel=1e-6) and weighted.rows == 60


def test_intervals_do_not_depend_on_the_unit_of_weights():
    x = np.geomspace(1e5, 1e9, 30)
    loss, weights = 40 / x**0.15 * np.exp(np.random.default_rng(0).normal(0, 0.01, 30)), np.linspace(1, 3, 30)
    one, other = (fit(power_law, {"x": x}, loss, weights=w, bootstrap=100) for w in (weights, 1e3 * weights))
    for name in power_law.names:
        assert other.constants[name] == pytest.approx(one.constants[name], rel=1e-3)


def test_constants_of_rows_without_noise_are_fitted_not_held():
    loss = np.linspace(2, 4.5, 30)
    fitted = fit(FORMS["accuracy_linear"], {"loss": loss}, 0.9 - 0.3 * loss + 1, bootstrap=50, hold={"a": 1.9})
    assert fitted.held == ("a",) and fitted.status("a") == "held" and fitted.status("b") == "fitted"
    assert list(fitted.covariance) == ["b"]


def test_intervals_of_new_losses_hold_nine_in_ten_with_few_rows_too():
    """Residuals of 8 rows and 3 constants are a fifth too small."""
    x, hits = np.geomspace(1e5, 1e9, 8), []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        loss = (1.5 + 40 / x**0.3) * np.exp(rng.normal(0, 0.01, 8))
        new = fit(power_law_floor, {"x": x}, loss, bootstrap=50, seed=seed).predict_new(x=x)
        again = (1.5 + 40 / x**0.3) * np.exp(rng.normal(0, 0.01, 8))
        hits.append(((new.low < again) & (again < new.high)).mean())
    assert 0.86 < np.mean(hits) < 0.97, np.mean(hits)


def test_linear_residuals_are_of_losses():
    """With a delta above them all it is least squares, which scipy knows."""
    rng, x = np.random.default_rng(0), np.geomspace(1e5, 1e9, 400)
    loss = 1.5 + 40 / x**0.3 + rng.normal(0, 0.02, 400)
    fitted = fit(power_law_floor, {"x": x}, loss, residuals="linear", delta=10.0, bootstrap=400)
    curve = lambda x, e, log_a, alpha: e + np.exp(log_a - alpha * np.log(x))
    theirs, covariance = curve_fit(curve, x, loss, [1, 3, 0.2])
    assert list(values(fitted).values()) == pytest.approx([theirs[0], np.exp(theirs[1]), theirs[2]], rel=1e-3)
    assert fitted.residuals == pytest.approx(loss - fitted.predict(x=x).value)
    assert fitted.objective == pytest.approx((fitted.residuals**2).sum() / 2)
    ours = fitted.covariance.loc[["E", "A", "alpha"], ["E", "A", "alpha"]].to_numpy()  # of log E and log A
    covariance = covariance / np.outer([theirs[0], 1, 1], [theirs[0], 1, 1])
    spread = np.sqrt(np.diag(covariance))
    assert np.sqrt(np.diag(ours)) == pytest.approx(spread, rel=0.2)
    correlation = covariance / spread / spread[:, None]
    assert ours[1, 2] / np.sqrt(ours[1, 1] * ours[2, 2]) == pytest.approx(correlation[1, 2], abs=0.05)
    assert correlation[1, 2] > 0.9


def test_groups_are_resampled_whole():
    """Noise that a group shares is worth one draw a group: rows resampled alone take it for many, and are too sure."""
    rng, seeds = np.random.default_rng(3), np.repeat(np.arange(10), 12)
    x = np.tile(np.geomspace(1e6, 1e9, 12), 10)
    loss = 50 / x**0.15 * np.exp(rng.normal(0, 0.02, 10)[seeds] + rng.normal(0, 0.001, 120))
    by_row, by_seed = (fit(power_law, {"x": x}, loss, groups=g, seed=1).predict(x=1e8) for g in (None, seeds))
    assert by_seed.high - by_seed.low > 2 * (by_row.high - by_row.low)
    assert by_seed.low < 50 / 1e8**0.15 < by_seed.high


def test_a_constant_that_the_data_cannot_identify_is_unbounded_and_so_is_what_depends_on_it():
    inputs, _ = draw()
    one_budget = np.full(60, 1e10)
    loss = law(TRUTH, inputs["N"], one_budget) * np.exp(np.random.default_rng(0).normal(0, 0.005, 60))
    fitted = fit(QUICK, {"N": inputs["N"], "D": one_budget}, loss, bootstrap=200)
    assert fitted.unidentified == ("E", "B", "beta")
    assert fitted.constants["B"][1:] == (0, math.inf) and fitted.constants["beta"][1:] == (-math.inf, math.inf)
    assert fitted.constants["E"].low == 0  # a floor and B/D^0 are one constant
    assert fitted.constants["alpha"].low < 0.35 < fitted.constants["alpha"].high
    there, elsewhere = fitted.predict(N=1e9, D=1e10), fitted.predict(N=1e9, D=1e12)
    assert (there.high - there.low) * 10 < elsewhere.high - elsewhere.low
    assert elsewhere.low < law(TRUTH, 1e9, 1e12) < elsewhere.high


def test_a_floor_in_a_flat_valley_is_anything_in_the_valley():
    """From the optimum, E = 1e-6, no resample leaves it; held at 3 the objective rises from 1.277e-4 to 1.344e-4."""
    n, d, *losses = np.array(MEASURED).T
    inputs, loss = {"N": np.tile(n, 2), "D": np.tile(1e3 * d, 2)}, np.concatenate(losses)
    fitted = fit(QUICK, inputs, loss)
    floor = fitted.constants["E"]
    assert floor.low == 0 and 2.5 < floor.high < loss.min() and "E" in fitted.unidentified
    best = np.array([c.value if name in ("alpha", "beta") else np.log(c.value) for name, c in fitted.constants.items()])
    noise = Noise(objective(QUICK, inputs, loss, None, 1e-3, None), best, np.ones(18), np.arange(18), None)
    for factor, admitted in ((0.99, True), (1.01, False)):  # the end is where the test begins to reject, not a rung
        held = fit(QUICK, inputs, loss, hold={"E": factor * floor.high}, bootstrap=20)
        assert noise.admits(held.objective, fitted.objective, 0.9) == admitted
    curve, _, extremes = fitted.curves(N=[1e5, 1e6], D=[1e6, 1e9])
    assert extremes[fitted.extremes["E"] > 2.5].min(axis=0)[1] > 1.1 * curve[1]  # far away the floor tells
    assert (fitted.predict(N=1e6, D=1e9).high >= extremes[:, 1]).all()


def test_a_small_table_gives_intervals_that_hold_its_law():
    fitted = fit(QUICK, *sweep(0), bootstrap=200)
    assert fitted.constants["E"].low == 0 and "E" in fitted.unidentified
    for name, c in fitted.constants.items():
        assert c.low < FLAT[name] < c.high
    held_out = fitted.predict(N=6e5, D=1536e3)
    assert held_out.low < law(FLAT, 6e5, 1536e3) < held_out.high < 1.2 * held_out.low


def test_a_floor_below_all_that_was_seen_is_not_bounded_below():
    x = np.geomspace(1e4, 1e5, 8)
    loss = 12 / x**0.12 * np.exp(np.random.default_rng(1).normal(0, 0.003, 8))
    fitted = fit(power_law_floor, {"x": x}, loss)
    assert fitted.constants["E"].low == 0 and math.isfinite(fitted.constants["E"].high)
    assert jnp.ones(1).dtype == jnp.float32  # the process keeps its precision


def test_a_form_of_the_user():
    """A shifted power law of two inputs of any name, one constant of any sign."""
    mine = Form(
        "mine",
        "L = A / (width + w0)^alpha * depth^gamma",
        "this test",
        ("width", "depth"),
        (
            Constant("A", (1, 10)),
            Constant("w0", (1, 100)),
            Constant("alpha", (0.2, 1), positive=False),
            Constant("gamma", (0,), positive=False),
        ),
        lambda c, x: jnp.log(c["A"]) - c["alpha"] * jnp.log(x["width"] + c["w0"]) + c["gamma"] * jnp.log(x["depth"]),
    )
    rng = np.random.default_rng(0)
    inputs = {"width": rng.uniform(8, 512, 50), "depth": rng.integers(1, 12, 50)}
    fitted = fit(mine, inputs, 9 / (inputs["width"] + 30) ** 0.3 * inputs["depth"] ** -0.05, bootstrap=20)
    assert values(fitted) == pytest.approx({"A": 9, "w0": 30, "alpha": 0.3, "gamma": -0.05}, rel=1e-4)


def test_json_is_strict_and_has_the_documented_keys():
    inputs, loss = draw()
    fitted = fit(QUICK, inputs | {"D": np.full(60, 1e10)}, loss, bootstrap=200)
    document = json.loads(fitted.to_json([{"N": 1e9, "D": 1e10}]), parse_constant=pytest.fail)
    assert list(document) == ["form", "constants", "objective", "rows", "converged", "predictions"]
    assert list(document["constants"]) == ["E", "A", "B", "alpha", "beta"]
    assert document["constants"]["beta"]["low"] is None and document["rows"] == 60
    assert document["predictions"][0] == {"N": 1e9, "D": 1e10} | fitted.predict(N=1e9, D=1e10)._asdict()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"hold": {"aplha": 0.3}}, "constant of chinchilla in hold 'aplha'; did you mean 'alpha'?"),
        ({"hold": {"E": -1}}, "hold E = -1: must be a finite number, at least 0"),
        ({"hold": TRUTH}, "leave at least one to fit"),
        ({"rows": slice(5)}, "5 rows for 5 constants (E, A, B, alpha, beta): needs at least 6"),
        ({"N": (3, 0.0)}, "column 'N', row 3: 0.0 must be a positive finite number"),
        ({"D": (0, math.inf)}, "column 'D', row 0: inf"),
        ({"loss": (7, math.nan)}, "column 'loss', row 7: nan"),
        ({"loss": (2, -1.0)}, "column 'loss', row 2: -1.0"),
        ({"drop": "D"}, "chinchilla needs the input 'D'"),
        ({"add": "T"}, "unknown input of chinchilla 'T'; known: D, N"),
        ({"groups": np.zeros(60)}, "groups are all"),
        ({"groups": np.zeros(3)}, "groups has 3 labels for 60 rows"),
        ({"bootstrap": 10}, "bootstrap = 10: an interval of level 0.9 needs at least 20"),
    ],
)
def test_bad_input_is_named(change, message):
    inputs, loss = draw()
    columns = inputs | {"loss": loss}
    for name in columns.keys() & change.keys():
        row, value = change[name]
        columns[name][row] = value
    columns = {name: column[change.get("rows", slice(None))] for name, column in columns.items()}
    loss = columns.pop("loss")
    columns.pop(change.get("drop"), None)
    columns |= {change["add"]: loss} if "add" in change else {}
    with pytest.raises(InputError) as error:
        fit(chinchilla, columns, loss, **{k: change[k] for k in ("hold", "groups", "bootstrap") if k in change})
    assert message in str(error.value)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"weights": [1.0, 2.0]}, "weights of shape \\(2,\\) for 4 rows"),
        ({"weights": [1.0, 0.0, 1.0, 1.0]}, "weights, row 1: 0.0 must be a positive finite number"),
        ({"residuals": "lin"}, "unknown residuals 'lin'; did you mean 'linear'"),
        ({"delta": 0.0}, "delta = 0.0: must be a positive finite number"),
        ({"level": 1.0}, "level = 1.0: must be between 0 and 1"),
        ({"misfit": 0.0}, "misfit = 0.0: must be between 0 and 1, such as 0.003"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(InputError, match=message):
        fit(power_law, {"x": [1, 2, 4, 8]}, [8, 6, 4.2, 3.1], **options)


def test_words_are_not_numbers_and_columns_have_one_length():
    with pytest.raises(InputError, match="column 'x' holds something that is not a number"):
        fit(power_law, {"x": ["one", "two", "three"]}, [3, 2, 1])
    with pytest.raises(InputError, match="columns have different lengths: {'x': 4, 'loss': 3}"):
        fit(power_law, {"x": [1, 2, 3, 4]}, [3, 2, 1])


def test_90_percent_intervals_hold_the_constants_nine_times_in_ten():
    """60 draws: where 90 % of intervals hold a constant, 46 to 59 of 60 do but for a chance of 0.4 %."""
    x, truth = np.geomspace(1e5, 1e10, 40), {"E": 1.5, "A": 40.0, "alpha": 0.3}
    quick = replace(
        power_law_floor, constants=tuple(replace(c, starts=c.starts[1:3]) for c in power_law_floor.constants)
    )
    held = dict.fromkeys(truth, 0)
    for seed in range(60):
        noise = np.random.default_rng(seed).normal(0, 0.005, 40)
        fitted = fit(quick, {"x": x}, (1.5 + 40 / x**0.3) * np.exp(noise), bootstrap=100, seed=seed)
        for name, c in fitted.constants.items():
            held[name] += c.low < truth[name] < c.high
    assert all(46 <= n <= 59 for n in held.values()), held


@pytest.mark.slow
def test_90_percent_intervals_hold_the_constants_in_85_to_95_percent_of_200_draws():
    fits = [fit(QUICK, *draw(seed=seed), bootstrap=200, seed=seed) for seed in range(200)]
    for name, truth in TRUTH.items():
        covered = np.mean([f.constants[name].low < truth < f.constants[name].high for f in fits])
        assert 0.85 <= covered <= 0.95, name
    curves = [f.predict(N=1e12, D=1e13) for f in fits]
    assert 0.85 <= np.mean([c.low < law(TRUTH, 1e12, 1e13) < c.high for c in curves]) <= 0.95
    new = [((p.low < y) & (y < p.high)).mean() for p, y in (_new(f, seed) for seed, f in enumerate(fits))]
    assert 0.88 <= np.mean(new) <= 0.92  # 12 000 losses
    assert all(f.converged for f in fits)


@pytest.mark.slow
def test_90_percent_intervals_hold_the_constants_of_small_tables_in_at_least_85_of_100_draws():
    fits = [fit(QUICK, *sweep(seed), bootstrap=200, seed=seed) for seed in range(100)]
    for name, truth in FLAT.items():
        assert np.mean([f.constants[name].low < truth < f.constants[name].high for f in fits]) >= 0.85, name
    curves = [f.predict(N=6e5, D=1536e3) for f in fits]
    assert np.mean([c.low < law(FLAT, 6e5, 1536e3) < c.high for c in curves]) >= 0.85
    assert np.median([c.high / c.low for c in curves]) < 1.15  # wide enough, and of use
