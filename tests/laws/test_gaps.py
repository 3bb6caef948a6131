import numpy as np
import pandas as pd
import pytest

from jaxsat.config import InputError
from jaxsat.laws import HOFFMANN, chinchilla, fit, gaps


def curves(noise=0.0, seeds=2):
    """The recalled law of Pythia; models below 410M end 8 % above it, and 4 % at their best, 2e11 tokens."""
    rng, rows = np.random.default_rng(0), []
    for n in (14e6, 31e6, 70e6, 160e6, 410e6, 1e9, 1.4e9, 2.8e9, 6.9e9):
        for seed in range(seeds):
            off = {2e11: 1.04, 3e11: 1.08} if n < 410e6 else {}
            for d in (1e10, 3e11, 2e11):  # not in order of time
                law = HOFFMANN["E"] + 119.09 / n**0.246 + HOFFMANN["B"] / d ** HOFFMANN["beta"]
                rows.append((f"{n:g}-{seed}", n, d, law * off.get(d, 1) * np.exp(rng.normal(0, noise))))
    return pd.DataFrame(rows, columns=["run", "N", "D", "loss"])


def test_known_gaps_are_recovered():
    found = gaps(curves(), 410e6, bootstrap=200)
    assert found.law.rows == 10
    assert {k: found.law.constants[k].value for k in ("A", "alpha")} == pytest.approx(
        {"A": 119.09, "alpha": 0.246}, rel=1e-4
    )
    assert found.final == pytest.approx((8, 8, 8), abs=1e-4) and found.best == pytest.approx((4, 4, 4), abs=1e-4)
    assert list(found.runs["run"]) == [f"{n}-{i}" for n in ("1.4e+07", "3.1e+07", "7e+07", "1.6e+08") for i in (0, 1)]
    np.testing.assert_allclose(found.runs["final_gap"], 8, atol=1e-4)
    np.testing.assert_array_equal(found.runs["best_D"], 2e11)


def test_gaps_are_of_the_law_of_the_larger_models_alone():
    table = curves(noise=0.002)
    found = gaps(table, 410e6, bootstrap=200, level=0.99)
    end = table[(table["D"] == 3e11) & (table["N"] >= 410e6)]
    law = fit(chinchilla, {"N": end["N"], "D": end["D"]}, end["loss"], hold=HOFFMANN, bootstrap=200, level=0.99)
    assert law.constants == found.law.constants
    row = found.runs.iloc[0]
    predicted = law.predict(N=row["N"], D=row["final_D"])
    assert row["final_predicted"] == pytest.approx(predicted.value)
    assert row["final_gap"] == pytest.approx(100 * (row["final_loss"] - predicted.value) / predicted.value)
    assert row["final_low"] == pytest.approx(100 * (row["final_loss"] / predicted.high - 1))
    assert found.final.value == pytest.approx(found.runs["final_gap"].mean())
    for mean, truth in ((found.final, 8), (found.best, 4)):
        assert mean.low < truth < mean.high and mean.low < mean.value < mean.high
    assert found.final.high - found.final.low < 8


def test_a_law_with_no_gap_gives_an_interval_around_none():
    table = curves(noise=0.01)
    table.loc[table["N"] < 410e6, "loss"] /= table["D"].map({2e11: 1.04, 3e11: 1.08}).fillna(1)
    found = gaps(table, 410e6, bootstrap=200)
    assert found.final.low < 0 < found.final.high


@pytest.mark.parametrize(
    "table, fitted_from, message",
    [
        (curves().drop(columns="D"), 410e6, "curves have no column 'D'; they have run, N, loss"),
        (curves(), 1e6, "no run has N < 1e\\+06: the smallest has 1.4e\\+07"),
        (curves(), 5e9, "2 rows for 2 constants \\(A, alpha\\): needs at least 3"),
        (curves().assign(loss=np.nan), 410e6, "run '1.4e\\+07-0' at D = 1e\\+10 has loss nan"),
        (curves().assign(N=0), 410e6, "run '1.4e\\+07-0' at D = 1e\\+10 has N 0"),
    ],
)
def test_bad_input_is_named(table, fitted_from, message):
    with pytest.raises(InputError, match=message):
        gaps(table, fitted_from)
