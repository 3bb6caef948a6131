import math
from dataclasses import replace

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxsat.config import InputError
from jaxsat.laws import FORMS, HOFFMANN, by_family, chinchilla, data_constrained, fit, power_law, power_law_floor

FORMULAS = {
    "chinchilla": lambda c, x: c["E"] + c["A"] / x["N"] ** c["alpha"] + c["B"] / x["D"] ** c["beta"],
    "power_law": lambda c, x: c["A"] / x["x"] ** c["alpha"],
    "power_law_floor": lambda c, x: c["E"] + c["A"] / x["x"] ** c["alpha"],
    "kaplan": lambda c, x: (
        ((c["Nc"] / x["N"]) ** (c["alpha_N"] / c["alpha_D"]) + c["Dc"] / x["D"]) ** c["alpha_D"]
    ),
    "broken_power_law": lambda c, x: (
        c["E"] + c["A"] * x["x"] ** -c["c0"] * (1 + (x["x"] / c["x1"]) ** (1 / c["f1"])) ** (-c["c1"] * c["f1"])
    ),
    "accuracy_linear": lambda c, x: c["a"] - c["b"] * x["loss"],
    "accuracy_sigmoid": lambda c, x: (
        c["low"] + (c["high"] - c["low"]) / (1 + np.exp(c["k"] * (x["loss"] - c["L0"])))
    ),
}  # fmt: skip
TEXT = {"E": 1.87, "A": 521.0, "B": 1488.0, "alpha": 0.353, "beta": 0.353, "R_N": 5.31, "R_D": 15.4}
SPEECH = {"E": 1.73, "A": 13.9, "B": 39.8, "alpha": 0.25, "beta": 0.24, "R_N": 31.0, "R_D": 25.0}


def value(form, constants, **inputs):
    with jax.enable_x64(True):
        columns = {name: np.atleast_1d(np.asarray(x, float)) for name, x in inputs.items()}
        return np.exp(np.asarray(form.log_prediction(constants, columns)))


@pytest.mark.parametrize("n, loss", [(14e6, 4.02), (31e6, 3.65), (70e6, 3.34), (160e6, 3.08), (410e6, 2.85)])
def test_the_recalled_law_of_pythia_at_300_billion_tokens(n, loss):
    predicted = value(chinchilla, HOFFMANN | {"A": 119.09, "alpha": 0.246}, N=n, D=3e11)
    assert predicted[0] == pytest.approx(
        loss, abs=0.011
    )  # the published digits are truncated or rounded: 3.0797, 2.848


@pytest.mark.parametrize("n, d, loss", [(20e6, 108.9e9, 2.027), (85e6, 8.5e9, 2.040), (823e6, 82.3e9, 1.908)])
def test_the_law_of_speech_models(n, d, loss):
    assert value(data_constrained, SPEECH, N=n, D=d, U=d)[0] == pytest.approx(loss, abs=1e-3)


@pytest.mark.parametrize("name", FORMULAS)
def test_log_prediction_is_the_log_of_the_formula(name):
    rng, form = np.random.default_rng(0), FORMS[name]
    constants = {constant: rng.uniform(0.1, 2) for constant in form.names}
    constants |= {"a": 2.0, "b": 0.15}  # an accuracy is positive
    inputs = {x: rng.uniform(1, 10, 7) for x in form.inputs}
    np.testing.assert_allclose(value(form, constants, **inputs), FORMULAS[name](constants, inputs), rtol=1e-12)


def effective(n, d, u, c):
    """Muennighoff et al. (2023) in plain numbers, by a search for the N that is optimal for U tokens."""
    u_d = min(u, d)
    grid = np.geomspace(1e3, 1e16, 200_001)
    # At the optimum of N for a budget C with D = U the two terms' derivatives in log N balance: alpha A/N^alpha = beta
    # B/D^beta.
    gap = np.log(c["alpha"] * c["A"]) - c["alpha"] * np.log(grid) - np.log(c["beta"] * c["B"]) + c["beta"] * np.log(u_d)
    u_n = min(n, grid[np.abs(gap).argmin()])
    worth = lambda unique, seen, r: unique + unique * r * (1 - math.exp(-(seen / unique - 1) / r))
    return worth(u_n, n, c["R_N"]), worth(u_d, d, c["R_D"])


@pytest.mark.parametrize("constants", [TEXT, SPEECH])
@pytest.mark.parametrize("n, d, u", [(1e8, 1e11, 1e9), (1e10, 1e10, 1e9), (1e7, 1e9, 4e9), (3e9, 5e10, 5e8)])
def test_repeated_data_are_worth_less_than_new_ones(constants, n, d, u):
    n_worth, d_worth = effective(n, d, u, constants)
    expected = value(chinchilla, {k: constants[k] for k in chinchilla.names}, N=n_worth, D=d_worth)
    assert value(data_constrained, constants, N=n, D=d, U=u) == pytest.approx(expected, rel=1e-5)


@settings(max_examples=50, deadline=None)
@given(st.floats(7, 10), st.floats(8, 12), st.floats(8, 12))
def test_repetition_never_helps_over_new_data_nor_hurts(log_n, log_d, log_u):
    n, d, u = 10**log_n, 10**log_d, 10**log_u
    repeated = value(data_constrained, TEXT, N=n, D=d, U=u)
    assert repeated >= value(data_constrained, TEXT, N=n, D=d, U=d) * (1 - 1e-9)
    assert repeated <= value(data_constrained, TEXT, N=n, D=min(d, u), U=u) * (1 + 1e-9)


def test_forms_are_found_by_name_and_their_starts_are_where_they_may_be():
    assert all(FORMS[name].name == name for name in FORMS)
    table = {name: np.geomspace(1e-3, 1e25, 5) for name in ("N", "D", "U", "x", "loss", "accuracy")}
    constants = [c for form in FORMS.values() for c in form.constants]
    assert all((c.starts_at(table) > 0).all() for c in constants if c.positive)
    assert math.prod(len(c.starts) for c in chinchilla.constants) == 4500
    assert set(FORMS) == {*FORMULAS, "data_constrained"}


@settings(max_examples=30, deadline=None)
@given(st.floats(-30, 30), st.floats(-3, 3))
def test_starts_that_come_from_the_table_go_with_its_units(unit, of_loss):
    """Those of x1, Nc and Dc are multiples of the inputs' unit, those of E of the loss's."""
    table = {name: np.geomspace(1e6, 1e9, 7) for name in ("N", "D", "x")} | {"loss": np.linspace(4, 2, 7)}
    other = {name: x * (np.exp(of_loss) if name == "loss" else np.exp(unit)) for name, x in table.items()}
    for form, names, factor in (("broken_power_law", {"x1"}, unit), ("kaplan", {"Nc", "Dc"}, unit),
                                ("broken_power_law", {"E"}, of_loss)):  # fmt: skip
        for c in FORMS[form].constants:
            if c.name in names:
                np.testing.assert_allclose(c.starts_at(other), np.exp(factor) * c.starts_at(table), rtol=1e-9)


# Constants, inputs and noise that tell every constant of a form, and some starts of its grid where it is large.
KNOWN = {
    "kaplan": ({"Nc": 8.8e13, "Dc": 5.4e13, "alpha_N": 0.076, "alpha_D": 0.095}, {"N": (5, 9), "D": (7, 11)}, 0.003),
    "data_constrained": (TEXT, {"N": (7, 10), "D": (8, 11), "U": (7.5, 9.5)}, 0.003),
    "broken_power_law": (
        {"E": 0.5, "A": 30.0, "c0": 0.1, "c1": 0.3, "x1": 1e7, "f1": 0.5}, {"x": (3, 11)}, 0.003
    ),
    "accuracy_linear": ({"a": 1.2, "b": 0.2}, {"loss": (0.4, 0.65)}, 0.01),
    "accuracy_sigmoid": ({"low": 0.25, "high": 0.8, "k": 4.0, "L0": 3.2}, {"loss": (0.4, 0.65)}, 0.01),
}  # fmt: skip


SLOW = {"data_constrained", "broken_power_law"}


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in KNOWN])
def test_known_constants_are_recovered_by_the_one_routine(name):
    """99 % intervals, three to seven constants a form: a right routine fails one in 15 to 30 seeds; these are fixed."""
    truth, ranges, noise = KNOWN[name]
    form, rng = FORMS[name], np.random.default_rng(0)
    few = lambda c: c if callable(c.starts) else replace(c, starts=c.starts[-2:])
    form = replace(form, constants=tuple(map(few, form.constants)))
    inputs = {x: 10 ** rng.uniform(*ends, 80) for x, ends in ranges.items()}
    exact, error = value(form, truth, **inputs), rng.normal(0, noise, 80)
    fitted = fit(
        form, inputs, exact * np.exp(error) if form.scale == "log" else exact + error, bootstrap=200, level=0.99
    )
    assert fitted.converged and fitted.scale == form.scale and not fitted.unidentified
    for constant, c in fitted.constants.items():
        assert c.low < truth[constant] < c.high, constant
    assert np.abs(fitted.residuals).mean() == pytest.approx(np.abs(error).mean(), rel=0.1)


def test_an_accuracy_may_be_what_it_is_and_a_loss_may_not():
    loss, accuracy = np.linspace(2, 4.5, 11), np.array([0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0, 0.0, 0.0])
    fitted = fit(FORMS["accuracy_linear"], {"loss": loss}, accuracy, bootstrap=50)
    assert fitted.constants["b"].value == pytest.approx(0.4, rel=1e-3)
    with pytest.raises(InputError, match="column 'accuracy', row 8: 0.0 must be a positive finite number"):
        fit(FORMS["accuracy_linear"], {"loss": loss}, accuracy, residuals="log", bootstrap=50)


@pytest.fixture
def two_families():
    """A floor and a scale each, and one exponent."""
    x, family = np.tile(np.geomspace(1e6, 1e9, 30), 2), np.repeat([1.0, 2.0], 30)
    floor, scale = np.where(family == 1, 1.5, 2.5), np.where(family == 1, 40.0, 90.0)
    noise = np.random.default_rng(0).normal(0, 0.002, 60)
    return {"x": x, "family": family}, (floor + scale / x**0.3) * np.exp(noise)


def test_families_share_what_they_do_not_own(two_families):
    form = by_family(power_law_floor, ["a", "b"], ["E", "A"])
    assert form.names == ("E[a]", "E[b]", "A[a]", "A[b]", "alpha")
    both = fit(form, *two_families, bootstrap=200, level=0.99)
    for name, truth in {"E[a]": 1.5, "E[b]": 2.5, "A[a]": 40, "A[b]": 90, "alpha": 0.3}.items():
        assert both.constants[name].low < truth < both.constants[name].high


@pytest.mark.slow
def test_families_tell_together_what_neither_does_alone_and_apart_are_separate_fits(two_families):
    inputs, loss = two_families
    together = fit(by_family(power_law_floor, ["a", "b"], ["E", "A"]), inputs, loss, bootstrap=200)
    alone = fit(power_law_floor, {"x": inputs["x"][:30]}, loss[:30], bootstrap=200)
    width = lambda c: c.high - c.low
    assert width(together.constants["alpha"]) < width(alone.constants["alpha"])
    apart = fit(by_family(power_law, ["a", "b"], ["A", "alpha"]), inputs, loss, bootstrap=20)
    one = fit(power_law, {"x": inputs["x"][30:]}, loss[30:], bootstrap=20)
    assert apart.constants["alpha[b]"].value == pytest.approx(one.constants["alpha"].value, rel=1e-4)


@pytest.mark.parametrize(
    "families, own, message",
    [(["a", "b"], ["alhpa"], "did you mean 'alpha'"), (["a"], ["A"], "needs two"), (["a", "b"], [], "needs two")],
)
def test_families_of_nothing(families, own, message):
    with pytest.raises(InputError, match=message):
        by_family(power_law, families, own)
