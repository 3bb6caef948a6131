import numpy as np
import pandas as pd
import pytest

from jaxsat.config import InputError
from jaxsat.laws import fit, power_law
from jaxsat.laws.law import Law


def points() -> pd.DataFrame:
    x = np.repeat(np.geomspace(1e5, 1e9, 8), 2)
    loss = 40 / x**0.15 * np.exp(np.random.default_rng(0).normal(0, 0.01, 16))
    return pd.DataFrame({"x": x, "loss": loss, "width": np.repeat(np.arange(8), 2)})


def test_a_law_is_the_fit_that_it_declares():
    law = Law(lambda results: results, form=power_law, hold={"A": 40.0}, groups="width", misfit=0.01, held_out="x")
    rows = points()
    seen = rows[:14]
    pd.testing.assert_frame_equal(law.seen(rows), seen)
    by_hand = fit(power_law, {"x": seen["x"]}, seen["loss"], hold={"A": 40.0}, groups=seen["width"], misfit=0.01)
    assert law.fit(law.rows(rows)).constants == by_hand.constants


@pytest.mark.parametrize("missing", ["x", "loss", "width"])
def test_a_column_that_is_missing_is_named(missing):
    law = Law(lambda results: results, form=power_law, groups="width", held_out="x")
    with pytest.raises(InputError, match=f"the rows of the law have no column '{missing}'; they have "):
        law.fit(points().drop(columns=missing))


def test_one_group_is_an_error():
    with pytest.raises(InputError, match="groups are all 1: a bootstrap over groups needs at least 2"):
        Law(lambda results: results, form=power_law, groups="width").fit(points().assign(width=1))
