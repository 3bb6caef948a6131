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
    return pd.DataFrame(rows, columns=["series", "N", "D", "loss"])


def test_known_gaps_are_recovered():
    found = gaps(curves(), 410e6, bootstrap=200)
    assert found.law.rows == 10
    assert {k: found.law.constants[k].value for k in ("A", "alpha")} == pytest.approx(
        {"A": 119.09, "alpha": 0.246}, rel=1e-4
    )
    assert found.final == pytest.approx((8, 8, 8), abs=1e-4) and found.best == pytest.approx((4, 4, 4), abs=1e-4)
    assert list(found.series["series"]) == [
        f"{n}-{i}" for n in ("1.4e+07", "3.1e+07", "7e+07", "1.6e+08") for i in (0, 1)
    ]
    np.testing.assert_allclose(found.series["final_gap"], 8, atol=1e-4)
    np.testing.assert_array_equal(found.series["best_D"], 2e11)


def test_gaps_are_of_the_law_of_the_larger_models_alone():
    table = curves(noise=0.002)
    found = gaps(table, 410e6, bootstrap=200, level=0.99)
    end = table[(table["D"] == 3e11) & (table["N"] >= 410e6)]
    law = fit(chinchilla, {"N": end["N"], "D": end["D"]}, end["loss"], hold=HOFFMANN, bootstrap=200, level=0.99)
    assert law.constants == found.law.constants
    row = found.series.iloc[0]
    predicted = law.predict(N=row["N"], D=row["final_D"])
    assert row["final_predicted"] == pytest.approx(predicted.value)
    assert row["final_gap"] == pytest.approx(100 * (row["final_loss"] - predicted.value) / predicted.value)
    assert row["final_low"] == pytest.approx(100 * (row["final_loss"] / predicted.high - 1))
    assert found.final.value == pytest.approx(found.series["final_gap"].mean())
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
        (curves().drop(columns="D"), 410e6, "curves have no column 'D'; they have series, N, loss"),
        (curves(), 1e6, "no series has N < 1e\\+06: the smallest has 1.4e\\+07"),
        (curves(), 5e9, "2 rows for 2 constants \\(A, alpha\\): needs at least 3"),
        (curves().assign(loss=np.nan), 410e6, "series '1.4e\\+07-0' at D = 1e\\+10 has loss nan"),
        (curves().assign(N=0), 410e6, "series '1.4e\\+07-0' at D = 1e\\+10 has N 0"),
    ],
)
def test_bad_input_is_named(table, fitted_from, message):
    with pytest.raises(InputError, match=message):
        gaps(table, fitted_from)


PYTHIA = (14067712, 30494720, 70426624, 162322944, 405334016, 1011781632, 1414647808)  # total parameters
HELD = ("E", "B", "beta")
LAWS = {
    "recalled": HOFFMANN | {"A": 119.09, "alpha": 0.246},
    "another": {"E": 2.0, "A": 20.0, "alpha": 0.3, "B": 300.0, "beta": 0.5},
}


def pod(seed, law, final, best, noise):
    """The paper's sizes, one seed each, 154 checkpoints: small models turn up in the last third, from `best` above the
    law to `final`. Noise of a run, 0.1 % of a checkpoint; the loss on other documents beside it."""
    rng, d = np.random.default_rng(seed), np.linspace(3e11 / 154, 3e11, 154)
    rising = np.clip(3 * d / 3e11 - 2, 0, 1)
    tables = []
    for n in PYTHIA:
        above = best + (final - best) * rising if n < 4e8 else 0.0
        loss = law["E"] + law["A"] / n ** law["alpha"] + law["B"] / d ** law["beta"]
        loss = loss * (1 + above) * np.exp(rng.normal(0, noise))
        halves = {name: loss * np.exp(rng.normal(0, 0.001, 154)) for name in ("loss", "chosen_by")}
        tables.append(pd.DataFrame({"series": f"{n}", "N": n, "D": d, **halves}))
    return pd.concat(tables)


def judged(law, final, best, noise, draws):
    """Of intervals of the final and the best gap: the part that holds the planted one, and the median half width."""
    hold = {name: LAWS[law][name] for name in HELD}
    found = [
        gaps(pod(seed, LAWS[law], final, best, noise), 4e8, hold=hold, misfit=noise, bootstrap=200, seed=seed)
        for seed in range(draws)
    ]
    pairs = [(g.final, g.best) for g in found]
    inside = [np.mean([p[i].low < 100 * truth < p[i].high for p in pairs]) for i, truth in enumerate((final, best))]
    return inside, [np.median([(p[i].high - p[i].low) / 2 for p in pairs]) for i in (0, 1)]


@pytest.mark.parametrize("law, widest", [pytest.param("recalled", 2, marks=pytest.mark.slow), ("another", 3)])
def test_planted_gaps_at_the_papers_own_sizes(law, widest):
    """Three larger models, which leave one degree of freedom: of 60 intervals of 90 % fewer than 48 hold with a chance
    of 0.7 %. Without a misfit given they are far too wide to tell."""
    for planted in ((0.08, 0.04), (0.0, 0.0)):
        inside, half_width = judged(law, *planted, noise=0.002, draws=60)
        assert min(inside) >= 48 / 60 and max(half_width) < widest, (planted, inside, half_width)
    hold = {name: LAWS[law][name] for name in HELD}
    blind = gaps(pod(0, LAWS[law], 0.08, 0.04, 0.002), 4e8, hold=hold, bootstrap=200).final
    assert blind.high - blind.low > 20


@pytest.mark.slow
@pytest.mark.parametrize("law, widest", [("recalled", 3.5), ("another", 6.5)])
def test_gaps_hold_in_85_of_100_draws_with_more_noise(law, widest):
    """At 0.3 % the half width is 2.5 points under the recalled law, at 0.4 % 3.4."""
    for noise in (0.003, 0.004):
        for planted in ((0.08, 0.04), (0.0, 0.0)):
            inside, half_width = judged(law, *planted, noise=noise, draws=100)
            assert min(inside) >= 0.85 and max(half_width) < widest, (noise, planted, inside, half_width)


def test_the_best_checkpoint_is_chosen_on_other_documents():
    """Of 154 checkpoints the least of noisy losses is too low: by 0.15 % where the loss is flat."""
    off = {"loss": [], "chosen_by": []}
    for seed in range(20):
        table = pod(seed, LAWS["recalled"], 0.08, 0.04, 0.0)
        for by in off:
            kept = table if by == "chosen_by" else table.drop(columns="chosen_by")
            found = gaps(kept, 4e8, misfit=0.002, bootstrap=20)
            n, d = (found.series[name].to_numpy() for name in ("N", "best_D"))
            law = LAWS["recalled"]
            exact = law["E"] + law["A"] / n ** law["alpha"] + law["B"] / d ** law["beta"]
            exact = exact * (1.04 + 0.04 * np.clip(3 * d / 3e11 - 2, 0, 1))
            off[by].append(np.mean(found.series["best_loss"] / exact - 1))
    assert np.mean(off["loss"]) < -1e-3 < -3e-4 < np.mean(off["chosen_by"]) < 3e-4


def laptop(seed, misfit, final=0.0):
    """Widths of two seeds and three budgets, with a misfit of each width; the smallest ends `final` above the law."""
    rng, law = np.random.default_rng(seed), {"E": 1.0, "A": 15.0, "B": 60.0, "alpha": 0.15, "beta": 0.25}
    rows = []
    for width, n in zip((8, 16, 32, 64), (18024, 39248, 91296, 234e3)):
        off = rng.normal(0, misfit)
        for budget in (384e3, 768e3, 1536e3):
            for s in (0, 1):
                loss = law["E"] + law["A"] / n ** law["alpha"] + law["B"] / budget ** law["beta"]
                loss *= np.exp(off + rng.normal(0, 0.003)) * (1 + final * (width == 8))
                rows.append((f"{width}-{budget}-{s}", width, n, budget, loss))
    return pd.DataFrame(rows, columns=["series", "width", "N", "D", "loss"])


@pytest.mark.slow
def test_all_constants_of_three_widths_tell_no_gap_with_confidence():
    """E, A and alpha go through any three widths: no bound. With a misfit that is known the interval is wide, and holds
    in 17 of 20 draws at least, which right ones of 90 % fail with a chance of 13 %; these draws are fixed."""
    table = laptop(0, 0.01)
    unknown = gaps(table, 3e4, hold={}, groups="width", bootstrap=50).final
    assert unknown.low == -np.inf and unknown.high == np.inf
    inside, width = [], []
    for seed in range(20):
        planted = 0.05 * (seed % 2)
        found = gaps(laptop(seed, 0.01, planted), 3e4, hold={}, groups="width", misfit=0.01, bootstrap=100).final
        inside.append(found.low < 100 * planted < found.high)
        width.append(found.high - found.low)
    assert sum(inside) >= 17 and np.median(width) > 5, (sum(inside), np.median(width))
