"""The least objective is found: in any unit, from any start that can reach it."""

from dataclasses import replace
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

from jaxsat.config import InputError
from jaxsat.laws import FORMS, Constant, Form, fit, power_law, power_law_floor
from jaxsat.laws import objective as objectives
from jaxsat.laws.objective import objective
from tests.laws.planted import QUICK, draw, values


@pytest.mark.parametrize("unit", [1e-9, 1e9])
def test_the_unit_of_equal_weights_changes_nothing_but_the_objective(unit):
    """Weights of 1e-9 once ended every start where it began."""
    inputs, loss = draw()
    one, other = (fit(QUICK, inputs, loss, weights=np.full(60, w), bootstrap=50) for w in (1.0, unit))
    assert other.converged and values(other) == pytest.approx(values(one), rel=1e-9)
    assert other.objective == pytest.approx(unit * one.objective)


@pytest.mark.parametrize("unit", [1e-12, 1e-9, 1e12])
@pytest.mark.parametrize("form", [power_law, power_law_floor, QUICK, FORMS["kaplan"]])
def test_the_unit_of_an_input_does_not_matter(form, unit):
    """Parameters counted in billions, or FLOPs."""
    inputs, loss = draw()
    inputs = {form.inputs[0]: inputs["N"]} | ({"D": inputs["D"]} if "D" in form.inputs else {})
    one = fit(form, inputs, loss, bootstrap=20)
    other = fit(form, {name: x * unit for name, x in inputs.items()}, loss, bootstrap=20)
    assert other.objective == pytest.approx(one.objective, rel=1e-5)
    there = {name: 3 * x.max() for name, x in inputs.items()}
    expected = one.predict(**there).value
    assert other.predict(**{name: x * unit for name, x in there.items()}).value == pytest.approx(expected, rel=1e-3)


def broken(x, break_at):
    return 0.5 + 4 / (x / break_at * 1e3) ** 0.1 * (1 + (x / break_at) ** (1 / 0.3)) ** (-0.25 * 0.3)


@pytest.mark.parametrize("break_at", [1e3, 1e20])
def test_a_break_is_found_in_any_unit_as_scipy_finds_it(break_at):
    """Losses against FLOPs: starts of x1 that end at 1e13 once left an objective 79 times scipy's."""
    x = break_at * np.geomspace(1e-3, 1e3, 25)
    loss = broken(x, break_at) * np.exp(np.random.default_rng(0).normal(0, 0.003, 25))
    fitted = fit(FORMS["broken_power_law"], {"x": x}, loss, bootstrap=20)

    def theirs(theta):
        e, a, c0, c1, x1, f1 = theta
        u = np.log(x / break_at)
        fit = np.exp(e) + np.exp(a - c0 * u - c1 * np.exp(f1) * np.logaddexp(0, (u - x1) / np.exp(f1)))
        r = np.abs(np.log(loss / fit))
        return 1e6 * np.where(r <= 1e-3, r * r / 2, 1e-3 * (r - 5e-4)).sum()

    truth = [np.log(0.5), np.log(4 / 1e3**0.1), 0.1, 0.25, 0.0, np.log(0.3)]
    options = {"maxiter": 20_000, "maxfev": 20_000, "xatol": 1e-9, "fatol": 1e-9}
    scipy = minimize(theirs, truth, method="Nelder-Mead", options=options).fun / 1e6
    assert fitted.converged and fitted.objective <= scipy * (1 + 1e-4)
    assert fitted.predict(x=1e4 * break_at).value == pytest.approx(broken(1e4 * break_at, break_at), rel=0.05)


def test_a_bad_optimum_is_not_called_converged():
    """One start, from which the break is out of reach; and a law of another kind than the rows."""
    x = 1e20 * np.geomspace(1e-3, 1e3, 25)
    loss = broken(x, 1e20) * np.exp(np.random.default_rng(0).normal(0, 0.003, 25))
    starts = {"E": (1.0,), "A": (1.0,), "c0": (0.0,), "c1": (-0.3,), "x1": (1e3,), "f1": (0.3,)}
    form = FORMS["broken_power_law"]
    far = replace(form, constants=tuple(replace(c, starts=starts[c.name]) for c in form.constants))
    found = fit(far, {"x": x}, loss, bootstrap=20, hold={"c0": 0.0, "x1": 1e3, "f1": 0.3})
    assert found.roughness > 10 and not found.converged and found.document()["converged"] is False
    good = fit(form, {"x": x}, loss, bootstrap=20)
    assert good.converged and good.roughness < 2


def test_a_better_optimum_that_a_profile_finds_is_taken():
    """Both starts lead to the worse of two valleys, at -1; the ladder of the constant reaches the other."""
    form = Form(
        "two valleys",
        "L = 1 - exp(-(u - 2)^2)/2 - 0.3 exp(-(u + 1)^2/4) + x/1000",
        "this test",
        ("x",),
        (Constant("u", (-4, -1), positive=False),),
        lambda c, x: jnp.log(
            1 - jnp.exp(-((c["u"] - 2) ** 2)) / 2 - 0.3 * jnp.exp(-((c["u"] + 1) ** 2) / 4) + x["x"] / 1000
        ),
    )
    x = np.arange(1.0, 9)
    grid = objective(form, {"x": x}, 0.5 + x / 1000, None, 1e-3, None).minima_from_grid(np.ones((1, 8)))
    assert grid.x_KxP[0, 0] < 0 and grid.converged_K[0] and grid.f_K[0] > 2e-3
    fitted = fit(form, {"x": x}, 0.5 + x / 1000, bootstrap=20)
    assert fitted.constants["u"].value == pytest.approx(1.6749, abs=1e-3) and fitted.objective < 1e-12
    assert fitted.converged and fitted.samples["u"] == pytest.approx(1.6749, abs=1e-3)


@pytest.mark.parametrize("starts, finds", [((1.0, 100.0), True), ((1.0,), False)])
def test_starts_where_a_form_has_no_value_are_passed_over(starts, finds):
    """log(x0 - 2) exists at the second start alone."""
    form = Form(
        "gap",
        "L = log(x0 - 2) x",
        "",
        ("x",),
        (Constant("x0", starts),),
        lambda c, x: jnp.log(jnp.log(c["x0"] - 2) * x["x"]),
    )
    x = np.arange(1.0, 9)
    if finds:
        assert fit(form, {"x": x}, np.log(48) * x, bootstrap=20).constants["x0"].value == pytest.approx(50)
    else:
        with pytest.raises(InputError, match="gap has no finite value on these rows from any of its starts"):
            fit(form, {"x": x}, np.log(48) * x, bootstrap=20)


def test_a_process_without_a_cpu_is_told_what_to_set(monkeypatch):
    """As JAX_PLATFORMS=tpu leaves it."""

    def missing(backend):
        raise RuntimeError(f"Unknown backend {backend}")

    elsewhere = SimpleNamespace(local_devices=missing, config=SimpleNamespace(jax_platforms="tpu"))
    monkeypatch.setattr(objectives, "jax", elsewhere)
    with pytest.raises(InputError, match="laws are fitted on the CPU: set JAX_PLATFORMS=tpu,cpu"):
        objectives._cpu()
