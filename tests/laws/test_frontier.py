from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from jaxsat.config import InputError
from jaxsat.laws import allocate, chinchilla, fit, isoflop, optimum

TRUTH = {"E": 1.8, "A": 480.0, "B": 2000.0, "alpha": 0.35, "beta": 0.36}
A = TRUTH["beta"] / (TRUTH["alpha"] + TRUTH["beta"])
SETTING = ["table", "dataset", "hparams", "warmup", "decay", "param_count", "val"]


def loss_of(n, d):
    return TRUTH["E"] + TRUTH["A"] / n ** TRUTH["alpha"] + TRUTH["B"] / d ** TRUTH["beta"]


@pytest.fixture(scope="module")
def law():
    rng = np.random.default_rng(0)
    n, d = 10 ** rng.uniform(7.5, 10.5, 60), 10 ** rng.uniform(8.5, 11.5, 60)
    hold = {name: TRUTH[name] for name in ("E", "A")}
    loss = loss_of(n, d) * np.exp(rng.normal(0, 0.003, 60))
    return fit(chinchilla, {"N": n, "D": d}, loss, hold=hold, bootstrap=200, level=0.99)


def test_the_optimum_is_where_the_loss_is_least(law):
    """By search over N, at three budgets; and its power law is the true one, within its interval."""
    table = allocate(law, [1e19, 1e21, 1e24])
    for row in table.itertuples():
        n = row.N * np.geomspace(0.5, 2, 2001)
        loss = law.predict(N=n, D=row.flops / 6 / n).value
        assert loss[1000] == loss.min() == pytest.approx(row.loss)
        assert row.N_low < row.N < row.N_high and row.D * row.N * 6 == pytest.approx(row.flops)
        assert row.D_low * row.N_high * 6 == pytest.approx(row.flops)
    found = optimum(law)
    assert found["a"].low < A < found["a"].high and found["a"].value + found["b"].value == pytest.approx(1)
    g = (TRUTH["alpha"] * TRUTH["A"] / TRUTH["beta"] / TRUTH["B"]) ** (1 / (TRUTH["alpha"] + TRUTH["beta"]))
    assert found["G"].low < g < found["G"].high
    n_1e21 = found["G"].value * (1e21 / 6) ** found["a"].value
    assert table["N"][1] == pytest.approx(n_1e21)


def test_an_exponent_that_may_be_zero_leaves_no_optimum():
    n = np.repeat(np.geomspace(1e6, 1e8, 6), 3)
    d = np.tile([1e9, 1.1e9, 1.2e9], 6)
    loss = (2 + 100 / n**0.3) * np.exp(np.random.default_rng(0).normal(0, 0.01, 18))
    law = fit(chinchilla, {"N": n, "D": d}, loss, hold={"E": 2.0, "A": 100.0}, bootstrap=50)
    if law.constants["beta"].value > 0:
        assert optimum(law)["a"][1:] == (-np.inf, np.inf)
    else:
        with pytest.raises(InputError, match="there is no optimum"):
            optimum(law)


def test_a_law_without_two_exponents_has_no_optimum(law):
    other = replace(law, constants={name: c for name, c in law.constants.items() if name != "B"})
    with pytest.raises(InputError, match="chinchilla has no constant 'B': an optimum is of a law with A, B"):
        optimum(other)


def isoflops(noise=0.0, seed=0):
    """Seven budgets, nine sizes each, a factor of 1.6 apart, their middle off the optimum."""
    rng = np.random.default_rng(seed)
    flops = np.repeat(10.0 ** np.arange(17, 24), 9)
    g = (TRUTH["alpha"] * TRUTH["A"] / TRUTH["beta"] / TRUTH["B"]) ** (1 / (TRUTH["alpha"] + TRUTH["beta"]))
    n = g * (flops / 6) ** A * 1.6 ** (np.tile(np.arange(9), 7) - 3.7)
    return flops, n, loss_of(n, flops / 6 / n) * np.exp(rng.normal(0, noise, len(n)))


def test_parabolas_find_the_exponent_of_a_known_law():
    flops, n, loss = isoflops()
    found = isoflop(flops, n, loss)
    assert found.exponent.value == pytest.approx(A, abs=2e-3) and found.left_out == ()
    g = found.coefficient.value * 6**A
    best = g * (found.optima["flops"] / 6) ** A
    assert found.optima["N"].to_numpy() == pytest.approx(best.to_numpy(), rel=0.1)
    assert found.optima["loss"].to_numpy() == pytest.approx(pd.Series(loss).groupby(flops).min().to_numpy(), rel=1e-3)


def test_their_intervals_hold_the_exponent():
    """90 % intervals of 60 draws: a right one holds fewer than 46 with a chance of 0.2 %."""
    held = 0
    for seed in range(60):
        found = isoflop(*isoflops(noise=0.002, seed=seed), bootstrap=200, seed=seed)
        held += found.exponent.low < A < found.exponent.high
    assert 46 <= held


def test_a_budget_without_a_minimum_is_left_out():
    flops, n, loss = isoflops()
    seen = ~((flops == 1e17) & (n > np.sort(n[flops == 1e17])[2]))  # its three smallest
    assert isoflop(flops[seen], n[seen], loss[seen]).left_out == (1e17,)
    few = np.isin(flops, [1e17, 1e18])
    with pytest.raises(InputError, match="2 budgets have a minimum within their points: a power law needs three$"):
        isoflop(flops[few], n[few], loss[few])
    with pytest.raises(InputError, match="must be positive finite numbers"):
        isoflop(flops, -n, loss)


def test_a_budget_whose_parabola_is_concave_is_left_out():
    """Its lowest point is an inner one, and the five nearest bend down: the optimum was once a random number."""
    flops, n, loss = isoflops()
    at = np.flatnonzero(flops == 1e20)
    loss[at] = 3 + np.array([0.0, 0.30, 0.02, 0.31, 0.01, 0.30, 0.03, 0.29, 0.0])[np.argsort(np.argsort(n[at]))] * -1
    concave = [isoflop(flops, n, loss, seed=seed, bootstrap=50) for seed in (0, 1, 2)]
    assert {found.left_out for found in concave} == {(1e20,)}
    assert len({found.exponent.value for found in concave}) == 1
    assert len({tuple(found.optima["N"]) for found in concave}) == 1


def test_losses_at_one_size_are_averaged():
    flops, n, loss = isoflops(noise=0.002)
    once = isoflop(flops, n, loss, bootstrap=50)
    off = np.where(np.arange(len(n)) % 2, 1.001, 0.999)
    twice = isoflop(*(np.concatenate([a, b]) for a, b in ((flops, flops), (n, n), (loss * off, loss * (2 - off)))))
    pd.testing.assert_frame_equal(twice.optima[["flops", "N", "D", "loss"]], once.optima[["flops", "N", "D", "loss"]])
    assert twice.exponent.value == pytest.approx(once.exponent.value)


def test_the_published_optimum_of_the_replication(shared_data):
    """a = 0.513 with a standard error of 0.02 (Besiroglu et al. 2024)."""
    table = pd.read_csv(shared_data / "scaling_chinchilla" / "svg_extracted_data.csv")
    table = table[table["loss"] < table["loss"].sort_values().iloc[-5]]
    n = table["Model Size"].to_numpy()
    inputs = {"N": n, "D": table["Training FLOP"].to_numpy() / (6 * n)}
    a = optimum(fit(chinchilla, inputs, table["loss"].to_numpy(), bootstrap=300))["a"]
    assert a.value == pytest.approx(0.513, abs=2e-3)
    assert (a.high - a.low) / 2 / 1.645 == pytest.approx(0.02, rel=0.3)


def test_the_exponents_of_porian_et_al(shared_data):
    """All 15 settings, from the losses they interpolated at equal FLOPs; they take minima by Akima interpolation."""
    folder = shared_data / "scaling_porian"
    points, fits = pd.read_csv(folder / "isoflop_points.csv.gz"), pd.read_csv(folder / "fits.csv")
    published = fits[fits["fit"] == "basic"].set_index(SETTING)["n_exponent"]
    found = {key: isoflop(g["flops"], g["n"], g["loss"]).exponent for key, g in points.groupby(SETTING)}
    assert len(found) == 15
    off = np.array([exponent.value - published[key] for key, exponent in found.items()])
    assert np.abs(off).mean() < 0.015 and np.abs(off).max() < 0.035
    held = sum(exponent.low <= published[key] <= exponent.high for key, exponent in found.items())
    assert held >= 12
    walk = [
        ("summary_df", "rw", "base", "long", "kaplan", "kaplan", "train"),
        ("summary_df", "rw", "base", "long", "kaplan", "standard", "val"),
        ("summary_df", "rw", "base", "short", "kaplan", "standard", "val"),
        ("summary_df", "rw", "base", "short", "chinchilla", "standard", "val"),
        ("summary_df", "rw", "tuned", "short", "const", "standard", "val"),
    ]
    exponents = [found[key].value for key in walk]
    assert exponents == sorted(exponents, reverse=True) and exponents[0] > 0.8 and exponents[-1] < 0.51
