import math

import numpy as np
import pytest

from jaxsat.laws import FORMS, HOFFMANN, chinchilla, power_law, power_law_floor


@pytest.mark.parametrize("n, loss", [(14e6, 4.02), (31e6, 3.65), (70e6, 3.34), (160e6, 3.08), (410e6, 2.85)])
def test_the_recalled_law_of_pythia_at_300_billion_tokens(n, loss):
    constants = HOFFMANN | {"A": 119.09, "alpha": 0.246}
    predicted = math.exp(chinchilla.log_prediction(constants, {"N": np.array([n]), "D": np.array([3e11])})[0])
    assert predicted == pytest.approx(loss, abs=0.011)  # the published digits are truncated or rounded: 3.0797, 2.848


@pytest.mark.parametrize(
    "form, formula",
    [
        (chinchilla, lambda c, x: c["E"] + c["A"] / x["N"] ** c["alpha"] + c["B"] / x["D"] ** c["beta"]),
        (power_law, lambda c, x: c["A"] / x["x"] ** c["alpha"]),
        (power_law_floor, lambda c, x: c["E"] + c["A"] / x["x"] ** c["alpha"]),
    ],
)
def test_log_prediction_is_the_log_of_the_formula(form, formula):
    rng = np.random.default_rng(0)
    constants = {name: rng.uniform(0.1, 2) for name in form.names}
    inputs = {name: rng.uniform(1, 1e4, 7) for name in form.inputs}
    ours, theirs = form.log_prediction(constants, inputs), np.log(formula(constants, inputs))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_forms_are_found_by_name_and_their_starts_are_where_they_may_be():
    assert all(FORMS[name].name == name for name in FORMS)
    assert all(start > 0 for form in FORMS.values() for c in form.constants if c.positive for start in c.starts)
    assert math.prod(len(c.starts) for c in chinchilla.constants) == 4500
